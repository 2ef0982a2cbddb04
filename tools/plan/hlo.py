"""Reads compiled HLO text: every collective, and the bytes a step moves in device memory.

XLA's own `cost_analysis` counts the body of a loop once. Here a `while` counts as often as it runs:
by `known_trip_count` where the compiler wrote it down (CPU, GPU), else by reading the loop's start,
step and bound (TPU). A conditional counts as its dearest branch.

What counts once although it is printed several times: `-start`/`-done` pairs, and the all-gathers
that XLA:TPU threads through `async_collective_fusion`s (only the one with `AsyncCollectiveStart`).
Arrays in another memory space than 0 (VMEM, SMEM) move no bytes of HBM. Sizes are logical: the
padding of tiles is left out.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

COLLECTIVES = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "collective-permute",
  "all-to-all",
  "ragged-all-to-all",
  "collective-broadcast",
)
# Instructions that move nothing: names for what is already there, or bodies counted on their own.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"}
FREE |= {"call", "after-all", "partition-id", "replica-id", "opt-barrier", "domain"}
FREE |= {"add-dependency", "async-start", "async-update", "async-done"}
FREE_TARGETS = (
  "AllocateBuffer",
  "ConcatBitcast",
  "AssumeGatherIndicesInBound",
  "AsyncCollectiveStart",
  "AsyncCollectiveDone",
)
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](\{[^{}]*\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_CALLS = re.compile(
  r"(calls|to_apply|body|condition|true_computation|false_computation)=%([\w.\-]+)"
)


class Array(NamedTuple):
  """One array of an instruction's result: its bytes, and whether it lies in device memory."""

  bytes: int
  in_hbm: bool


class Instruction(NamedTuple):
  name: str
  opcode: str
  arrays: list[Array]
  operands: list[str]
  inside: str  # between the parentheses: a constant's value, a parameter's number
  attrs: str
  is_root: bool

  @property
  def bytes(self) -> int:
    return sum(a.bytes for a in self.arrays)

  @property
  def hbm_bytes(self) -> int:
    return sum(a.bytes for a in self.arrays if a.in_hbm)


class Collective(NamedTuple):
  """One collective of a step, as often as it runs.

  Attributes:
    kind: `all-gather`, `all-reduce`, `reduce-scatter`, `collective-permute`, `all-to-all`, ...
    axes: mesh axes along which its groups reach.
    group: devices in a group (2 for a permute: sender and receiver).
    bytes: of one execution on one device: the whole gathered array of an all-gather, the operand of
      all others.
    count: executions a step.
  """

  kind: str
  axes: tuple[str, ...]
  group: int
  bytes: int
  count: int

  @property
  def total_bytes(self) -> int:
    return self.bytes * self.count

  @property
  def wire_bytes(self) -> float:
    """What a device sends in a step, by the ring algorithms (2 (n - 1) / n of an all-reduce)."""
    share = (self.group - 1) / self.group
    factor = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)
    return factor * self.total_bytes


class Cost(NamedTuple):
  """Of one execution of a computation: HBM bytes, collectives, loops whose trips were guessed."""

  hbm_bytes: int
  collectives: list[Collective]
  unknown_loops: int

  def times(self, n: int) -> "Cost":
    return Cost(
      self.hbm_bytes * n,
      [c._replace(count=c.count * n) for c in self.collectives],
      self.unknown_loops,
    )


# ---------------------------------------------------------------------------------------- parsing


def _balanced(text: str, start: int) -> int:
  """Index behind the parenthesis that closes the one at `start`."""
  depth = 0
  for i in range(start, len(text)):
    depth += {"(": 1, ")": -1}.get(text[i], 0)
    if depth == 0:
      return i + 1
  return len(text)


def _bits(dtype: str) -> int:
  if dtype == "pred":
    return 8
  if dtype in ("token", "opaque"):
    return 0
  found = re.match(r"[a-z]+(\d+)", dtype)
  return 8 if dtype.startswith("f8") else int(found[1]) if found else 0


