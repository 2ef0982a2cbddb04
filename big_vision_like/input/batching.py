"""Examples -> arrays with a batch dimension. Every number is copied once, into its place."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from big_vision_like.config import UserError

Batch = dict[str, np.ndarray]
Example = dict[str, Any]

NARROW = {"int64": np.int32, "float64": np.float32}
"""What becomes of 64 bits, which are not jax's default."""


def stack(rows: list[Example], ops_at: str) -> Batch:
  """Examples of equal keys, shapes and dtypes -> a batch.

  Numbers of 64 bits become those of 32; positions past 2^31 wrap. Texts, bytes and lists make
  arrays of objects: NumPy's own strings would drop zeros at their end. `ops_at`: where the ops
  stand, for the message.

  Raises:
    UserError: keys, shapes or dtypes that differ.
  """
  _check_keys(rows, ops_at)
  out = _room(rows[0], len(rows))
  _write(out, 0, rows, ops_at)
  return out


class Assembly:
  """Batches of `size` rows that threads fill: each chunk of rows goes to its place at once."""

  def __init__(self, size: int, ops_at: str):
    self.size, self.ops_at = size, ops_at
    self._batches: dict[int, Batch] = {}
    self._lock = threading.Lock()

  def put(self, batch: int, start: int, rows: list[Example]) -> None:
    """Rows `start`, `start + 1`, ... of a batch. Raises as `stack` does."""
    _check_keys(rows, self.ops_at)
    with self._lock:  # who comes first makes room for all
      if batch not in self._batches:
        self._batches[batch] = _room(rows[0], self.size)
      out = self._batches[batch]
    _check_keys([out, rows[0]], self.ops_at)
    _write(out, start, rows, self.ops_at)

  def take(self, batch: int) -> Batch:
    """The whole batch, which is then forgotten here."""
    return self._batches.pop(batch)


def joined(parts: list[Batch], ops_at: str) -> Batch:
  """Parts of a batch -> the batch; raises as `stack` does."""
  if len(parts) == 1:
    return parts[0]
  _check_keys(parts, ops_at)
  out = {}
  for key in parts[0]:
    _check_alike(key, [p[key][0] for p in parts if p[key].dtype != object], ops_at)
    out[key] = np.concatenate([p[key] for p in parts])
  return out


def _array(value: Any) -> np.ndarray:
  if not isinstance(value, (str, bytes, list)):
    return np.asarray(value)
  out = np.empty((), object)
  out[()] = value
  return out


def _narrow(dtype: np.dtype) -> np.dtype:
  return NARROW.get(dtype.name, dtype)


def _room(example: Example, size: int) -> Batch:
  """Arrays, not yet filled, for `size` examples like this one."""
  arrays = {key: _array(value) for key, value in example.items() if key != "index"}
  out = {key: np.empty((size, *x.shape), _narrow(x.dtype)) for key, x in arrays.items()}
  return out | ({"index": np.empty(size, np.int32)} if "index" in example else {})


def _write(out: Batch, start: int, rows: list[Example], ops_at: str) -> None:
  for key, column in out.items():
    here = column[start : start + len(rows)]
    if key == "index":
      here[:] = [row[key] & 0x7FFF_FFFF for row in rows]
      continue
    arrays = [_array(row[key]) for row in rows]
    _check_alike(key, arrays, ops_at)
    if (column.shape[1:], column.dtype) != (arrays[0].shape, _narrow(arrays[0].dtype)):
      raise _differ(key, np.empty(column.shape[1:], column.dtype), arrays[0], ops_at)
    for i, array in enumerate(arrays):
      here[i, ...] = array  # converts and copies


def _check_keys(rows: Sequence[Mapping[str, Any]], ops_at: str) -> None:
  for row in rows:
    if row.keys() != rows[0].keys():
      a, b = (", ".join(sorted(r.keys() - {"index"})) for r in (rows[0], row))
      raise UserError(f"{ops_at}: examples of keys {a} and of keys {b} in one batch; end with keep")


def _check_alike(key: str, arrays: list[np.ndarray], ops_at: str) -> None:
  for array in arrays:
    if array.shape != arrays[0].shape or array.dtype != arrays[0].dtype:
      raise _differ(key, arrays[0], array, ops_at)


def _differ(key: str, a: np.ndarray, b: np.ndarray, ops_at: str) -> UserError:
  a, b = (f"{x.dtype}{x.shape}" for x in (a, b))
  return UserError(f"{ops_at}: {key} is {a} and {b} in one batch; resize, crop or pad it")
