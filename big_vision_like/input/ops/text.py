"""Ops on `text`."""

import numpy as np

from big_vision_like.config import UserError, unknown, whole_number
from big_vision_like.input import tokenizers


def lower(key: str = "text"):
  """Lower case."""
  return lambda example, rng: {**example, key: example[key].lower()}


def tokenize(
  length: int, model: str, vocab_size: int | None = None, key: str = "text", eos: str = "yes"
):
  """SentencePiece -> int32 [length]: cut, end-of-text, padded; a list of texts draws one.

  `eos`: "yes" ends every text with end-of-text, also one that is cut; "no" leaves it out.

  `model`: a path, or `train:SOURCE` to train on the captions of a source (`vocab_size` pieces).
  """
  whole_number(length, "op tokenize: length")
  if eos not in ("yes", "no"):
    raise unknown("op tokenize: eos", eos, ("yes", "no"))
  tokenizer = tokenizers.sentencepiece(model, vocab_size)
  if eos == "yes" and tokenizer.eos < 0:
    raise UserError(f"op tokenize: model {model!r} has no end-of-text; give eos='no'")
  tail = [tokenizer.eos] if eos == "yes" else []

  def run(example, rng):
    text = example[key]
    if isinstance(text, (list, tuple)):
      text = text[rng.integers(len(text))]
    if isinstance(text, bytes):
      text = text.decode("utf-8")
    ids = tokenizer.encode(text)[: length - len(tail)] + tail
    return {**example, key: np.array(ids + [tokenizer.pad] * (length - len(ids)), np.int32)}

  return run
