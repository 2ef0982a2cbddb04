"""Captions against references: exact match, token F1, BLEU, ROUGE-L and CIDEr.

Beside them the same of the caption of the nearest training image.
"""

import functools
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from big_vision_like.config import Config, UserError, call, parse_spec
from big_vision_like.evaluators import Mistake, Split, _caption_scores, nearest, need
from big_vision_like.input import tokenizers


class Evaluator:
  """Keys: source, source_train, pp (yields image, and text as a string), tokenizer, batch_size;
  max_new_tokens, temperature, top_k, top_p, beams (options of `generate`), seed.

  `tokenizer` is the op that made the tokens of training: "tokenize(24, model='...')". A text may be
  a list of references: the best one counts, for BLEU and CIDEr all of them do.

  `nearest_...` are the scores of the trivial captioner, which says of an image what the training
  image with the nearest pixels (Euclidean, after `pp`) is called.
  """

  OPTIONS = ("max_new_tokens", "temperature", "top_k", "top_p", "beams")

  def __init__(self, config: Config, predict: Mapping[str, Callable], mesh: jax.sharding.Mesh):
    self.generate = need(predict, "generate", config)
    self.options = {k: config[k] for k in self.OPTIONS if k in config}
    self.seed = config.get("seed", 0)
    self.tokenizer = _tokenizer(config.tokenizer, f"{config.path}.tokenizer")
    self.test = Split(config, mesh, needs=("image",))
    self.train = Split(config, mesh, needs=("image",), source="source_train")
    for split in (self.test, self.train):
      if "text" not in split.strings:
        raise UserError(f"{config.path}.pp = {config.pp!r} has to leave text as a string")

  @functools.cached_property
  def references(self) -> list[list[str]]:
    """What each image of the split may be called."""
    return self.test.texts("text")

  def captions(self, state: Any) -> list[str]:
    """One for each image of the split."""
    rng = jax.random.key(self.seed)
    fn = lambda b: {"tokens": self.generate(state.params, state.aux, b, rng, **self.options)}
    return [self.tokenizer.decode(row) for row in self.test.map(fn)["tokens"]]

  @functools.cached_property
  def nearest_captions(self) -> list[str]:
    """Of the nearest training images."""
    _, rows = nearest(self.test.pixels()["x"], self.train.pixels()["x"])
    return [texts[0] for texts in self.train.texts("text", rows)]

  @functools.cached_property
  def nearest_scores(self) -> dict[str, float]:
    """`nearest_...`: those of `nearest_captions`."""
    return {f"nearest_{k}": v for k, v in self._scores(self.nearest_captions).items()}

  def _scores(self, captions: list[str]) -> dict[str, float]:
    ngrams = _caption_scores.scores(captions, self.references)
    return scores(captions, self.references) | ngrams

  def run(self, state: Any) -> dict[str, float]:
    """The scores of the split, and the same with `nearest_` before them.

    `exact_match`, `token_f1`; `bleu1` to `bleu4` of the corpus, `rouge_l`, and `cider`, which goes
    to 10. Those of several words are what pycocoevalcap gives for the same words.
    """
    return self._scores(self.captions(state)) | self.nearest_scores

  def examples(self, state: Any, count: int = 12) -> list[dict[str, Any]]:
    """The first mistakes, then right ones: image (uint8), label, predictions [(caption, F1)]."""
    captions = self.captions(state)
    value = [max(token_f1(c, r) for r in refs) for c, refs in zip(captions, self.references)]
    right = np.array([exact(c, refs) for c, refs in zip(captions, self.references)])
    chosen = [*np.flatnonzero(~right)[: count // 2], *np.flatnonzero(right)][:count]
    return [
      {"image": image, "label": self.references[i][0], "predictions": [(captions[i], value[i])]}
      for i, image in zip(chosen, self.test.images(chosen))
    ]

  def mistakes(self, state: Any, n: int) -> list[Mistake]:
    """The captions furthest from all references by ROUGE-L; `score` is 1 - ROUGE-L."""
    said, words = self.captions(state), _caption_scores.words
    rouge = lambda c, refs: _caption_scores.rouge_l(words(c), [words(r) for r in refs])
    far = 1 - np.array([rouge(c, refs) for c, refs in zip(said, self.references)])
    rows = [i for i in np.argsort(-far, kind="stable")[:n].tolist() if far[i] > 0]
    images = self.test.images(rows)
    return [
      Mistake(i, image, said[i], " / ".join(self.references[i]), float(far[i]))
      for i, image in zip(rows, images)
    ]


def words(text: str) -> list[str]:
  """Lower case, without punctuation: "Box, light" -> ["box", "light"]; "dots-12" is two."""
  return re.findall(r"\w+", text.lower())


def exact(caption: str, references: list[str]) -> bool:
  """Whether it has the words of one of the references, in order."""
  return any(words(caption) == words(r) for r in references)


def token_f1(caption: str, reference: str) -> float:
  """Harmonic mean of precision and recall of the words, with their counts, in any order (SQuAD's).

  Rajpurkar et al. 2016, Sec. 6.1. Two empty texts agree.
  """
  a, b = Counter(words(caption)), Counter(words(reference))
  if not a or not b:
    return float(a == b)
  return 2 * (a & b).total() / (a.total() + b.total())


def scores(captions: list[str], references: list[list[str]]) -> dict[str, float]:
  """Means over the captions, each against the best of its references."""
  right = [exact(c, refs) for c, refs in zip(captions, references)]
  f1 = [max(token_f1(c, r) for r in refs) for c, refs in zip(captions, references)]
  return {"exact_match": float(np.mean(right)), "token_f1": float(np.mean(f1))}


def _tokenizer(spec: str, where: str) -> tokenizers.Tokenizer:
  """That of the one op `tokenize` in `spec`."""
  calls = [c for c in parse_spec(spec, where) if c.name == "tokenize"]
  if len(calls) != 1:
    raise UserError(f"{where} = {spec!r}; expected tokenize(length, model=...)")
  take = lambda length, model, vocab_size=None, key="text", eos="yes": (model, vocab_size)
  return tokenizers.by_name(*call(take, calls[0].kwargs, where, *calls[0].args))
