"""Which example stands where: pure functions of (seed, position), vectorised, without state.

A stream of one source is its examples shuffled anew every epoch. A mixture interleaves such streams
by a fixed pattern, so that where it stands in each of them is known for any position.
"""

import functools
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

ROUNDS = 6
BLOCK = 1024
"""Positions that are computed at once: for a few of them NumPy's calls take nearly as long."""
KEPT_BLOCKS = 64
PERIOD = 1 << 16
"""Positions after which a pattern of fractional weights repeats: shares are exact to 1 / PERIOD."""


def _mixed(x: np.ndarray) -> np.ndarray:
  """Scrambles uint64: the finaliser of SplitMix64 (Steele et al. 2014, doi:10.1145/2714064)."""
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def permuted(index: np.ndarray, n: int, key: np.ndarray) -> np.ndarray:
  """A random permutation of 0 to n-1, evaluated at `index`; another one for every `key`.

  A Feistel network (Luby & Rackoff 1988) on the next power of 4, which is walked until the value is
  below n (Black & Rogaway 2002, "cycle walking"): 1 to 4 steps, no table. At least 8 bits are used:
  on fewer, some permutations come up more often than others.

  Args:
    index: int64 [k], 0 <= index < n.
    n: size of the set.
    key: uint64 [k].
  """
  half = np.uint64(max(4, (int(n - 1).bit_length() + 1) // 2))
  mask = np.uint64((1 << int(half)) - 1)
  out = index.astype(np.uint64)
  todo = np.arange(len(out))
  # An odd multiplier of the round keeps the keys of all (key, round) apart.
  keys = [_mixed(key + np.uint64(r * 0x9E3779B97F4A7C15 % 2**64)) for r in range(1, ROUNDS + 1)]
  while len(todo):
    x = out[todo]
    left, right = x >> half, x & mask
    for round_key in keys:
      left, right = right, left ^ (_mixed(right ^ round_key[todo]) & mask)
    out[todo] = left << half | right
    todo = todo[out[todo] >= np.uint64(n)]
  return out.astype(np.int64)


def key_of(seed: int, name: str) -> int:
  """64 bits for a seed below 2^32 and a name; the seed itself where the name is empty."""
  return seed + (zlib.crc32(name.encode()) << 32)


class Order:
  """Position in the stream -> part of the mixture and example of its source.

  Weights that are whole numbers with a sum W below `PERIOD` make a pattern of W positions: each
  part has exactly its weight's share in every W positions, thus in every batch that W divides.
  Other weights are shares, exact to 1 / `PERIOD`. Within a pattern the parts lie evenly spread.

  Args:
    sizes: part -> number of its examples.
    weights: part -> weight > 0.
    seed: 0 to 2^32 - 1.
    shuffle: or in the source's own order.
    name: of this stream among several of one run, which must not be in step.
  """

  def __init__(
    self,
    sizes: Mapping[str, int],
    weights: Mapping[str, float],
    *,
    seed: int,
    shuffle: bool = True,
    name: str = "",
  ):
    self.names = list(sizes)
    self.sizes = np.array([sizes[p] for p in self.names], np.int64)
    self.keys = np.array([key_of(seed, name + p) for p in self.names], np.uint64)
    self.shuffle = shuffle
    self._block = functools.lru_cache(KEPT_BLOCKS)(self._compute)
    self.pattern, self.counts = _pattern([weights[p] for p in self.names])
    self.rank = np.zeros(len(self.pattern), np.int64)  # of this position within its part
    for p, count in enumerate(self.counts):
      self.rank[self.pattern == p] = np.arange(count)

  def __call__(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int64 [k] positions -> part numbers [k], and indices [k] into the parts' sources."""
    block, inside = np.divmod(np.asarray(at, np.int64), BLOCK)
    out = np.empty((2, len(inside)), np.int64)
    for b in np.unique(block):
      here = block == b
      out[:, here] = self._block(int(b))[:, inside[here]]
    return out[0], out[1]

  def _compute(self, block: int) -> np.ndarray:
    """The same for all positions of a block, [2, BLOCK]."""
    period, phase = np.divmod(block * BLOCK + np.arange(BLOCK), len(self.pattern))
    part = self.pattern[phase]
    epoch, index = np.divmod(period * self.counts[part] + self.rank[phase], self.sizes[part])
    if self.shuffle:
      key = _mixed(self.keys[part] ^ _mixed(epoch.astype(np.uint64)))
      for p in np.unique(part):
        mine = part == p
        index[mine] = permuted(index[mine], int(self.sizes[p]), key[mine])
    return np.stack([part, index])

  def examples(self, position: int) -> dict[str, int]:
    """Part -> how many of its examples lie before this position."""
    period, phase = divmod(position, len(self.pattern))
    rest = np.bincount(self.pattern[:phase], minlength=len(self.names))
    return {p: int(period * c + r) for p, c, r in zip(self.names, self.counts, rest)}


def _pattern(weights: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
  """Part of each position of a period, and how many positions each part has there."""
  weights = np.asarray(weights)
  total = weights.sum()
  if (weights == np.round(weights)).all() and total <= PERIOD:
    counts = (weights / np.gcd.reduce(weights.astype(np.int64))).astype(np.int64)
  else:
    counts = np.maximum(1, np.round(weights / total * PERIOD)).astype(np.int64)
  part = np.repeat(np.arange(len(weights)), counts)
  # The j-th of a part's c positions lies at (j + 1/2) / c of the period.
  due = np.concatenate([(np.arange(c) + 0.5) / c for c in counts])
  return part[np.argsort(due, kind="stable")], counts
