"""One engine for foreign checkpoints: a table of names per model, read in both directions.

    Rule("layer.{i}.query.weight", "encoder/block_{i}/attn/query/kernel", "o i -> i o")

The pattern is einops', from their axes to ours. Several of our leaves in one of their tensors are a
tuple of paths, cut along `axis`. `{i}` runs over the blocks of a stack: `block_{i}` of an unrolled
encoder, or slice i of `blocks` of a scanned one. A tensor that nothing reads, a leaf that nothing
fills and a shape that does not fit are errors that name them all.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from einops import EinopsError, rearrange

from big_vision_like import tree
from big_vision_like.config import UserError

Tensors = Mapping[str, np.ndarray]


class Rule(NamedTuple):
  """Their tensor, our leaf or leaves, the einops pattern from theirs to ours, the axis of a cut."""

  theirs: str
  ours: str | tuple[str, ...]
  pattern: str | None = None
  axis: int = 0


def dense(theirs: str, ours: str) -> list[Rule]:
  """A linear layer: weight [out, in] and bias."""
  return [
    Rule(f"{theirs}.weight", f"{ours}/kernel", "o i -> i o"),
    Rule(f"{theirs}.bias", f"{ours}/bias"),
  ]


def norm(theirs: str, ours: str) -> list[Rule]:
  """The affine part of a normalisation."""
  return [Rule(f"{theirs}.weight", f"{ours}/scale"), Rule(f"{theirs}.bias", f"{ours}/bias")]


def conv(theirs: str, ours: str, bias: bool = True) -> list[Rule]:
  """A convolution: weight [out, in, h, w] and bias."""
  out = [Rule(f"{theirs}.weight", f"{ours}/kernel", "o i h w -> h w i o")]
  return out + ([Rule(f"{theirs}.bias", f"{ours}/bias")] if bias else [])


class Slot(NamedTuple):
  """One leaf of ours: its path, and its place in the stack when it is scanned."""

  path: str
  index: int | None


def _slots(rule: Rule, shapes: Mapping[str, tuple]) -> list[tuple[str, list[Slot]]]:
  """(their name, our slots) for every block the rule speaks of; [] where we have none of it."""
  ours = rule.ours if isinstance(rule.ours, tuple) else (rule.ours,)
  if "{i}" not in rule.theirs:
    slots = [Slot(path, None) for path in ours]
    return [(rule.theirs, slots)] if all(s.path in shapes for s in slots) else []
  scanned = [path.replace("block_{i}", "blocks") for path in ours]
  if all(path in shapes for path in scanned):
    depth = shapes[scanned[0]][0]
    slots = lambda i: [Slot(path, i) for path in scanned]
  else:
    depth = 0
    while all(path.format(i=depth) in shapes for path in ours):
      depth += 1
    slots = lambda i: [Slot(path.format(i=i), None) for path in ours]
  return [(rule.theirs.format(i=i), slots(i)) for i in range(depth)]


def _shape(slot: Slot, shapes: Mapping[str, tuple]) -> tuple[int, ...]:
  return shapes[slot.path] if slot.index is None else shapes[slot.path][1:]


def _backward(pattern: str | None, x: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
  """Ours -> theirs; `sizes` splits axes that the pattern has merged."""
  if pattern is None:
    return x
  left, right = pattern.split("->")
  names = set(re.findall(r"[A-Za-z]\w*", pattern))
  return rearrange(x, f"{right} -> {left}", **{k: v for k, v in sizes.items() if k in names})


class Leaves(Mapping[str, np.ndarray]):
  """Our leaves by path, each put together when asked for: `leaves` makes it."""

  def __init__(self, parts: Mapping[str, list[Any]], like: Mapping[str, Any]):
    self._parts, self._like = parts, like

  def __iter__(self) -> Iterator[str]:
    return iter(self._parts)

  def __len__(self) -> int:
    return len(self._parts)

  def __getitem__(self, path: str) -> np.ndarray:
    """In the dtype of `like`; a view of their tensor where nothing has to be moved."""
    like, parts = self._like[path], self._parts[path]
    if not isinstance(parts, dict):
      return np.asarray(parts(), like.dtype)
    out = np.empty(like.shape, like.dtype)
    for i, part in parts.items():
      out[i] = part()
    return out

  def shape(self, path: str) -> tuple[int, ...]:
    """Of one leaf, which is not put together for it."""
    return tuple(self._like[path].shape)


def leaves(
  rules: Sequence[Rule],
  tensors: Tensors,
  like: Any,
  *,
  constants: Tensors | None = None,
  ignore: str = r"$^",
) -> Leaves:
  """Their tensors as our leaves by path, all names and shapes checked, none of them put together.

  `constants` are tensors of theirs that we compute, such as fixed position tables: they must agree
  to 1e-5. `ignore` is a regex of theirs that carry nothing, such as counters.

  Raises:
    UserError: the tensors that are missing, left over or of another shape, and the leaves that no
      rule fills.
  """
  constants = constants or {}
  for name, value in constants.items():
    found = tensors.get(name)
    if found is not None and not (
      found.shape == value.shape and np.allclose(found, value, 0, 1e-5)
    ):
      raise UserError(f"{name} {found.shape} is not the fixed table {value.shape} that we compute")
  flat = tree.flatten(like)
  shapes = {path: tuple(x.shape) for path, x in flat.items()}
  filled: dict[str, Any] = {}
  missing, wrong, used = [], [], set()
  for rule in rules:
    for name, slots in _slots(rule, shapes):
      if name not in tensors:
        missing.append(name)
        continue
      used.add(name)
      x = np.asarray(tensors[name])
      wanted = [_shape(s, shapes) for s in slots]
      parts = _cut(x, rule, wanted) if len(slots) > 1 else [x]
      for slot, part, shape in zip(slots, parts, wanted):
        if _forward(rule.pattern, _hollow(part.shape)).shape != shape:
          wrong.append(f"{name} {x.shape} for {slot.path} {shape}")
          continue
        make = partial(_forward, rule.pattern, part)
        if slot.index is None:
          filled[slot.path] = make
        else:
          filled.setdefault(slot.path, {})[slot.index] = make
  known = lambda name: name in used or name in constants or re.fullmatch(ignore, name)
  left = [name for name in tensors if not known(name)]
  empty = [] if missing or wrong else [p for p in flat if p not in filled]
  problems = dict(missing=missing, shape=wrong, unused=left, unfilled=empty)
  if any(problems.values()):
    raise UserError(
      "; ".join(f"{k}: {', '.join(v[:8])}{' ...' * (len(v) > 8)}" for k, v in problems.items() if v)
    )
  return Leaves({path: filled[path] for path in flat}, flat)


def to_ours(
  rules: Sequence[Rule],
  tensors: Tensors,
  like: Any,
  *,
  constants: Tensors | None = None,
  ignore: str = r"$^",
  put: Callable[[str, np.ndarray], Any] = lambda path, x: x,
) -> Any:
  """Their tensors as a tree like `like` (arrays or `jax.ShapeDtypeStruct`s), in its dtypes.

  Leaf by leaf: `put(path, leaf)` says where it goes before the next is put together. `placed(like)`
  sends it to the devices; by default it stays in host memory.

  Raises:
    UserError: see `leaves`, where the other arguments are.
  """
  found = leaves(rules, tensors, like, constants=constants, ignore=ignore)
  return tree.unflatten(like, {path: put(path, found[path]) for path in found})


def placed(like: Any) -> Callable[[str, np.ndarray], jax.Array]:
  """`(path, leaf) -> leaf on the devices`, in the shardings of `like`, the host copy done with."""
  shardings = {path: x.sharding for path, x in tree.flatten(like).items()}

  def put(path: str, x: np.ndarray) -> jax.Array:
    # Not in the memory of a mapped file; one at a time, as the host keeps what is under way.
    return jax.block_until_ready(jax.device_put(x, shardings[path], may_alias=False))

  return put


def _hollow(shape: tuple[int, ...]) -> np.ndarray:
  """Stands for an array of that shape, and takes no memory."""
  return np.broadcast_to(np.float32(0), shape)


def _forward(pattern: str | None, x: np.ndarray) -> np.ndarray:
  """Theirs -> ours; a shape that the pattern does not know stays."""
  try:
    return x if pattern is None else rearrange(x, pattern)
  except EinopsError:
    return x


def _cut(x: np.ndarray, rule: Rule, shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
  """Their tensor along `rule.axis`, in pieces as long as our leaves want them."""
  lengths = [_backward(rule.pattern, _hollow(shape), {}).shape[rule.axis] for shape in shapes]
  if sum(lengths) != x.shape[rule.axis]:
    return [x] * len(shapes)  # the shapes will say so
  return np.split(x, np.cumsum(lengths)[:-1], axis=rule.axis)


def to_theirs(
  rules: Sequence[Rule],
  params: Any,
  *,
  sizes: Mapping[str, int] | None = None,
  constants: Tensors | None = None,
) -> dict[str, np.ndarray]:
  """The way back. `sizes` are the lengths of axes that a pattern merges, e.g. `{"p": 16, "q": 16}`.

  Raises:
    UserError: leaves that no rule writes.
  """
  flat = {path: np.asarray(jax.device_get(x)) for path, x in tree.flatten(params).items()}
  shapes = {path: x.shape for path, x in flat.items()}
  out, written = {}, set()
  for rule in rules:
    for name, slots in _slots(rule, shapes):
      written |= {s.path for s in slots}
      parts = [flat[s.path] if s.index is None else flat[s.path][s.index] for s in slots]
      parts = [_backward(rule.pattern, x, sizes or {}) for x in parts]
      out[name] = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=rule.axis)
  if left := [path for path in flat if path not in written]:
    raise UserError(f"no rule writes {', '.join(left)}")
  out |= constants or {}
  return {name: np.ascontiguousarray(x).reshape(x.shape) for name, x in out.items()}
