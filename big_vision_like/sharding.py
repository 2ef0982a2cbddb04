"""The mesh, and which part of the state lives where: ordered rules, regex over paths -> tactics.

    (".*/(query|key|value|up)/kernel", "shard(-1, tensor)|fsdp")

Tactics are piped: `replicate`, `fsdp(min_size=4096)` (the largest dimension that is still free and
divides; leaves of fewer elements stay whole) and `shard(dim, axis)`. The first rule that matches
wins. Nothing happens silently: what could not be split, and a rule that nothing matched, stands in
the table that `plan` returns.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from big_vision_like import axes, tree
from big_vision_like.config import UserError, call, parse_spec, unknown

DEFAULT_RULES = (
  (".*(query|key|value|up|gate)/kernel", "shard(-1, tensor)|fsdp"),
  (".*(out|down)/kernel", "shard(-2, tensor)|fsdp"),
  (".*", "fsdp"),
)
MIN_SIZE = 4096  # smaller leaves stay whole: splitting them costs more than it saves


# ------------------------------------------------------------------------------------------- mesh


def mesh_sizes(cfg: Mapping[str, int], devices: int) -> dict[str, int]:
  """`{"replica": 1, "fsdp": -1, "tensor": 1, "sequence": 1}` -> all sizes; -1 takes what is left.

  Raises:
    UserError: an unknown axis, a size that is not a number, or a product that is not `devices`.
  """
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
  if devices % fixed or (not free and fixed != devices):
    shape = " x ".join(f"{n}={s}" for n, s in sizes.items())
    raise UserError(f"config.mesh: {shape} does not use all {devices} devices")
  if free:
    sizes[free[0]] = devices // fixed
  return sizes


def make_mesh(cfg: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
  """A mesh over all devices, its sizes by `mesh_sizes`.

  Over several TPU slices or GPU nodes, `replica` goes between them as far as it reaches, then
  `fsdp`; `tensor` and `sequence` stay within one.

  Raises:
    UserError: as `mesh_sizes`, or TPU slices that the sizes do not fit.
  """
  devices = list(jax.devices() if devices is None else devices)
  sizes, auto = mesh_sizes(cfg, len(devices)), (AxisType.Auto,) * len(axes.ALL)
  if len(groups := granules(devices)) > 1:
    return Mesh(_between(groups, sizes), axes.ALL, axis_types=auto)
  return jax.make_mesh(tuple(sizes.values()), axes.ALL, axis_types=auto, devices=devices)


def granules(devices: Sequence[Any]) -> list[list[Any]]:
  """Devices by what shares a fast network: TPU slices and GPU nodes, which jax numbers as
  `slice_index`; where it does not, processes, unless they are the hosts of one TPU slice."""
  keys = ("slice_index",) if devices[0].platform == "tpu" else ("slice_index", "process_index")
  for key in keys:
    groups: dict[int, list[Any]] = {}
    for device in devices:
      groups.setdefault(getattr(device, key, None) or 0, []).append(device)
    if len(groups) > 1:
      return [groups[index] for index in sorted(groups)]
  return [list(devices)]


def _between(groups: list[list[Any]], sizes: Mapping[str, int]) -> np.ndarray:
  """The mesh's devices where `replica`, then `fsdp`, lie between the groups, the rest within one.

  Raises:
    UserError: TPU slices that this does not fit; other devices are laid out in their order.
  """
  from jax.experimental import mesh_utils

  count, shape = len(groups), tuple(sizes.values())
  replica = math.gcd(sizes[axes.REPLICA], count)
  outer = (replica, count // replica, 1, 1)
  fits = len({len(g) for g in groups}) == 1 and sizes[axes.FSDP] % outer[1] == 0
  if not fits and groups[0][0].platform == "tpu":
    text = " x ".join(f"{n}={s}" for n, s in sizes.items())
    raise UserError(
      f"config.mesh: {text} over {count} slices of {len(groups[0])} devices; replica x fsdp must "
      f"be a multiple of {count}, tensor and sequence must stay within a slice"
    )
  if not fits:
    return np.asarray([d for group in groups for d in group]).reshape(shape)
  inner = tuple(a // b for a, b in zip(shape, outer))
  # An axis may take a part of a dimension of the torus where none fits whole.
  grids = [mesh_utils.create_device_mesh(inner, g, allow_split_physical_axes=True) for g in groups]
  # [replica, fsdp between; replica, fsdp, tensor, sequence within] -> each axis joined.
  grid = np.stack(grids).reshape(*outer[:2], *inner).transpose(0, 2, 1, 3, 4, 5)
  return grid.reshape(shape)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Dimension 0 over the batch axes, the rest whole."""
  return NamedSharding(mesh, P(axes.of_batch(mesh)))


