"""Weights and inputs from the tensor's name alone, so that no weight is stored."""

import hashlib
import math

import numpy as np


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """float32, the same wherever it is made: drawn by the name, scaled by the kind of tensor."""
  key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
  x = np.random.Generator(np.random.Philox(key)).standard_normal(shape, np.float32)
  if name.endswith("running_var"):
    return 1 + 0.5 * np.abs(x)
  if len(shape) >= 2:
    return x / np.float32(math.sqrt(math.prod(shape[1:])))
  return np.asarray(x * np.float32(0.2) + np.float32(name.endswith("weight")))


def image(*shape: int) -> np.ndarray:
  """Pixels, about -1 to 1."""
  return tensor("input/image", shape) * np.float32(math.sqrt(math.prod(shape[1:])) / 2)


def tokens(batch: int, length: int, vocab: int, end: int | None = None) -> np.ndarray:
  """int32 [batch, length]; with `end` every row ends with that token."""
  out = (np.abs(tensor("input/tokens", (batch, length))) * 1e4).astype(np.int32) % (vocab - 1)
  if end is not None:
    out[:, -1] = end
  return out
