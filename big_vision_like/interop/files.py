"""Flat `{path: array}` as safetensors or npz, written whole or not at all, equal to the bit."""

import pathlib
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from big_vision_like.config import UserError

_BF16 = ".bfloat16"  # npz has no bfloat16: stored as its 16 bits under a marked name


def save_safetensors(path: str | pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
  """One safetensors file; names keep their slashes."""
  from safetensors.numpy import save

  whole = {k: np.ascontiguousarray(v).reshape(np.shape(v)) for k, v in arrays.items()}
  _write(path, save(whole, metadata={"format": "big_vision_like"}))


def load_safetensors(path: str | pathlib.Path) -> dict[str, np.ndarray]:
  """Raises `UserError` where the file is missing or is not safetensors."""
  from safetensors import SafetensorError, safe_open

  try:
    with safe_open(path, "flax") as file:  # the NumPy flavour does not know bfloat16
      return {k: np.asarray(file.get_tensor(k)) for k in file.keys()}  # noqa: SIM118
  except (OSError, SafetensorError) as e:
    raise UserError(f"{path} cannot be read as safetensors: {e}") from None


def save_npz(path: str | pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
  """One npz file; names keep their slashes, as in big_vision."""
  import io

  out = io.BytesIO()
  plain = {}
  for name, value in arrays.items():
    value = np.asarray(value)
    is_bf16 = value.dtype == ml_dtypes.bfloat16
    plain[name + _BF16 * is_bf16] = value.view(np.uint16) if is_bf16 else value
  np.savez(out, **plain)
  _write(path, out.getvalue())


def load_npz(path: str | pathlib.Path) -> dict[str, np.ndarray]:
  """Never unpickles. Raises `UserError` where the file is missing or holds Python objects."""
  try:
    with np.load(path, allow_pickle=False) as file:
      raw = {k: file[k] for k in file.files}
  except (OSError, ValueError) as e:
    raise UserError(f"{path} cannot be read as npz: {e}") from None
  return {
    k.removesuffix(_BF16): v.view(ml_dtypes.bfloat16) if k.endswith(_BF16) else v
    for k, v in raw.items()
  }


def _write(path: str | pathlib.Path, data: bytes) -> None:
  path = pathlib.Path(path)
  part = path.with_name(path.name + ".part")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(data)
    part.replace(path)
  except OSError as e:
    part.unlink(missing_ok=True)
    raise UserError(f"{path} cannot be written: {e.strerror}") from None
