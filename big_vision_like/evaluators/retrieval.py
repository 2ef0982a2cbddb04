"""Image-text retrieval: recall at 1, 5 and 10 both ways (Karpathy and Fei-Fei 2015)."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from big_vision_like.config import Config, UserError, whole_number
from big_vision_like.evaluators import Mistake, Split, hardest, intervals, need, prompts, ranks

KS = (1, 5, 10)
SCORES = 1 << 26  # compared at a time

Edges = tuple[np.ndarray, np.ndarray]
"""Which query goes with which item: two int arrays of equal length."""


class Embedded(NamedTuple):
  """Different images and captions of a split, and which go together.

  Attributes:
    images, captions: float32 [N, E] and [M, E].
    edges: numbers of an image and of a caption.
    first_image, first_caption: where each first occurs: row of the split, and of all captions.
  """

  images: np.ndarray
  captions: np.ndarray
  edges: Edges
  first_image: np.ndarray
  first_caption: np.ndarray


class Evaluator:
  """Keys: source, pp (yields image and text), batch_size; pp_txt, captions, unique (True),
  mean_rank (False), bootstrap (0).

  Examples with the same `image_id` are one image with several captions; examples with the same
  tokens are one caption. Without `image_id` every example is its own image.

  With `pp_txt`, ops on one text, `pp` leaves `text` as a string or a list of strings, and all
  captions of an image take part: the protocol of Karpathy's splits of COCO and Flickr30k, which
  looks at the first `captions=5`. An image is found by any of its captions, the best of an image's
  captions counts, and `unique=False` keeps equal captions of two images apart, as published
  numbers do; ties then count against them.

  `mean_rank=True` adds the mean and the median of the rank of the first right item, from 1;
  `bootstrap=1000` 95 % intervals of the recalls over queries.
  """

  def __init__(self, config: Config, predict: Mapping[str, Callable], mesh: jax.sharding.Mesh):
    self.config = config
    self.image = need(predict, "image_embed", config)
    self.text = need(predict, "text_embed", config)
    self.all_captions = "pp_txt" in config
    self.split = Split(config, mesh, needs=("image",) if self.all_captions else ("image", "text"))
    if "image_id" in self.split.strings:
      raise UserError(f"{config.path}: image_id of the source is a string; it has to be a number")
    if self.all_captions:
      if "text" not in self.split.strings:
        raise UserError(f"{config.path}.pp = {config.pp!r}: with pp_txt it has to leave text as is")
      self.most = whole_number(config.get("captions", 1 << 30), f"{config.path}.captions")
      prompts.tokens(self.split.texts("text", [0])[0][:1], config)  # mistakes show now
    elif "captions" in config:
      raise UserError(f"{config.path}.captions needs pp_txt, the ops on each caption")
    self.unique = config.get("unique", True)
    self.mean_rank = config.get("mean_rank", False)
    self.bootstrap = intervals.resamples(config)

  @functools.cached_property
  def _captions(self) -> Edges:
    """Of each caption its example [n] and its tokens [n, L]."""
    texts = [t[: self.most] for t in self.split.texts("text")]
    row = np.repeat(np.arange(len(texts)), [len(t) for t in texts])
    return row, prompts.tokens([t for several in texts for t in several], self.config)

  def _embeddings(self, state: Any) -> Embedded:
    image = lambda b: self.image(state.params, state.aux, b)
    if self.all_captions:
      rows = self.split.map(lambda b: {"zimg": image(b)})
      row, tokens = self._captions
      size, mesh = self.split.batch_size, self.split.mesh
      ztxt = prompts.embed_tokens(self.text, state, tokens, size, mesh)
    else:
      text = lambda b: {"ztxt": self.text(state.params, state.aux, b), "tokens": b["text"]}
      rows = self.split.map(lambda b: {"zimg": image(b), **text(b)})
      row, tokens, ztxt = slice(None), rows["tokens"], rows["ztxt"]
    ids = rows.get("image_id", rows["index"])
    _, first, of_image = np.unique(ids, return_index=True, return_inverse=True)
    first_text = of_text = np.arange(len(tokens))
    if self.unique:
      _, first_text, of_text = np.unique(tokens, axis=0, return_index=True, return_inverse=True)
    # A half-precision product on the host is slow and ties too often.
    zimg, ztxt = rows["zimg"][first].astype(np.float32), ztxt[first_text].astype(np.float32)
    return Embedded(zimg, ztxt, (of_image[row], of_text.reshape(-1)), first, first_text)

  def run(self, state: Any) -> dict[str, float]:
    """`{"img2txt/R@1": ..., "txt2img/R@1": ..., ...}`."""
    zimg, ztxt, (image, text), _, _ = self._embeddings(state)
    out = {}
    for way, rank in (
      ("img2txt", first_ranks(zimg, ztxt, (image, text))),
      ("txt2img", first_ranks(ztxt, zimg, (text, image))),
    ):
      out |= intervals.scores({f"{way}/R@{k}": rank < k for k in KS}, self.bootstrap)
      if self.mean_rank:
        out[f"{way}/mean_rank"] = float(rank.mean()) + 1
        out[f"{way}/median_rank"] = float(np.median(rank)) + 1
    return out

  def mistakes(self, state: Any, n: int) -> list[Mistake]:
    """Images whose wrong text beats their best right one by most, in cosines.

    Texts are shown as the source has them, before `pp`.
    """
    images, captions, edges, first_image, first_caption = self._embeddings(state)
    found = [_rivals(*part) for part in chunks(images, captions, edges)]
    margin, said, right = (np.concatenate(x) for x in zip(*found))
    worst = hardest(margin, n)
    text = lambda k: self._text(int(first_caption[k]))
    pictures = self.split.images([int(first_image[i]) for i in worst])
    return [
      Mistake(int(first_image[i]), x, text(said[i]), text(right[i]), float(margin[i]))
      for i, x in zip(worst, pictures)
    ]

  def _text(self, caption: int) -> str:
    """For people: of all captions, or of the split's rows, one as the source has it."""
    if not self.all_captions:
      return self.split.raw_text(caption)
    row = self._captions[0]
    place = caption - np.searchsorted(row, row[caption])
    return self.split.texts("text", [int(row[caption])])[0][place]


