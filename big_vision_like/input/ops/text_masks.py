"""Ops that hide tokens of a text, for masked language modelling."""

from typing import Any

import numpy as np

from big_vision_like.config import UserError, whole_number
from big_vision_like.input.bad import BadExample
from big_vision_like.input.packing import without_padding


def _ids(name: str, op: str, values: Any) -> np.ndarray:
  values = (values,) if isinstance(values, int) else values
  return np.array([whole_number(v, f"op {op}: {name}", 0) for v in values], np.int32)


def _ratio(op: str, value: Any) -> float:
  if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
    raise UserError(f"op {op}: ratio = {value!r}; expected a number between 0 and 1")
  return value


def bert_mask(
  vocab_size: int,
  mask_id: int,
  ratio: float = 0.15,
  special: tuple[int, ...] = (0, 1),
  key: str = "text",
  labels: str = "labels",
):
  """Masks tokens, and their ids as int32 `labels` [length], -1 where none is to be predicted.

  BERT, Devlin et al. 2018 (arXiv:1810.04805), Sec. 3.1: round(ratio * tokens) of them, at least
  one, are chosen; of those 80 % become `mask_id`, 10 % a random token, 10 % stay. Which of the
  three is drawn for each by itself. Tokens of `special` are not counted, chosen, or drawn.

  Args:
    vocab_size: random tokens are below it.
    mask_id: of the mask token.
    ratio: between 0 and 1.
    special: ids of padding, end-of-text and the like; the defaults are those of `train:SOURCE`.
    key: of the tokens, integers [length].
    labels: key of the labels.

  Raises:
    UserError: numbers out of range, or tokens that are not below `vocab_size`.
  """
  op = "bert_mask"
  whole_number(vocab_size, f"op {op}: vocab_size")
  whole_number(mask_id, f"op {op}: mask_id", 0)
  _ratio(op, ratio)
  untouched = np.append(_ids("special", op, special), np.int32(mask_id))
  words = np.setdiff1d(np.arange(vocab_size, dtype=np.int32), untouched)
  if not len(words):
    raise UserError(f"op {op}: vocab_size = {vocab_size} has no tokens besides the special ones")

  def run(example, rng):
    ids = np.array(example[key], np.int32)
    if ids.size and ids.max() >= max(vocab_size, mask_id + 1):
      raise UserError(f"op {op}: vocab_size = {vocab_size}, and {key} has token {ids.max()}")
    candidates = np.flatnonzero(~np.isin(ids, untouched))
    count = max(1, round(ratio * len(candidates)))
    chosen = rng.permutation(candidates)[:count] if len(candidates) else candidates
    target = np.full_like(ids, -1)
    target[chosen] = ids[chosen]
    if len(chosen):
      fate = rng.random(len(chosen))
      drawn = words[rng.integers(len(words), size=len(chosen))]
      ids[chosen] = np.where(fate < 0.8, mask_id, np.where(fate < 0.9, drawn, ids[chosen]))
    return {**example, key: ids, labels: target}

  return run


def _lengths(total: int, parts: int, rng: Any) -> np.ndarray:
  """`total` as a random sum of `parts` positive numbers, all such sums alike."""
  if parts == 1:
    return np.array([total])
  ends = np.sort(rng.permutation(total - 1)[: parts - 1]) + 1
  return np.diff(ends, prepend=0, append=total)


def span_mask(
  inputs: int,
  targets: int,
  sentinel: int,
  ratio: float = 0.15,
  mean_span: float = 3.0,
  pad: int = 0,
  eos: int = 1,
  key: str = "text",
):
  """Spans of tokens become sentinels: int32 `inputs` [inputs] and `targets` [targets].

  Span corruption, T5, Raffel et al. 2019 (arXiv:1910.10683), Sec. 3.1.4, by the definition of
  seqio: of n tokens m = round(ratio * n) are hidden, in round(m / mean_span) spans; the lengths of
  the spans, and of what stays between them, are drawn. It begins with a part that stays and ends
  with one that is hidden. In the inputs span i is the token sentinel - i, the targets are each
  span after its sentinel; both end with end-of-text. `text` stays as it was.

  Args:
    inputs, targets: lengths, padded.
    sentinel: id of the first one; T5 takes the highest ids of the vocabulary, downwards.
    ratio: of hidden tokens, between 0 and 1.
    mean_span: tokens.
    pad, eos: ids; padding and one end-of-text at the end of the text are not among its n tokens.
    key: of the tokens, integers [length].

  Raises:
    UserError: numbers out of range, or a text that needs longer inputs or targets.
    BadExample: "text too short" for less than two tokens.
  """
  op = "span_mask"
  for name, value in (("inputs", inputs), ("targets", targets), ("sentinel", sentinel)):
    whole_number(value, f"op {op}: {name}")
  whole_number(pad, f"op {op}: pad", 0)
  whole_number(eos, f"op {op}: eos", 0)
  _ratio(op, ratio)
  if isinstance(mean_span, bool) or not isinstance(mean_span, (int, float)) or mean_span < 1:
    raise UserError(f"op {op}: mean_span = {mean_span!r}; expected a number >= 1")
  longest = {"inputs": inputs, "targets": targets}

  def fitted(name: str, ids: list[int], n: int) -> np.ndarray:
    length = longest[name]
    if len(ids) > length:
      raise UserError(
        f"op {op}: {name} = {length}; a text of {n} tokens makes {len(ids)}: tokenize to fewer"
      )
    return np.array(ids + [pad] * (length - len(ids)), np.int32)

  def run(example, rng):
    ids = without_padding(np.asarray(example[key]), pad)
    ids = ids[:-1] if len(ids) and ids[-1] == eos else ids
    n = len(ids)
    if n < 2:
      raise BadExample("text too short", f"{key} has {n} tokens")
    hidden = min(max(round(ratio * n), 1), n - 1)
    spans = min(max(round(hidden / mean_span), 1), hidden, n - hidden)
    lengths = np.stack([_lengths(n - hidden, spans, rng), _lengths(hidden, spans, rng)], 1)
    parts = np.split(ids, np.cumsum(lengths)[:-1])  # one that stays, one that is hidden, ...
    source, target = [], []
    for i in range(spans):
      source += [*parts[2 * i].tolist(), sentinel - i]
      target += [sentinel - i, *parts[2 * i + 1].tolist()]
    return {
      **example,
      "inputs": fitted("inputs", source + [eos], n),
      "targets": fitted("targets", target + [eos], n),
    }

  return run
