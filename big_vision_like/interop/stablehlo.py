"""A function with its parameters baked in, as portable StableHLO (`jax.export`)."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax

from big_vision_like.config import UserError
from big_vision_like.interop import files

PLATFORMS = ("cpu", "cuda", "tpu")


def save(
  path: str | pathlib.Path,
  fn: Callable[[Mapping[str, jax.Array]], Any],
  batch: Mapping[str, jax.ShapeDtypeStruct],
) -> bool:
  """`fn(batch)` for every batch size, or for that of `batch` where `fn` must know the number.

  Returns:
    Whether the first axis was left open. A reshape to `B // 2` rows, say, needs the number.
  """
  [size] = jax.export.symbolic_shape("B")
  open_batch = {k: jax.ShapeDtypeStruct((size, *v.shape[1:]), v.dtype) for k, v in batch.items()}
  export = jax.export.export(jax.jit(fn), platforms=PLATFORMS)
  try:
    exported, is_open = export(open_batch), True
  except (jax.errors.InconclusiveDimensionOperation, TypeError, ValueError, NotImplementedError):
    # The many ways in which a symbol cannot be a number; an error of `fn` itself comes again here.
    exported, is_open = export(dict(batch)), False
  files.write(path, bytes(exported.serialize()))
  return is_open


def load(path: str | pathlib.Path) -> Callable[[Mapping[str, jax.Array]], Any]:
  """The function again. Raises `UserError` where the file is missing or damaged."""
  try:
    return jax.export.deserialize(bytearray(pathlib.Path(path).read_bytes())).call
  except Exception as e:  # the reader trusts its bytes: damage shows as whatever it trips over
    raise UserError(f"{path} cannot be read as an exported function: {e}") from None
