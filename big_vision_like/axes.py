"""Names of the mesh axes, and the few things every floor does with them.

    replica   pure data parallelism (between slices or nodes)
    fsdp      data parallelism with sharded parameters and optimizer state
    tensor    layers split across devices
    sequence  tokens split across devices

The mesh itself is made in `sharding.py`; code below that floor sees only the ambient mesh
(`jax.set_mesh`) and these names. Without an ambient mesh everything here does nothing, so that
models and losses run unchanged on one device, in tests and in notebooks.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax._src.mesh import get_concrete_mesh  # the public `get_mesh` refuses under jit
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

REPLICA, FSDP, TENSOR, SEQUENCE = "replica", "fsdp", "tensor", "sequence"
ALL = (REPLICA, FSDP, TENSOR, SEQUENCE)
BATCH = (REPLICA, FSDP)  # the batch is split over both


def present(names: str | tuple[str, ...] | None) -> tuple[str, ...]:
  """Those of `names` that the ambient mesh has."""
  names = (names,) if isinstance(names, str) else (names or ())
  mesh = jax.sharding.get_abstract_mesh()
  return () if mesh.empty else tuple(n for n in names if n in mesh.axis_names)


def size(names: str | tuple[str, ...]) -> int:
  """Product of the sizes of those axes of the ambient mesh; 1 without a mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  return int(np.prod([mesh.shape[n] for n in present(names)], dtype=int))


def platform() -> str:
  """cpu, gpu or tpu: that of the ambient mesh, which may be a pod that is not here, or of jax."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform


def ring(names: tuple[str, ...]) -> list[int]:
  """The positions along `names` in the order of a ring: who sends to whom in a `ppermute`.

  Neighbours of the torus where the ambient mesh has devices with coordinates, else 0, 1, 2, ... All
  orders are right. But only between neighbours XLA:TPU sends while it computes, and along an axis
  of the mesh that takes more than one dimension of the torus, i and i + 1 may be far apart.
  """
  mesh, count = get_concrete_mesh(), size(names)
  here = not mesh.empty and mesh.shape == jax.sharding.get_abstract_mesh().shape
  if not here or not hasattr(mesh.devices.flat[0], "coords"):
    return list(range(count))
  rest = [n for n in mesh.axis_names if n not in names]
  order = [mesh.axis_names.index(n) for n in (*names, *rest)]
  devices = mesh.devices.transpose(order).reshape(count, -1)[:, 0]
  return neighbours([d.coords for d in devices])


def neighbours(coords: Sequence[Sequence[int]]) -> list[int]:
  """An order of chips in which each is next to the one before, and the last to the first.

  Chips that do not fill a box, or are odd in number, so that there is no such way, or lie on one
  line, keep their order.

  Args:
    coords: of the chips, such as (x, y, z).

  Returns:
    Indices into `coords`.
  """
  values = [sorted(set(axis)) for axis in zip(*coords)]
  sizes = sorted((len(v) for v in values if len(v) > 1), reverse=True)
  same = list(range(len(coords)))
  if math.prod(sizes) != len(coords) or len(coords) % 2 or len(sizes) < 2:
    return same
  # An axis of even size goes first; the others are one long path, in serpentines.
  dims = sorted((i for i, v in enumerate(values) if len(v) > 1), key=lambda i: len(values[i]) % 2)
  first, *rest = dims
  path: list[dict[int, int]] = [{}]
  for dim in rest:
    turns = [values[dim][:: 1 if i % 2 == 0 else -1] for i in range(len(path))]
    path = [cell | {dim: at} for cell, turn in zip(path, turns) for at in turn]
  # To and fro along the path without its first cell, and back through the first cells.
  ring = [{first: values[first][0]} | path[0]]
  for i, at in enumerate(values[first]):
    ring += [{first: at} | cell for cell in path[1:][:: 1 if i % 2 == 0 else -1]]
  ring += [{first: at} | path[0] for at in values[first][:0:-1]]
  where = {tuple(c[d] for d in dims): i for i, c in enumerate(coords)}
  return [where[tuple(cell[d] for d in dims)] for cell in ring]


def ambient(mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> Any:
  """Context in which `mesh` is the ambient mesh; an abstract one is enough to trace and lower."""
  if isinstance(mesh, jax.sharding.AbstractMesh):
    return jax.sharding.use_abstract_mesh(mesh)
  return jax.set_mesh(mesh)


def automatic() -> bool:
  """Whether XLA splits arrays over an ambient mesh here: there is one, of several devices, and this
  is not the inside of a `shard_map`."""
  mesh = jax.sharding.get_abstract_mesh()
  return not (mesh.empty or mesh.size == 1 or mesh._any_axis_manual)


def sequence_shards() -> int:
  """Over how many devices tokens are split here; 1 inside a `shard_map`."""
  return size(SEQUENCE) if automatic() else 1


def partition(shape: tuple[int, ...], *spec: str | tuple[str, ...] | None) -> P:
  """A mesh axis (or tuple of them) or None for each dimension -> a PartitionSpec that fits.

  Missing trailing entries are None. An axis that the ambient mesh lacks, or by whose size the
  dimension does not divide, is left out.
  """
  dims = []
  for dim, names in zip(shape, spec + (None,) * (len(shape) - len(spec)), strict=True):
    names = present(names)
    dims.append(names if names and dim % size(names) == 0 else None)
  return P(*dims)


def constrain(x: jax.Array, *spec: str | tuple[str, ...] | None) -> jax.Array:
  """Constrains the sharding of `x` to `partition(x.shape, *spec)`: advice to XLA, never an error.

  Does nothing without an ambient mesh of several devices.
  """
  if not automatic():
    return x
  return jax.lax.with_sharding_constraint(x, partition(x.shape, *spec))


def constrain_batch(x: jax.Array) -> jax.Array:
  """Splits dimension 0 over the batch axes, dimension 1 of [B, N, D] tokens over `sequence`."""
  return constrain(x, BATCH, SEQUENCE) if x.ndim >= 3 else constrain(x, BATCH)


def of_batch(mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> tuple[str, ...]:
  """Those axes of `mesh` that carry the batch."""
  return tuple(n for n in BATCH if n in mesh.axis_names)


def num_batch_shards(mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> int:
  """Over how many devices the batch is split."""
  return math.prod(mesh.shape[n] for n in of_batch(mesh))


def put_batch(mesh: jax.sharding.Mesh, batch: Mapping[str, Any]) -> dict[str, Any]:
  """This process's rows of a global batch -> global arrays, dimension 0 over the batch axes."""
  sharding = NamedSharding(mesh, P(of_batch(mesh)))
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), dict(batch)
  )


def to_host(tree: Any) -> Any:
  """Global arrays -> full NumPy arrays on every process (a gather across processes)."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  from jax.experimental import multihost_utils

  return multihost_utils.process_allgather(tree, tiled=True)


def micro_batches(batch: Any, k: int) -> Any:
  """[B, ...] -> [k, B / k, ...]: every device contributes to every micro-batch.

  Micro-batch j holds the examples j, k + j, 2k + j, ..., so no example changes its device.
  """

  def split(x: jax.Array) -> jax.Array:
    x = x.reshape(x.shape[0] // k, k, *x.shape[1:]).swapaxes(0, 1)
    return constrain(x, None, BATCH)

  return jax.tree.map(split, batch)


def whole_batch(micro: Any) -> Any:
  """[k, B / k, ...] -> [B, ...], the inverse of `micro_batches`."""
  join = lambda x: constrain(x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), BATCH)
  return jax.tree.map(join, micro)