def _arrays(text: str) -> list[Array]:
  out = []
  for dtype, dims, layout in _ARRAY.findall(text):
    size = math.prod(int(d.lstrip("<=")) for d in dims.split(",") if d)
    space = re.search(r"S\((\d+)\)", layout)
    out.append(Array(-(-size * _bits(dtype) // 8), space is None or space[1] == "0"))
  return out


def _instruction(line: str) -> Instruction | None:
  head, equals, rest = line.partition(" = ")
  names = head.split()
  if not equals or not names or len(names) > 2:
    return None
  end = _balanced(rest, 0) if rest.startswith("(") else rest.find(" ")
  shape, rest = rest[:end], rest[end:].lstrip()
  start = rest.find("(")
  if start < 0:
    return None
  stop = _balanced(rest, start)
  inside = rest[start + 1 : stop - 1]
  return Instruction(
    names[-1].lstrip("%"),
    rest[:start],
    _arrays(shape),
    _NAME.findall(inside),
    inside,
    rest[stop:],
    names[0] == "ROOT",
  )


class Module:
  """A compiled module: `computations[name][instruction name]`, and the entry's name."""

  def __init__(self, text: str):
    self.computations: dict[str, dict[str, Instruction]] = {}
    self.entry = ""
    current: dict[str, Instruction] | None = None
    for line in text.splitlines():
      if found := _COMPUTATION.match(line):
        current = self.computations.setdefault(found[2], {})
        self.entry = found[2] if found[1] else self.entry
      elif line.startswith("}"):
        current = None
      elif current is not None and (made := _instruction(line.strip())) is not None:
        current[made.name] = made
    self._costs: dict[str, Cost] = {}

  # ---------------------------------------------------------------------------------------- cost

  def cost(self, mesh: dict[str, int]) -> Cost:
    """Of one run of the entry; `mesh` is axis -> size in the order of the device assignment."""
    self._costs.clear()
    return self._cost(self.entry, mesh)

  def _cost(self, name: str, mesh: dict[str, int]) -> Cost:
    if name in self._costs:
      return self._costs[name]
    hbm, collectives, unknown = 0, [], 0
    for at in self.computations[name].values():
      hbm += self._moved(name, at)
      parts = []
      called = dict(_CALLS.findall(at.attrs))
      if at.opcode == "while":
        trips = self.trips(name, at)
        unknown += trips is None
        parts = [self._cost(called["body"], mesh).times(1 if trips is None else trips)]
      elif at.opcode == "conditional":
        branches = re.search(r"branch_computations=\{([^}]*)\}", at.attrs)
        names = _NAME.findall(branches[1]) if branches else list(called.values())
        costs = [self._cost(n, mesh) for n in names]
        parts = [max(costs, key=lambda c: (c.hbm_bytes, sum(x.total_bytes for x in c.collectives)))]
      elif at.opcode in ("call", "async-start"):
        parts = [self._cost(n, mesh) for n in called.values()]
      elif at.opcode == "fusion":  # its collectives; what it moves is counted at the call
        parts = [self._cost(called["calls"], mesh)._replace(hbm_bytes=0)]
        if not self._issues(called["calls"]):
          parts = []
      elif (found := self._collective(name, at, mesh)) is not None:
        collectives.append(found)
      for part in parts:
        hbm += part.hbm_bytes
        collectives += part.collectives
        unknown += part.unknown_loops
    self._costs[name] = Cost(hbm, collectives, unknown)
    return self._costs[name]

  def _issues(self, name: str) -> bool:
    """Whether a fused computation starts its collectives, and does not go on with another's."""
    attrs = [at.attrs for at in self.computations[name].values() if at.opcode == "custom-call"]
    if any('"AsyncCollectiveStart"' in a for a in attrs):
      return True
    return "async_collective_fusion" not in name and not any(
      "AsyncCollectiveDone" in a for a in attrs
    )

  def _collective(
    self, computation: str, at: Instruction, mesh: dict[str, int]
  ) -> Collective | None:
    kind = at.opcode.removesuffix("-start")
    if kind not in COLLECTIVES and kind != "send":
      return None
    size = sum(self.computations[computation][o].bytes for o in at.operands)
    if kind == "collective-permute":
      pairs = re.search(r"source_target_pairs=(\{\{.*?\}\})", at.attrs)
      moves = [p for p in _lists(pairs[1]) if p[0] != p[1]] if pairs else []
      return Collective(kind, mesh_axes(moves, mesh), 2, size, 1) if moves else None
    if (
      kind == "send"
    ):  # TPU slices exchange through their hosts; the outermost axis lies between them
      kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', at.attrs)
      if kind is None:
        return None
      size = self.computations[computation][at.operands[0]].bytes
      kind, axis = kind[1].lower().replace("_", "-"), next(n for n, s in mesh.items() if s > 1)
      n = mesh[axis]
      return Collective(kind, (axis,), n, size * (n if kind == "all-gather" else 1), 1)
    groups = replica_groups(at.attrs, math.prod(mesh.values()))
    n = len(groups[0])
    if n == 1:
      return None
    if computation.startswith("all-reduce-scatter"):  # XLA:TPU fuses an all-reduce and its slice
      kind = "reduce-scatter"
    return Collective(
      kind, mesh_axes(groups, mesh), n, size * (n if kind == "all-gather" else 1), 1
    )

  # --------------------------------------------------------------------------------------- loops

  def trips(self, computation: str, loop: Instruction) -> int | None:
    """How often a `while` runs its body, or None where that cannot be read."""
    if found := re.search(r'known_trip_count"?[=:]\{"?n"?:"?(\d+)', loop.attrs):
      return int(found[1])
    called = dict(_CALLS.findall(loop.attrs))
    condition, body = (self.computations[called[k]] for k in ("condition", "body"))
    test = _root(condition)
    if test.opcode == "fusion":
      inner = self.computations[dict(_CALLS.findall(test.attrs))["calls"]]
      test, outer, condition = _root(inner), test.operands, dict(condition)
      for at in inner.values():  # its parameters are the operands of the call
        if at.opcode == "parameter":
          condition[at.name] = condition[outer[int(at.inside)]]
        else:
          condition[at.name] = at
    if test.opcode != "compare" or "direction=LT" not in test.attrs:
      return None
    counter, bound = (_through(condition, o) for o in test.operands)
    limit = _constant(bound)
    index = re.search(r"index=(\d+)", counter.attrs)
    if limit is None or counter.opcode != "get-tuple-element" or index is None:
      return None
    i = int(index[1])
    state = _through(self.computations[computation], loop.operands[0])
    start = None
    if state.opcode == "tuple":
      start = _constant(_through(self.computations[computation], state.operands[i]))
    step = self._step(body, i)
    if step is None or step < 1:
      return None
    return -(-(limit - (start or 0)) // step)

  def _step(self, body: dict[str, Instruction], i: int) -> int | None:
    """What a trip adds to element i of the loop's state."""
    root = _root(body)
    if root.opcode != "tuple":
      return None
    total, at = 0, _through(body, root.operands[i])
    while at.opcode in ("add", "fusion"):
      if at.opcode == "fusion":
        inner = self.computations[dict(_CALLS.findall(at.attrs))["calls"]]
        added = _root(inner)
        numbers = [_constant(_through(inner, o)) for o in added.operands]
        following = [_through(body, o) for o in at.operands]
        following = [o for o in following if o.opcode != "constant"]
        if added.opcode != "add" or len(following) != 1:
          return None
        at = following[0]
      else:
        operands = [_through(body, o) for o in at.operands]
        numbers = [_constant(o) for o in operands]
        following = [o for o, n in zip(operands, numbers) if n is None]
        if len(following) != 1:
          return None
        at = following[0]
      total += sum(n for n in numbers if n is not None)
    return total if at.opcode == "get-tuple-element" and f"index={i}" in at.attrs else None

  # --------------------------------------------------------------------------------------- bytes

  def _moved(self, computation: str, at: Instruction) -> int:
    """HBM bytes that an instruction reads and writes."""
    opcode, here = at.opcode, self.computations[computation]
    if opcode in FREE or opcode.endswith(("-done", "-update")):
      return 0
    if opcode == "custom-call" and any(f'"{t}"' in at.attrs for t in FREE_TARGETS):
      return 0
    if opcode.endswith("-start") or opcode in ("send", "recv"):  # the result names the operand too
      return at.hbm_bytes
    if opcode in ("dynamic-slice", "slice", "gather"):
      read = at.bytes if here[at.operands[0]].hbm_bytes else 0
      return read + at.hbm_bytes
    if opcode in ("dynamic-update-slice", "scatter"):
      update = here[at.operands[1 if opcode == "dynamic-update-slice" else -1]]
      return update.hbm_bytes + (update.bytes if at.hbm_bytes else 0)
    if opcode == "fusion":
      return self._moved_by_fusion(here, at)
    return at.hbm_bytes + sum(here[o].hbm_bytes for o in at.operands)

  def _moved_by_fusion(self, here: dict[str, Instruction], at: Instruction) -> int:
    """Operands that are only sliced count as their slices, updates in place as the update."""
    inner = self.computations[dict(_CALLS.findall(at.attrs))["calls"]]
    total = 0
    for param in inner.values():
      if param.opcode == "parameter":
        outer = here[at.operands[int(param.inside)]]
        total += min(self._read(inner, param), outer.hbm_bytes) if outer.hbm_bytes else 0
    root = _through(inner, _root(inner).name)
    parts = [_through(inner, o) for o in root.operands] if root.opcode == "tuple" else [root]
    if len(parts) != len(at.arrays):
      return total + at.hbm_bytes
    for part, array in zip(parts, at.arrays):
      in_place = part.opcode == "dynamic-update-slice"
      size = inner[part.operands[1]].bytes if in_place else array.bytes
      total += size if array.in_hbm else 0
    return total

  def _read(self, inner: dict[str, Instruction], value: Instruction) -> int:
    """Bytes of `value` that a fused computation looks at; fusions may hold fusions."""
    total = 0
    for user in inner.values():
      if value.name not in user.operands:
        continue
      first = user.operands[0] == value.name
      if user.opcode == "dynamic-update-slice" and first:
        continue  # in place
      if user.opcode == "bitcast":
        total += self._read(inner, user)
      elif user.opcode in ("dynamic-slice", "slice", "gather") and first:
        total += user.bytes
      elif user.opcode == "fusion":
        nested = self.computations[dict(_CALLS.findall(user.attrs))["calls"]]
        for param in nested.values():
          if param.opcode == "parameter" and user.operands[int(param.inside)] == value.name:
            total += self._read(nested, param)
      else:
        return value.bytes
    return total


def _root(computation: dict[str, Instruction]) -> Instruction:
  return next(at for at in computation.values() if at.is_root)


def _through(computation: dict[str, Instruction], name: str) -> Instruction:
  """The instruction behind copies and bitcasts."""
  at = computation[name]
  while at.opcode in ("copy", "bitcast", "copy-done", "copy-start", "opt-barrier"):
    at = computation[at.operands[0]]
  return at


def _constant(at: Instruction) -> int | None:
  return int(at.inside) if at.opcode == "constant" and re.fullmatch(r"-?\d+", at.inside) else None


# ----------------------------------------------------------------------------------------- groups


def _lists(text: str) -> list[list[int]]:
  return [[int(x) for x in g.split(",") if x] for g in re.findall(r"\{([\d,]+)\}", text)]


def replica_groups(attrs: str, devices: int) -> list[list[int]]:
  """The groups of a collective, in any of the three forms that XLA prints.

  replica_groups={{0,1},{2,3}}             lists; {} is one group of all
  replica_groups=[2,2]<=[2,2]T(1,0)        iota, reshaped and transposed
  replica_groups=mesh['a'=2,'b'=2] {'b'}   axes of a named mesh; a part of one is 'b':(1)2
  """
  if found := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\S+)? \{([^}]*)\}", attrs):
    mesh = {n: int(s) for n, s in re.findall(r"'([^']+)'=(\d+)", found[1])}
    wanted = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", found[2])
    dims, chosen = [], []
    for name, size in mesh.items():
      parts = [(int(pre), int(n)) for axis, pre, n in wanted if axis == name and n]
      if (name, "", "") in wanted:
        chosen.append(len(dims))
        dims.append(size)
        continue
      done = 1
      for pre, n in sorted(parts):
        if pre > done:
          dims.append(pre // done)
        chosen.append(len(dims))
        dims.append(n)
        done = pre * n
      dims.append(size // done)
    ids = np.arange(math.prod(dims)).reshape(dims)
    ids = np.moveaxis(ids, chosen, range(ids.ndim - len(chosen), ids.ndim))
    return ids.reshape(-1, math.prod(dims[i] for i in chosen)).tolist()
  iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attrs)
  if iota:
    shape, dims, order = ([int(x) for x in (g or "").split(",") if x] for g in iota.groups())
    ids = np.arange(math.prod(dims)).reshape(dims)
    return ids.transpose(order or range(len(dims))).reshape(shape[0], -1).tolist()
  listed = re.search(r"replica_groups=(\{(?:\{[\d,]*\},?)*\})", attrs)
  return (_lists(listed[1]) if listed else []) or [list(range(devices))]


def mesh_axes(groups: Sequence[Sequence[int]], mesh: dict[str, int]) -> tuple[str, ...]:
  """The mesh axes along which the devices of a group differ."""
  shape, found = tuple(mesh.values()), set()
  for group in groups:
    where = np.stack(np.unravel_index(np.asarray(group), shape))
    found |= {n for n, row in zip(mesh, where) if (row != row[0]).any()}
  return tuple(n for n in mesh if n in found)


def merged(collectives: Sequence[Collective]) -> list[Collective]:
  """Those of the same kind, axes and size in one row; the largest totals first."""
  rows: dict[tuple, int] = {}
  for c in collectives:
    rows[c[:4]] = rows.get(c[:4], 0) + c.count
  out = [Collective(*key, count) for key, count in rows.items()]
  return sorted(out, key=lambda c: -c.wire_bytes)
