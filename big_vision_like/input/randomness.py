"""The random numbers of an example: by (key, index) alone, so that resuming needs no state."""

from typing import Any

import numpy as np


def generator(key: int, index: int) -> np.random.Generator:
  """Another stream for every `key` (a seed or a split) and every index of an example."""
  # Python's int: NumPy's 64 bits would lose the index in the shift.
  return np.random.Generator(np.random.Philox(key=key, counter=int(index) << 64))


class LazyGenerator:
  """`generator(key, index)`, made when it is first asked for a number.

  Making one takes as long as reading a small record, and many examples never draw.
  """

  def __init__(self, key: int, index: int):
    self._of = key, index

  def __getattr__(self, name: str) -> Any:
    if name == "_made":
      self._made = generator(*self._of)
      return self._made
    value = getattr(self._made, name)
    setattr(self, name, value)  # the next time Python finds it without coming here
    return value