def chunks(
  queries: np.ndarray, items: np.ndarray, edges: Edges
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Scores of some of the queries [Q, E] with all items [N, E], and which are right, bool.

  Only a part of the Q x N scores is there at a time.
  """
  order = np.argsort(edges[0], kind="stable")
  query, item = edges[0][order], edges[1][order]
  size = max(1, SCORES // len(items))
  for start in range(0, len(queries), size):
    scores = queries[start : start + size] @ items.T
    part = slice(*np.searchsorted(query, (start, start + size)))
    right = np.zeros(scores.shape, bool)
    right[query[part] - start, item[part]] = True
    yield scores, right


def first_ranks(queries: np.ndarray, items: np.ndarray, edges: Edges) -> np.ndarray:
  """How many wrong items come before the first right one, of each query [Q, E] in items [N, E]."""
  return np.concatenate([ranks(*part) for part in chunks(queries, items, edges)])


def _rivals(scores: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Margin of the best wrong item over the best right one, and both: [Q, N], bool [Q, N] -> [Q]."""
  of_right, of_wrong = np.where(right, scores, -np.inf), np.where(right, -np.inf, scores)
  return of_wrong.max(1) - of_right.max(1), of_wrong.argmax(1), of_right.argmax(1)


def recall(queries: np.ndarray, items: np.ndarray, pairs: np.ndarray) -> dict[int, float]:
  """Share of queries with a right item among the k nearest: {k: recall}.

  queries [Q, E], items [N, E], pairs bool [Q, N].
  """
  rank = first_ranks(queries, items, np.nonzero(pairs))
  return {k: float((rank < k).mean()) for k in KS}
