"""Preprocessing as a string: `"decode|resize(224)|value_range(-1, 1)|tokenize(64)"`.

Each public function of the files here is an op: called with its arguments it returns
`(example, rng) -> example`. `rng` is a NumPy generator that belongs to the example alone.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from big_vision_like.config import call, modules, parse_spec, unknown
from big_vision_like.input.sources import functions

Example = dict[str, Any]
Op = Callable[[Example, np.random.Generator], Example]
MODULES = modules(__name__, __path__)


class Ops:
  """Ops, one after the other; an exception carries the name of the one it came from."""

  def __init__(self, named: list[tuple[str, Op]]):
    self.names = [name for name, _ in named]
    self._steps = [op for _, op in named]
    self.watch: Callable[[int], None] | None = None  # is told the number of the op that starts

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """`example` after all of them; `rng` may be a stand-in for a generator."""
    for i, op in enumerate(self._steps):
      if self.watch:
        self.watch(i)
      try:
        example = op(example, rng)
      except Exception as e:
        e.add_note(f"in op {self.names[i]}")
        raise
    return example


def build(spec: str, where: str = "config.input.pp") -> Ops:
  """The ops of `spec`.

  Raises:
    UserError: an unknown op, or arguments it does not take.
  """
  known = functions(MODULES)
  named: list[tuple[str, Op]] = []
  for name, args, kwargs in parse_spec(spec, where):
    if name not in known:
      raise unknown(f"{where}: op", name, list(known))
    named.append((name, call(known[name], kwargs, f"{where}: {name}", *args)))
  return Ops(named)
