"""Ops made of other ops, of which chance decides."""

import numpy as np

from big_vision_like.config import UserError


def _built(spec: str, where: str):
  from big_vision_like.input import ops  # it imports this file

  return ops.build(spec, where)


def choice(*specs: str, weights: tuple[float, ...] | None = None):
  """One of several op strings, drawn for each example: `choice('flip_lr|blur', 'solarize', '')`.

  The empty string leaves the example as it is. Nothing is drawn where there is no choice.

  Args:
    specs: op strings, quoted.
    weights: one for each, above or equal to 0; drawn in proportion to them. None: all alike.

  Raises:
    UserError: no op strings, weights of another number or sum 0, or what `ops.build` raises.
  """
  if not specs:
    raise UserError("op choice: no op strings; write choice('flip_lr', 'blur|solarize')")
  weights = (1,) * len(specs) if weights is None else weights
  numbers = isinstance(weights, (tuple, list)) and all(
    isinstance(w, (int, float)) and 0 <= w < np.inf for w in weights
  )
  if not numbers or len(weights) != len(specs) or not sum(weights):
    raise UserError(
      f"op choice: weights = {weights!r}; expected {len(specs)} numbers >= 0, not all of them 0"
    )
  built = [_built(s, f"op choice: string {i}") for i, s in enumerate(specs, 1)]
  built = [b for b, w in zip(built, weights) if w]
  upto = np.cumsum([w for w in weights if w])

  def run(example, rng):
    if len(built) == 1:
      return built[0](example, rng)
    drawn = np.searchsorted(upto, rng.random() * upto[-1], side="right")
    return built[min(int(drawn), len(built) - 1)](example, rng)

  return run


def maybe(p: float, spec: str):
  """An op string with probability `p`, else the example as it is: `maybe(0.5, 'blur|flip_lr')`.

  Args:
    p: 0 to 1; at either end nothing is drawn.
    spec: op string, quoted.

  Raises:
    UserError: another p, or what `ops.build` raises.
  """
  if isinstance(p, bool) or not isinstance(p, (int, float)) or not 0 <= p <= 1:
    raise UserError(f"op maybe: p = {p!r}; expected a number from 0 to 1")
  built = _built(spec, "op maybe")
  return lambda example, rng: (
    built(example, rng) if p == 1 or (p > 0 and rng.random() < p) else example
  )
