"""The mesh, and which part of the state lives where: ordered rules, regex over paths -> tactics.

    (".*/(query|key|value|up)/kernel", "shard(-1, tensor)|fsdp")

Tactics are piped: `replicate`, `fsdp` (the largest axis that is still free and divides), and
`shard(dim, axis)`. The first rule that matches wins. Nothing happens silently: what could not be
split, and a rule that nothing matched, stands in the table that `plan` returns.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from big_vision_like import axes, tree
from big_vision_like.config import UserError, parse_spec, unknown

DEFAULT_RULES = (
  (".*(query|key|value|up)/kernel", "shard(-1, tensor)|fsdp"),
  (".*(out|down)/kernel", "shard(-2, tensor)|fsdp"),
  (".*", "fsdp"),
)
MIN_SIZE = 4096  # smaller leaves stay whole: splitting them costs more than it saves


# ------------------------------------------------------------------------------------------- mesh


def make_mesh(cfg: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
  """`{"replica": 1, "fsdp": -1, "tensor": 1, "sequence": 1}` -> a mesh over all devices.

  -1 takes what is left. On TPU slices `replica` goes between slices where it equals their number.

  Raises:
    UserError: an unknown axis, a size that is not a number, or a product that is not all devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  for name, size in cfg.items():
    if name not in axes.ALL:
      raise unknown("config.mesh: axis", name, axes.ALL)
    if isinstance(size, bool) or not isinstance(size, int) or (size < 1 and size != -1):
      raise UserError(f"config.mesh.{name} = {size!r}; expected a positive number, or -1")
  sizes = {name: cfg.get(name, 1) for name in axes.ALL}
  free = [name for name, size in sizes.items() if size == -1]
  if len(free) > 1:
    raise UserError(f"config.mesh: {' and '.join(free)} are both -1; one axis takes what is left")
  fixed = int(np.prod([s for s in sizes.values() if s != -1]))
  if len(devices) % fixed or (not free and fixed != len(devices)):
    shape = " x ".join(f"{n}={s}" for n, s in sizes.items())
    raise UserError(f"config.mesh: {shape} does not use all {len(devices)} devices")
  if free:
    sizes[free[0]] = len(devices) // fixed
  shape, auto = tuple(sizes.values()), (AxisType.Auto,) * len(sizes)

  slices = {getattr(d, "slice_index", 0) for d in devices}
  if len(slices) > 1 and sizes[axes.REPLICA] == len(slices):
    from jax.experimental import mesh_utils

    grid = mesh_utils.create_hybrid_device_mesh(
      (1, *shape[1:]), (shape[0], 1, 1, 1), devices=devices
    )
    return Mesh(grid, axes.ALL, axis_types=auto)
  return jax.make_mesh(shape, axes.ALL, axis_types=auto, devices=devices)


def num_batch_shards(mesh: Mesh) -> int:
  """Over how many devices the batch is split."""
  return int(np.prod([mesh.shape[n] for n in axes.BATCH if n in mesh.axis_names]))


def check_batch(batch_size: int, mesh: Mesh) -> None:
  """Raises `UserError` where the batch does not divide its axes, or is not a positive number."""
  if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
    raise UserError(f"config.input.batch_size = {batch_size!r}; expected a positive number")
  if batch_size % (n := num_batch_shards(mesh)):
    raise UserError(
      f"config.input.batch_size = {batch_size} does not divide by replica x fsdp = {n}; "
      f"nearest: {max(n, batch_size // n * n)}"
    )


# ------------------------------------------------------------------------------------------ table


class Row(NamedTuple):
  """One leaf of the state: where it went, by which rule, and what a device holds of it."""

  path: str
  shape: tuple[int, ...]
  dtype: str
  rule: str
  spec: str
  bytes_per_device: int


