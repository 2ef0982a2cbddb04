"""Ops on `text`."""

import numpy as np

from big_vision_like.input import tokenizers


def lower(key: str = "text"):
  """Lower case."""
  return lambda example, rng: {**example, key: example[key].lower()}


def tokenize(length: int, model: str, vocab_size: int | None = None, key: str = "text"):
  """SentencePiece -> int32 [length]: cut, end-of-text, padded; a list of texts draws one.

  `model`: a path, or `train:SOURCE` to train on the captions of a source (`vocab_size` pieces).
  """
  tokenizer = tokenizers.sentencepiece(model, vocab_size)

  def run(example, rng):
    text = example[key]
    if isinstance(text, (list, tuple)):
      text = text[rng.integers(len(text))]
    if isinstance(text, bytes):
      text = text.decode("utf-8")
    ids = [*tokenizer.encode(text)[: length - 1], tokenizer.eos]
    return {**example, key: np.array(ids + [tokenizer.pad] * (length - len(ids)), np.int32)}

  return run
