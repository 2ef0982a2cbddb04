"""The random numbers of an example: by (key, index) alone, so that resuming needs no state."""

import numpy as np


def generator(key: int, index: int) -> np.random.Generator:
  """Another stream for every `key` (a seed or a split) and every index of an example."""
  # Python's int: NumPy's 64 bits would lose the index in the shift.
  return np.random.Generator(np.random.Philox(key=key, counter=int(index) << 64))