class Table(NamedTuple):
  """The sharding table: `rows`, `notes` (what could not be split, unused rules), device count."""

  rows: list[Row]
  notes: list[str]
  mesh: dict[str, int]

  def totals(self) -> dict[str, int]:
    """Bytes a device holds, by part of the state."""
    out: dict[str, int] = {}
    for row in self.rows:
      part = row.path.split("/")[0]
      out[part] = out.get(part, 0) + row.bytes_per_device
    return out

  def to_json(self) -> dict[str, Any]:
    rows = [row._asdict() | {"shape": list(row.shape)} for row in self.rows]
    return {"rows": rows, "notes": self.notes, "totals": self.totals(), "mesh": self.mesh}

  def render(self) -> str:
    """The parameters' rows, notes and totals as text (the optimizer follows its parameters)."""
    rows = [r for r in self.rows if r.path.split("/")[0] in ("params", "aux")]
    cells = [(r.path, str(r.shape), r.spec, r.rule, f"{r.bytes_per_device:,}") for r in rows]
    cells.insert(0, ("leaf", "shape", "sharding", "rule", "bytes/device"))
    widths = [max(len(c[i]) for c in cells) for i in range(5)]
    lines = ["  ".join(x.ljust(w) for x, w in zip(c, widths)).rstrip() for c in cells]
    mesh = " x ".join(f"{n}={s}" for n, s in self.mesh.items())
    totals = ", ".join(f"{k} {v / 2**20:,.2f} MiB" for k, v in self.totals().items())
    return "\n".join([f"mesh {mesh}", *lines, *self.notes, f"a device holds: {totals}"])


def plan(shapes: Any, rules: Sequence[tuple[str, str]], mesh: Mesh) -> tuple[Any, Table]:
  """Shardings in the structure of `shapes`, and the table that says what went where.

  Raises:
    UserError: a leaf without a rule, an unknown tactic, a `shard` whose axis does not divide.
  """
  parsed = [
    (regex, text, parse_spec(text, f"config.sharding.rules {regex!r}")) for regex, text in rules
  ]
  patterns, used = [regex for regex, _, _ in parsed], set()
  rows, notes = [], []

  def place(path: str, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
    index = tree.first_match(patterns, path)
    if index is None:
      raise UserError(f"config.sharding.rules: no rule matches {path}; end with ('.*', 'fsdp')")
    used.add(index)
    dims: list[str | None] = [None] * len(leaf.shape)
    for tactic in parsed[index][2]:
      if tactic.name == "shard":
        _shard(dims, leaf, mesh, path, *tactic.args)
      elif tactic.name == "fsdp":
        if (note := _fsdp(dims, leaf, mesh, path)) is not None:
          notes.append(note)
      elif tactic.name != "replicate":
        raise unknown("config.sharding.rules: tactic", tactic.name, ("replicate", "fsdp", "shard"))
    sharding = NamedSharding(mesh, P(*dims))
    split = int(np.prod([mesh.shape[d] for d in dims if d is not None], dtype=int))
    size = leaf.size * leaf.dtype.itemsize // split
    rows.append(Row(path, leaf.shape, str(leaf.dtype), parsed[index][1], str(sharding.spec), size))
    return sharding

  shardings = tree.map_with_name(place, shapes)
  notes += [
    f"note: rule {regex!r} -> {text!r} matched nothing"
    for i, (regex, text, _) in enumerate(parsed)
    if i not in used
  ]
  return shardings, Table(rows, notes, {n: mesh.shape[n] for n in mesh.axis_names})


def _shard(
  dims: list[str | None], leaf: jax.ShapeDtypeStruct, mesh: Mesh, path: str, dim: int, axis: str
) -> None:
  """`shard(dim, axis)`, in place; leaves with too few dimensions (factored moments) stay whole."""
  if axis not in mesh.axis_names:
    raise unknown("config.sharding.rules: axis", axis, mesh.axis_names)
  size = mesh.shape[axis]
  if size == 1 or not -len(dims) <= dim < len(dims) or leaf.shape[dim] == 1:
    return
  if leaf.shape[dim] % size:
    raise UserError(
      f"config.sharding.rules: shard({dim}, {axis}) of {path} {leaf.shape}: {leaf.shape[dim]} does "
      f"not divide by {axis} = {size}"
    )
  dims[dim] = axis


def _fsdp(dims: list[str | None], leaf: jax.ShapeDtypeStruct, mesh: Mesh, path: str) -> str | None:
  """`fsdp`, in place; returns a note where a leaf worth splitting does not divide."""
  size = mesh.shape[axes.FSDP]
  if size == 1 or leaf.size < MIN_SIZE:
    return None
  free = [i for i, d in enumerate(dims) if d is None and leaf.shape[i] % size == 0]
  if not free:
    return f"note: {path} {leaf.shape} stays whole: no free dimension divides by fsdp = {size}"
  dims[max(free, key=lambda i: leaf.shape[i])] = axes.FSDP
  return None
