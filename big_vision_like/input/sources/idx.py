"""The IDX format of MNIST and its kin (Fashion-MNIST, KMNIST), plain or gzipped."""

import functools
import gzip
import pathlib
from typing import Any

import numpy as np

from big_vision_like.config import UserError


@functools.cache
def _read(path: str) -> np.ndarray:
  """uint8 array: two zero bytes, type 8, number of dimensions, big-endian sizes, then the data."""
  file = pathlib.Path(path).expanduser()
  try:
    data = file.read_bytes()
    data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
  except (OSError, EOFError) as e:
    raise UserError(f"source idx: {path}: {getattr(e, 'strerror', None) or e}") from None
  if data[:3] != b"\x00\x00\x08" or len(data) < 4 * (1 + data[3]):
    raise UserError(f"source idx: {path} is not an IDX file of bytes (first: {data[:4].hex()})")
  shape = tuple(np.frombuffer(data, ">u4", count=data[3], offset=4).tolist())
  values = np.frombuffer(data, np.uint8, offset=4 * (1 + data[3]))
  if values.size != np.prod(shape, dtype=int):
    raise UserError(f"source idx: {path} holds {values.size} bytes, its head says {shape}")
  return values.reshape(shape)


class _Idx:
  def __init__(self, images: np.ndarray, labels: np.ndarray):
    self.images, self.labels = images, labels

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return {"image": self.images[index][..., None], "label": int(self.labels[index])}


def idx(images: str, labels: str, start: int = 0, stop: int | None = None) -> _Idx:
  """image uint8 [H, W, 1] and label of two IDX files, examples start to stop."""
  x, y = _read(str(images)), _read(str(labels))
  if x.ndim != 3 or y.shape != x.shape[:1]:
    raise UserError(
      f"source idx: {images} {x.shape} and {labels} {y.shape}; expected [N, H, W] and [N]"
    )
  end = len(y) if stop is None else stop
  if not 0 <= start < end <= len(y):
    raise UserError(f"source idx: start = {start}, stop = {stop}; {images} has {len(y)} examples")
  return _Idx(x[start:end], y[start:end])
