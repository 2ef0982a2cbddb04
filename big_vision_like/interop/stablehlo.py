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
) -> None:
  """`fn(batch)` for every batch size (the first axis of `batch`'s shapes is left open)."""
  [size] = jax.export.symbolic_shape("B")
  open_batch = {k: jax.ShapeDtypeStruct((size, *v.shape[1:]), v.dtype) for k, v in batch.items()}
  exported = jax.export.export(jax.jit(fn), platforms=PLATFORMS)(open_batch)
  files._write(path, bytes(exported.serialize()))


def load(path: str | pathlib.Path) -> Callable[[Mapping[str, jax.Array]], Any]:
  """The function again. Raises `UserError` where the file is missing or damaged."""
  try:
    return jax.export.deserialize(bytearray(pathlib.Path(path).read_bytes())).call
  except Exception as e:  # the decoder raises whatever the bytes make it trip over
    raise UserError(f"{path} cannot be read as an exported function: {e}") from None
