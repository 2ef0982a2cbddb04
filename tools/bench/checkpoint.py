"""Saving while training: how long the loop stands still, and how long till the step is on disk.

    save/blocked   seconds in `Checkpointer.save` / seconds of a memcpy of the state
    save/total     seconds till the step is verified and committed / seconds of a plain write of the
                   same bytes with fsync

The copy goes into memory that is already there, the plain write is renamed over the one before it,
as a careful program would. Files lie in the folder for temporary ones: set TMPDIR to measure
another disk.
"""

import os
import pathlib
import tempfile
from collections.abc import Iterator

import jax
import numpy as np

from big_vision_like.checkpoint import Checkpointer
from tools.bench.harness import Options, Row, Spread, Target, alternate

LAYERS, WIDTH = 32, 1024  # 512 MiB
SMOKE_LAYERS, SMOKE_WIDTH = 2, 64
BLOCKED = Target("13", 1.1, 0.5, at_most=True)
TOTAL = Target("13", 1.4, 1.1, at_most=True)


def rows(options: Options) -> Iterator[Row]:
  """All rows of the suite."""
  wanted = [name for name in ("save/blocked", "save/total") if options.wants(name)]
  if not wanted:
    return
  state = _state(*(SMOKE_LAYERS, SMOKE_WIDTH) if options.smoke else (LAYERS, WIDTH))
  arrays = [np.asarray(x) for x in jax.tree.leaves(state)]
  copies = [np.copy(x) for x in arrays]
  blocked: list[float] = []
  with tempfile.TemporaryDirectory() as folder:
    raw = pathlib.Path(folder) / "raw"
    with Checkpointer(pathlib.Path(folder) / "checkpoints", keep_last=1) as saved:

      def copy() -> None:
        for target, array in zip(copies, arrays):
          np.copyto(target, array)

      def write() -> None:
        part = raw.with_suffix(".part")
        with part.open("wb") as f:
          for array in arrays:
            f.write(array.data.cast("B"))
          f.flush()
          os.fsync(f.fileno())
        part.replace(raw)

      def save() -> None:
        began = options.clock()
        saved.save(len(blocked) + 1, state)
        blocked.append(options.clock() - began)
        saved.wait()

      seconds = alternate({"copy": copy, "save": save, "write": write}, options)
  seconds["blocked"] = blocked[-options.repeats :]
  size = {"bytes": sum(x.nbytes for x in arrays), "leaves": len(arrays)}
  if "save/blocked" in wanted:
    yield _row("save/blocked", "of a memcpy", seconds["blocked"], seconds["copy"], BLOCKED, size)
  if "save/total" in wanted:
    yield _row("save/total", "of write + fsync", seconds["save"], seconds["write"], TOTAL, size)


def _state(layers: int, width: int) -> dict[str, dict[str, jax.Array]]:
  """Random f32 kernels [width, 4 width] and biases."""
  keys = jax.random.split(jax.random.key(0), layers)
  layer = jax.jit(
    lambda key: {
      "kernel": jax.random.normal(key, (width, 4 * width)),
      "bias": jax.random.normal(key, (4 * width,)),
    }
  )
  return jax.block_until_ready({f"layer_{i}": layer(key) for i, key in enumerate(keys)})


def _row(
  name: str, what: str, ours: list[float], peer: list[float], target: Target, size: dict[str, int]
) -> Row:
  mine, other = Spread.of(ours), Spread.of(peer)
  pairs = Spread.of([a / b for a, b in zip(ours, peer)])
  return Row(
    name, f"seconds / {what}", mine.median / other.median, mine, other, pairs, target, size
  )
