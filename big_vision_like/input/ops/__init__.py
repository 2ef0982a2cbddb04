"""Preprocessing as a string: `"decode|resize(224)|value_range(-1, 1)|tokenize(64)"`.

Each public function of the files here is an op: called with its arguments it returns
`(example, rng) -> example`. `rng` is a NumPy generator that belongs to the example alone.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from big_vision_like.config import call, parse_spec, unknown
from big_vision_like.input.ops import image, keys, text
from big_vision_like.input.sources import functions

Example = dict[str, Any]
Op = Callable[[Example, np.random.Generator], Example]
MODULES = (image, keys, text)


def build(spec: str, where: str = "config.input.pp") -> Op:
  """The ops of `spec`, one after the other.

  Raises:
    UserError: an unknown op, or arguments it does not take.
  """
  known = functions(MODULES)
  ops: list[tuple[str, Op]] = []
  for name, args, kwargs in parse_spec(spec, where):
    if name not in known:
      raise unknown(f"{where}: op", name, list(known))
    ops.append((name, call(known[name], kwargs, f"{where}: {name}", *args)))

  def run(example: Example, rng: np.random.Generator) -> Example:
    for name, op in ops:
      try:
        example = op(example, rng)
      except Exception as e:
        e.add_note(f"in op {name}")
        raise
    return example

  return run
