"""Flat `{path: array}` as safetensors or npz, written whole or not at all, equal to the bit."""

import io
import json
import math
import mmap
import operator
import pathlib
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from big_vision_like.config import UserError

_BF16 = ".bfloat16"  # npz has no bfloat16: stored as its 16 bits under a marked name

_SAFETENSORS = {  # the format's names; not all of them are NumPy's own
  **{f"F{n}": np.dtype(f"f{n // 8}") for n in (16, 32, 64)},
  **{f"I{n}": np.dtype(f"i{n // 8}") for n in (8, 16, 32, 64)},
  **{f"U{n}": np.dtype(f"u{n // 8}") for n in (8, 16, 32, 64)},
  "BOOL": np.dtype(bool),
  "C64": np.dtype(np.complex64),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
  "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}


def save_safetensors(
  path: str | pathlib.Path,
  arrays: Mapping[str, np.ndarray],
  metadata: Mapping[str, str] | None = None,
) -> None:
  """One safetensors file, written array by array; names keep their slashes.

  Args:
    path: of the file.
    arrays: one at a time is looked at, so a mapping may make them when asked.
    metadata: of the header; `{"format": "big_vision_like"}` by default.

  Raises:
    UserError: a type that the format lacks, or no room to write.
  """
  names = {dtype: name for name, dtype in _SAFETENSORS.items()}
  header: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "big_vision_like"})}
  # Wide types first, so that every array begins at a multiple of its item size.
  order = sorted(arrays, key=lambda k: (-arrays[k].dtype.itemsize, k))
  end = 0
  for key in order:
    x = arrays[key]
    if x.dtype not in names:
      raise UserError(f"{path}: safetensors cannot hold {key} of type {x.dtype}")
    start, end = end, end + x.size * x.dtype.itemsize
    header[key] = {"dtype": names[x.dtype], "shape": list(x.shape), "data_offsets": [start, end]}
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)

  def parts() -> Iterator[Any]:
    yield struct.pack("<Q", len(text)) + text
    for key in order:
      yield np.ascontiguousarray(arrays[key]).reshape(-1).view(np.uint8).data

  write(path, parts())


def _entry(dtype: str, shape: Sequence[int], data_offsets: Sequence[int]) -> tuple[Any, ...]:
  """One tensor of a header: its type, its shape, its first byte and the one after its last."""
  start, end = map(operator.index, data_offsets)
  return dtype, tuple(map(operator.index, shape)), start, end


def load_safetensors(path: str | pathlib.Path) -> dict[str, np.ndarray]:
  """The arrays of a file that is mapped into memory: bytes are read where somebody looks at them.

  Nothing is copied, so the arrays are read-only and the file must stay as it is.

  Raises:
    UserError: the file is missing, not whole, not safetensors, or of a type NumPy lacks.
  """
  try:
    with open(path, "rb") as f:
      data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
    [length] = struct.unpack_from("<Q", data)
    if length > len(data) - 8:
      raise ValueError(f"its header ends at byte {8 + length} of {len(data)}")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    found = {name: _entry(**v) for name, v in header.items()}
  except (OSError, ValueError, TypeError, AttributeError, struct.error) as e:
    raise UserError(f"{path} cannot be read as safetensors: {e}") from None
  out = {}
  for name, (kind, shape, start, end) in found.items():
    if kind not in _SAFETENSORS:
      raise UserError(f"{path}: {name} is {kind}; known: {', '.join(_SAFETENSORS)}")
    dtype = _SAFETENSORS[kind]
    if not 0 <= start <= end <= len(data) - 8 - length:
      raise UserError(f"{path} cannot be read as safetensors: {name} ends after the file")
    if math.prod(shape) * dtype.itemsize != end - start or min(shape, default=0) < 0:
      raise UserError(f"{path} cannot be read as safetensors: {name} {shape} in {end - start} B")
    out[name] = np.ndarray(shape, dtype, data, 8 + length + start)
  return out


def pickled(path: str | pathlib.Path) -> UserError:
  """What to say of a file that only unpickling could read."""
  return UserError(
    f"{path} is a pickle, which can run any code; where you trust it, save it anew: "
    "AutoModel.from_pretrained(DIR).save_pretrained(OUT), or safetensors.torch.save_file"
  )


def save_npz(path: str | pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
  """One npz file; names keep their slashes, as in big_vision.

  Raises:
    UserError: a type that npz would store as bytes without a name (float8), or no room to write.
  """
  out = io.BytesIO()
  plain = {}
  for name, value in arrays.items():
    value = np.asarray(value)
    is_bf16 = value.dtype == ml_dtypes.bfloat16
    if value.dtype.kind in "VO" and not is_bf16:
      raise UserError(f"{path}: npz cannot hold {name} of type {value.dtype}; use safetensors")
    plain[name + _BF16 * is_bf16] = value.view(np.uint16) if is_bf16 else value
  np.savez(out, **plain)
  write(path, out.getvalue())


def load_npz(path: str | pathlib.Path) -> dict[str, np.ndarray]:
  """Never unpickles. Raises `UserError` where the file is missing or holds Python objects."""
  try:
    data = io.BytesIO(pathlib.Path(path).read_bytes())
    with np.load(data, allow_pickle=False) as file:
      raw = {k: file[k] for k in file.files}
  except (OSError, ValueError, EOFError, zipfile.BadZipFile) as e:
    raise UserError(f"{path} cannot be read as npz: {e}") from None
  return {
    k.removesuffix(_BF16): v.view(ml_dtypes.bfloat16) if k.endswith(_BF16) else v
    for k, v in raw.items()
  }


def write_json(path: str | pathlib.Path, value: Mapping[str, Any]) -> None:
  """Indented JSON. Raises `UserError` where it cannot be written."""
  write(path, json.dumps(dict(value), indent=2).encode())


def write(path: str | pathlib.Path, data: bytes | Iterable[Any]) -> None:
  """The whole file or none; `data` may come in parts. Raises `UserError` where it cannot be."""
  path = pathlib.Path(path)
  part = path.with_name(path.name + ".part")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(data, bytes):
      part.write_bytes(data)
    else:
      with part.open("wb") as f:
        for piece in data:
          f.write(piece)
    part.replace(path)
  except OSError as e:
    part.unlink(missing_ok=True)
    raise UserError(f"{path} cannot be written: {e.strerror}") from None
