"""Image-text retrieval: recall at 1, 5 and 10 both ways (Karpathy and Fei-Fei 2015)."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from big_vision_like.config import Config, UserError
from big_vision_like.evaluators import Mistake, Split, hardest, need, ranks

KS = (1, 5, 10)
CHUNK = 1024  # queries compared at a time


class Evaluator:
  """Keys: source, pp (yields image and text), batch_size.

  Examples with the same `image_id` are one image with several captions; examples with the same
  tokens are one caption. Without `image_id` every example is its own image.
  """

  def __init__(self, config: Config, predict: Mapping[str, Callable], mesh: jax.sharding.Mesh):
    self.image = need(predict, "image_embed", config)
    self.text = need(predict, "text_embed", config)
    self.split = Split(config, mesh, needs=("image", "text"))
    if "image_id" in self.split.strings:
      raise UserError(f"{config.path}: image_id of the source is a string; it has to be a number")

  def run(self, state: Any) -> dict[str, float]:
    """`{"img2txt/R@1": ..., "txt2img/R@1": ..., ...}`."""
    rows = self.split.map(
      lambda b: {
        "zimg": self.image(state.params, state.aux, b),
        "ztxt": self.text(state.params, state.aux, b),
        "tokens": b["text"],
      }
    )
    ids = rows.get("image_id", rows["index"])
    _, first, image = np.unique(ids, return_index=True, return_inverse=True)
    texts, first_text, text = np.unique(
      rows["tokens"], axis=0, return_index=True, return_inverse=True
    )
    pairs = np.zeros((len(first), len(texts)), bool)
    pairs[image, text.reshape(-1)] = True
    # A half-precision product on the host is slow and ties too often.
    zimg, ztxt = rows["zimg"][first].astype(np.float32), rows["ztxt"][first_text].astype(np.float32)
    out = {f"img2txt/R@{k}": v for k, v in recall(zimg, ztxt, pairs).items()}
    return out | {f"txt2img/R@{k}": v for k, v in recall(ztxt, zimg, pairs.T).items()}

  def mistakes(self, state: Any, n: int) -> list[Mistake]:
    """Images whose wrong text beats their best right one by most, in cosines.

    Texts are shown as the source has them, before `pp`.
    """
    rows = self.split.map(
      lambda b: {
        "zimg": self.image(state.params, state.aux, b),
        "ztxt": self.text(state.params, state.aux, b),
        "tokens": b["text"],
      }
    )
    ids = rows.get("image_id", rows["index"])
    _, first, image = np.unique(ids, return_index=True, return_inverse=True)
    _, first_text, text = np.unique(rows["tokens"], axis=0, return_index=True, return_inverse=True)
    pairs = np.zeros((len(first), len(first_text)), bool)
    pairs[image, text.reshape(-1)] = True
    zimg, ztxt = rows["zimg"][first].astype(np.float32), rows["ztxt"][first_text].astype(np.float32)
    found = []
    for start in range(0, len(zimg), CHUNK):
      part = slice(start, start + CHUNK)
      found.append(_rivals(zimg[part] @ ztxt.T, pairs[part]))
    margin, said, right = (np.concatenate(x) for x in zip(*found))
    worst = hardest(margin, n)
    text = lambda k: self.split.raw_text(int(first_text[k]))
    images = self.split.images([int(first[i]) for i in worst])
    return [
      Mistake(int(first[i]), x, text(said[i]), text(right[i]), float(margin[i]))
      for i, x in zip(worst, images)
    ]


def _rivals(scores: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Margin of the best wrong item over the best right one, and both: [Q, N], bool [Q, N] -> [Q]."""
  of_right, of_wrong = np.where(right, scores, -np.inf), np.where(right, -np.inf, scores)
  return of_wrong.max(1) - of_right.max(1), of_wrong.argmax(1), of_right.argmax(1)


def recall(queries: np.ndarray, items: np.ndarray, pairs: np.ndarray) -> dict[int, float]:
  """Share of queries with a right item among the k nearest: {k: recall}.

  queries [Q, E], items [N, E], pairs bool [Q, N].
  """
  found = []
  for start in range(0, len(queries), CHUNK):
    part = slice(start, start + CHUNK)
    found.append(ranks(queries[part] @ items.T, pairs[part]))
  rank = np.concatenate(found)
  return {k: float((rank < k).mean()) for k in KS}
