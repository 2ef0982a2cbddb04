"""Flat `{path: array}` as safetensors or npz, written whole or not at all, equal to the bit."""

import io
import pathlib
import zipfile
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from big_vision_like.config import UserError

_BF16 = ".bfloat16"  # npz has no bfloat16: stored as its 16 bits under a marked name

_SAFETENSORS = {  # the format's names; its own NumPy reader lacks the last three
  **{f"F{n}": np.dtype(f"f{n // 8}") for n in (16, 32, 64)},
  **{f"I{n}": np.dtype(f"i{n // 8}") for n in (8, 16, 32, 64)},
  **{f"U{n}": np.dtype(f"u{n // 8}") for n in (8, 16, 32, 64)},
  "BOOL": np.dtype(bool),
  "C64": np.dtype(np.complex64),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
  "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}


def save_safetensors(path: str | pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
  """One safetensors file; names keep their slashes."""
  from safetensors.numpy import save

  whole = {k: np.ascontiguousarray(v).reshape(np.shape(v)) for k, v in arrays.items()}
  write(path, save(whole, metadata={"format": "big_vision_like"}))


def load_safetensors(path: str | pathlib.Path) -> dict[str, np.ndarray]:
  """Raises `UserError` where the file is missing, not safetensors, or of a type NumPy lacks."""
  from safetensors import SafetensorError, deserialize

  try:
    found = deserialize(pathlib.Path(path).read_bytes())
  except (OSError, SafetensorError) as e:
    raise UserError(f"{path} cannot be read as safetensors: {e}") from None
  for name, raw in found:
    if raw["dtype"] not in _SAFETENSORS:
      raise UserError(f"{path}: {name} is {raw['dtype']}; known: {', '.join(_SAFETENSORS)}")
  return {
    name: np.frombuffer(raw["data"], _SAFETENSORS[raw["dtype"]]).reshape(raw["shape"])
    for name, raw in found
  }


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


def write(path: str | pathlib.Path, data: bytes) -> None:
  """The whole file or none. Raises `UserError` where it cannot be written."""
  path = pathlib.Path(path)
  part = path.with_name(path.name + ".part")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(data)
    part.replace(path)
  except OSError as e:
    part.unlink(missing_ok=True)
    raise UserError(f"{path} cannot be written: {e.strerror}") from None