def check_batch(batch_size: int, mesh: Mesh, where: str = "config.input") -> None:
  """Raises `UserError` where the batch does not divide its axes, or is not a positive number."""
  if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
    raise UserError(f"{where}.batch_size = {batch_size!r}; expected a positive number")
  if batch_size % (n := axes.num_batch_shards(mesh)):
    raise UserError(
      f"{where}.batch_size = {batch_size} does not divide by replica x fsdp = {n}; "
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

  def __str__(self) -> str:
    return self.render()

  def render(self, max_rows: int | None = None) -> str:
    """The rows of params and aux (the largest `max_rows` of them), notes and totals as text."""
    rows = [r for r in self.rows if r.path.split("/")[0] in ("params", "aux")]
    left_out = 0 if max_rows is None else max(0, len(rows) - max_rows)
    if left_out:
      keep = sorted(rows, key=lambda r: r.bytes_per_device, reverse=True)[:max_rows]
      rows = [r for r in rows if r in keep]
    cells = [(r.path, str(r.shape), r.spec, r.rule, f"{r.bytes_per_device:,}") for r in rows]
    cells.insert(0, ("leaf", "shape", "sharding", "rule", "bytes/device"))
    widths = [max(len(c[i]) for c in cells) for i in range(5)]
    lines = ["  ".join(x.ljust(w) for x, w in zip(c, widths)).rstrip() for c in cells]
    mesh = " x ".join(f"{n}={s}" for n, s in self.mesh.items())
    totals = ", ".join(f"{k} {v / 2**20:,.2f} MiB" for k, v in self.totals().items())
    more = [f"... and {left_out} smaller rows"] if left_out else []
    return "\n".join([f"mesh {mesh}", *lines, *more, *self.notes, f"a device holds: {totals}"])


def plan(shapes: Any, rules: Sequence[tuple[str, str]], mesh: Mesh) -> tuple[Any, Table]:
  """Shardings in the structure of `shapes`, and the table that says what went where.

  Args:
    shapes: pytree of arrays or `jax.ShapeDtypeStruct`s, usually a `State`.
    rules: (regex over the path, tactics), the first match wins.
    mesh: the mesh whose axes the tactics name.

  Raises:
    UserError: a leaf without a rule, a tactic that is unknown or wrongly called, a `shard` whose
      axis does not divide. Leaves of the optimizer that have not their parameter's shape (factored
      moments) get a note instead.
  """
  where = "config.sharding.rules"
  parsed = [(regex, text, parse_spec(text, f"{where} {regex!r}")) for regex, text in rules]
  patterns, used = [regex for regex, _, _ in parsed], set()
  for regex, _, tactics in parsed:
    try:
      re.compile(regex)
    except re.error as e:
      raise UserError(f"{where}: {regex!r} is not a regular expression: {e}") from None
    for tactic in tactics:
      if tactic.name not in TACTICS:
        raise unknown(f"{where} {regex!r}: tactic", tactic.name, tuple(TACTICS))
  rows, notes = [], []
  of_opt: dict[str, list[str]] = {}  # why -> leaves; one note for each why

  def place(path: str, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
    index = tree.first_match(patterns, path)
    if index is None:
      raise UserError(f"{where}: no rule matches {path}; end with ('.*', 'fsdp')")
    used.add(index)
    regex, text, tactics = parsed[index]
    dims: list[str | None] = [None] * len(leaf.shape)
    for tactic in tactics:
      at = f"{where} {regex!r}: {tactic}"
      args = (Leaf(path, leaf.shape, dims, mesh), *tactic.args)
      if (note := call(TACTICS[tactic.name], tactic.kwargs, at, *args)) is None:
        continue
      if path.startswith("opt/"):
        of_opt.setdefault(f"not split by {tactic}: {note}", []).append(f"{path} {leaf.shape}")
      elif tactic.name == "shard":
        raise UserError(f"{at}: {path} {leaf.shape}: {note}")
      else:
        notes.append(f"note: {path} {leaf.shape} is not split by {tactic}: {note}")
    sharding = NamedSharding(mesh, P(*dims))
    split = math.prod(mesh.shape[d] for d in dims if d is not None)
    size = leaf.size * leaf.dtype.itemsize // split
    rows.append(Row(path, leaf.shape, str(leaf.dtype), text, str(sharding.spec), size))
    return sharding

  shardings = tree.map_with_name(place, shapes)
  notes += [f"note: {len(x)} leaves such as {x[0]} are {why}" for why, x in of_opt.items()]
  notes += [
    f"note: rule {regex!r} -> {text!r} matched nothing"
    for i, (regex, text, _) in enumerate(parsed)
    if i not in used
  ]
  return shardings, Table(rows, notes, {n: mesh.shape[n] for n in mesh.axis_names})


class Leaf(NamedTuple):
  """What a tactic sees; it writes mesh axes into `dims` and returns why it could not, or None."""

  path: str
  shape: tuple[int, ...]
  dims: list[str | None]
  mesh: Mesh


def _replicate(leaf: Leaf) -> str | None:
  leaf.dims[:] = [None] * len(leaf.dims)
  return None


def _shard(leaf: Leaf, dim: int, axis: str) -> str | None:
  if axis not in leaf.mesh.axis_names:
    raise unknown("config.sharding.rules: axis", axis, leaf.mesh.axis_names)
  if isinstance(dim, bool) or not isinstance(dim, int):
    raise UserError(f"config.sharding.rules: shard({dim!r}, {axis}): expected a number, as -1")
  size = leaf.mesh.shape[axis]
  if size == 1 or (leaf.path.startswith("opt/") and math.prod(leaf.shape) == 1):
    return None  # nothing to split; factored moments leave placeholders of one element
  if not -len(leaf.shape) <= dim < len(leaf.shape):
    return f"it has {len(leaf.shape)} dimensions"
  if leaf.shape[dim] % size:
    return f"{leaf.shape[dim]} does not divide by {axis} = {size}"
  if leaf.dims[dim] is not None or axis in leaf.dims:
    return f"dimension {dim} or axis {axis} is taken by the tactic before"
  leaf.dims[dim] = axis
  return None


def _fsdp(leaf: Leaf, min_size: int = MIN_SIZE) -> str | None:
  size = leaf.mesh.shape.get(axes.FSDP, 1)
  if size == 1 or math.prod(leaf.shape) < min_size:
    return None
  if axes.FSDP in leaf.dims:
    return "it already is, by the tactic before"
  free = [i for i, d in enumerate(leaf.dims) if d is None and leaf.shape[i] % size == 0]
  if not free:
    return f"no free dimension divides by fsdp = {size}"
  leaf.dims[max(free, key=lambda i: leaf.shape[i])] = axes.FSDP
  return None


TACTICS = {"replicate": _replicate, "fsdp": _fsdp, "shard": _shard}
