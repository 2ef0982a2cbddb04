"""Ops on `text`: tokens, prefixes, prompts."""

import re
from typing import Any

import numpy as np

from big_vision_like.config import UserError, unknown, whole_number
from big_vision_like.input import tokenizers
from big_vision_like.input.bad import BadExample


def _one(text: Any, key: str, rng: Any) -> str:
  """A text; one is drawn from a list of them, bytes are decoded."""
  if isinstance(text, (list, tuple)):
    if not text:
      raise BadExample("empty text", f"{key} is an empty list")
    text = text[rng.integers(len(text))]
  if isinstance(text, bytes):
    text = text.decode("utf-8")
  if not isinstance(text, str):
    raise BadExample("not a text", f"{key} is a {type(text).__name__}")
  return text


def _tokenizer(op: str, model: str, vocab_size: int | None, eos: str) -> tokenizers.Tokenizer:
  if eos not in ("yes", "no"):
    raise unknown(f"op {op}: eos", eos, ("yes", "no"))
  tokenizer = tokenizers.by_name(model, vocab_size)
  if eos == "yes" and tokenizer.eos < 0:
    raise UserError(f"op {op}: model {model!r} has no end-of-text; give eos='no'")
  return tokenizer


def _padded(ids: list[int], length: int, value: int) -> np.ndarray:
  return np.array(ids + [value] * (length - len(ids)), np.int32)


def lower(key: str = "text"):
  """Lower case."""
  return lambda example, rng: {**example, key: example[key].lower()}


def require_text(key: str = "text"):
  """Texts of nothing but white space are bad examples; of a list, the others stay.

  Raises:
    BadExample: "empty text", or "not a text".
  """

  def full(text: Any) -> bool:
    if not isinstance(text, (str, bytes)):
      raise BadExample("not a text", f"{key} is a {type(text).__name__}")
    return bool(text.strip())

  def run(example, rng):
    text = example[key]
    if isinstance(text, (list, tuple)):
      text = [t for t in text if full(t)]
    if not (text if isinstance(text, list) else full(text)):
      raise BadExample("empty text", f"{key} = {example[key]!r}")
    return {**example, key: text}

  return run


def prompt(template: str = "a photo of a {text}", key: str = "text"):
  """A template filled in: `prompt('a photo of a {text}')`.

  `{name}` is the example's text or number of that key; of a list of texts one is drawn. The default
  is CLIP's (arXiv:2103.00020, Sec. 3.1.4).

  Args:
    template: text with at least one `{name}`.
    key: of the result.

  Raises:
    UserError: a template without a place to fill.
  """
  return prompts((template,), key)


def prompts(templates: tuple[str, ...], key: str = "text"):
  """One of several templates, drawn and filled in as `prompt` does: `prompts(('a {text}', ...))`.

  Raises:
    UserError: no templates, or one without a place to fill.
  """
  templates = (templates,) if isinstance(templates, str) else tuple(templates)
  place = re.compile(r"\{(\w+)\}")
  for template in templates or ("",):
    if not isinstance(template, str) or not place.search(template):
      raise UserError(f"op prompts: template {template!r}; expected one such as 'a {{text}}'")

  def run(example, rng):
    template = templates[rng.integers(len(templates))] if len(templates) > 1 else templates[0]

    def value(match: re.Match) -> str:
      found = example[match[1]]
      number = isinstance(found, (int, float, np.number)) and not isinstance(found, bool)
      return str(found) if number else _one(found, match[1], rng)

    return {**example, key: place.sub(value, template)}

  return run


def tokenize(
  length: int, model: str, vocab_size: int | None = None, key: str = "text", eos: str = "yes"
):
  """Tokens, int32 [length]: cut, end-of-text, padded; a list of texts draws one.

  `eos`: "yes" ends every text with end-of-text, also one that is cut; "no" leaves it out.

  `model`: the path of a SentencePiece model, or `train:SOURCE` to train one on the captions of a
  source (`vocab_size` pieces), or `clip:PATH` for CLIP's byte pairs, PATH its file of merges
  (bpe_simple_vocab_16e6.txt.gz). CLIP's begin with start-of-text, are padded with 0 and 77 long.

  Raises:
    UserError: a model that is none or has no end-of-text.
    BadExample: "not a text", "empty text" for an empty list; bytes that are not UTF-8 are bad too.
  """
  whole_number(length, "op tokenize: length")
  tokenizer = _tokenizer("tokenize", model, vocab_size, eos)
  tail = [tokenizer.eos] if eos == "yes" else []
  if length < len(tokenizer.start + tail):
    raise UserError(f"op tokenize: length = {length}; {model!r} adds start- and end-of-text")

  def run(example, rng):
    ids = tokenizer.start + tokenizer.encode(_one(example[key], key, rng))
    ids = ids[: length - len(tail)] + tail
    return {**example, key: _padded(ids, length, tokenizer.pad)}

  return run


def tokenize_prefix_suffix(
  length: int,
  model: str,
  vocab_size: int | None = None,
  prefix: str = "prefix",
  suffix: str = "suffix",
  separator: str = "\n",
  bos: str = "no",
  eos: str = "yes",
  key: str = "text",
):
  """A prefix that is given and a suffix that is learnt: tokens and the masks of a prefix LM.

  As PaliGemma, Beyer et al. 2024 (arXiv:2407.07726), Sec. 3.2: start-of-text, prefix, separator,
  suffix, end-of-text, padding. In place of `prefix` and `suffix` come

      text          int32 [length] tokens
      prefix_mask   bool [length], True for start, prefix, separator: all of them see each other
      loss_mask     bool [length], True for suffix and end-of-text: causal, and in the loss

  Both masks are False for padding. A suffix that does not fit is cut, before end-of-text.

  Args:
    length: of all together.
    model, vocab_size: as in `tokenize`.
    prefix, suffix: keys of the texts; a list draws one.
    separator: between them; tokenized by itself.
    bos, eos: "yes" or "no": begin with start-of-text, end with end-of-text.
    key: of the tokens.

  Raises:
    UserError: as `tokenize`, or a model that has no start-of-text where `bos` asks for it.
    BadExample: "text too long" where the prefix leaves no room for a token of the suffix.
  """
  op = "tokenize_prefix_suffix"
  whole_number(length, f"op {op}: length")
  tokenizer = _tokenizer(op, model, vocab_size, eos)
  if bos not in ("yes", "no"):
    raise unknown(f"op {op}: bos", bos, ("yes", "no"))
  if bos == "yes" and tokenizer.bos < 0:
    raise UserError(f"op {op}: model {model!r} has no start-of-text; give bos='no'")
  head = [tokenizer.bos] if bos == "yes" else []
  tail = [tokenizer.eos] if eos == "yes" else []
  between = tokenizer.encode(separator)

  def run(example, rng):
    given = head + tokenizer.encode(_one(example[prefix], prefix, rng)) + between
    learnt = tokenizer.encode(_one(example[suffix], suffix, rng))
    room = length - len(given) - len(tail)
    if room < min(1, len(learnt)):
      raise BadExample("text too long", f"{prefix} has {len(given)} tokens of {length}")
    learnt = learnt[:room] + tail
    n, at = len(given), np.arange(length)
    return {
      **{k: v for k, v in example.items() if k not in (prefix, suffix)},
      key: _padded(given + learnt, length, tokenizer.pad),
      "prefix_mask": at < n,
      "loss_mask": (at >= n) & (at < n + len(learnt)),
    }

  return run
