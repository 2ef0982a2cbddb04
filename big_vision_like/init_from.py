"""Parts of a fresh state from what was trained before: `config.init_from`.

    {"params/image": "runs/a::params/image",            # a part of another run
     "params/text": "hf:DOWNLOADS/siglip",              # a Hugging Face folder, an npz (`foreign`)
     "params": dict(path="runs/b", rename=[("old/(.*)", r"new/\\1")], reinit=["head/.*"],
                    extend=["embedding"], grid=(7, 14))}

Keys are paths in the state. Values are a workdir, a step's folder or what `foreign` reads, after
`::` a path in it. Without one a run is read below the key itself, and a foreign checkpoint below
the longest end of the key that it has: `params/image` finds `image/...` of two towers and all of a
ViT.

    rename   (pattern, new name) of whole names below that path, first match wins
    reinit   what matches stays as it was initialised: heads
    extend   what matches may have more rows here, the further ones as initialised: a vocabulary
    grid     (rows, columns) of the saved positions, where neither config says

Blocks may be stacked (`blocks`) on one side and apart (`block_0`) on the other. Of another size may
be learned positions (bicubic), a text's positions (the first ones), patch kernels
(`resample_patch_kernel`) and relative position biases (geometric, as BEiT before fine-tuning);
grids and patches come from both configs, squares otherwise.
"""

import json
import math
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from big_vision_like import tree
from big_vision_like.checkpoint import below, load
from big_vision_like.config import UserError, call
from big_vision_like.layers.patch_embed import resample_patch_kernel
from big_vision_like.layers.pos_embed import resample_pos_embed, resample_rel_pos_bias

Pair = tuple[int, int]
Arrays = Mapping[str, np.ndarray]
Resample = Callable[[str, np.ndarray, tuple[int, ...]], np.ndarray | None]


class _Entry(NamedTuple):
  """The keys that one entry may have."""

  path: str
  rename: Sequence[tuple[str, str]] = ()
  reinit: Sequence[str] = ()
  extend: Sequence[str] = ()
  grid: Pair | None = None


def init_from(
  state: Any,
  spec: Mapping[str, Any],
  loader: Callable[[str, str], Arrays] = load,
  resample: Resample | None = None,
  *,
  foreign: Callable[[str], Any] | None = None,
  config: Mapping[str, Any] | None = None,
) -> tuple[Any, str]:
  """The state with what `spec` (see above) brings, leaf by leaf, in its own dtypes and shardings.

  Args:
    state: with its arrays.
    spec: `config.init_from`.
    loader: `(path, prefix) -> {path below prefix: array}` of a run.
    resample: `(path in the state, saved array, shape wanted) -> array or None`, asked first where
      shapes differ.
    foreign: `path -> an object with arrays and config, or None` where it is a run.
    config: of the state's model, for grids and patches.

  Returns:
    The state, and a table of what was taken, left at its initialisation, and not used.

  Raises:
    UserError: a shape that differs and is not under `reinit`, two saved names renamed to one, a bad
      key or pattern, or nothing was taken.
  """
  flat, lines = dict(tree.flatten(state)), []
  here = _Sizes(config or {})
  for target, value in spec.items():
    where = f"config.init_from[{target!r}]"
    value = {"path": value} if isinstance(value, str) else value
    if not isinstance(value, Mapping):
      raise UserError(f"{where} = {value!r}; expected 'DIR::path' or dict(path='DIR::path', ...)")
    entry = call(_Entry, value, where)
    path, _, prefix = entry.path.partition("::")
    arrays, there = _open(path, prefix, target, loader, foreign)
    try:
      saved = _Saved(arrays, entry.rename, where)
      fits = lambda patterns, name: tree.first_match(patterns, name) is not None
      keep = [n for n in flat if fits(entry.reinit, n)]
      grow = [n for n in flat if fits(entry.extend, n)]
    except re.error as e:
      raise UserError(f"{where}: {e.pattern!r} is not a regular expression: {e}") from None
    sizes = _Sizes(there, entry.grid), here
    names = {short: n for n in flat if (short := below(target, n)) is not None}
    taken = 0
    for short, name in names.items():
      old = flat[name]
      if name in keep:
        lines.append(f"left   {name} (reinit)")
        continue
      if (found := saved.find(short)) is None:
        lines.append(f"left   {name} (not in {path})")
        continue
      array, note = found
      if array.shape != old.shape:
        was, new = array.shape, resample(name, array, old.shape) if resample else None
        if new is None and name in grow and _grows(was, old.shape):
          new, how = _extended(old, array), "extended"
        elif new is None:
          new, how = _resampled(name, array, old.shape, *sizes, names=flat), "resampled"
        else:
          how = "resampled"
        if new is None or new.shape != old.shape:
          raise UserError(
            f"{where}: {name} has shape {old.shape}, {path} has {was}; "
            f"add {name!r} to reinit, or change the model"
          )
        array, note = new, f"{note} ({how} from {was})"
      put = jax.device_put(array.astype(old.dtype), old.sharding)
      flat[name] = jax.block_until_ready(put)  # what is under way is kept on the host too
      taken += 1
      lines.append(f"taken  {name}{note}")
    if not taken:
      raise UserError(f"{where}: nothing of {path}::{prefix or target} fits {target}")
    lines += [f"unused {path}: {name}" for name in saved.unused()]
  return tree.unflatten(state, flat), "\n".join(lines)


def told(table: str, limit: int = 40) -> str:
  """The table for the terminal: what was taken as it is is counted, all else is named."""
  changed = re.compile(r"\((renamed|resampled|extended) from")
  plain = {x for x in table.splitlines() if x.startswith("taken") and not changed.search(x)}
  rest = [x for x in table.splitlines() if x not in plain]
  more = [f"... and {len(rest) - limit} more in init_from.txt"] if len(rest) > limit else []
  head = f"init_from: {len(plain)} parameters taken as they are"
  return "\n".join([head, *(f"  {x}" for x in rest[:limit] + more)])


# ----------------------------------------------------------------------------------------- sources


def _open(
  path: str, prefix: str, target: str, loader: Callable, foreign: Callable | None
) -> tuple[Arrays, Mapping[str, Any]]:
  """(arrays by the path below the prefix, config) of a run or a foreign checkpoint."""
  source = foreign(path) if foreign else None
  if source is None:
    found = loader(path, prefix or target)
    at = pathlib.Path(path)
    for folder in (at, at.parent.parent):  # a workdir, or a step in its checkpoints
      try:
        return found, json.loads((folder / "config.json").read_text())
      except (OSError, ValueError):
        continue
    return found, {}
  parts = target.split("/")
  tries = [prefix] if prefix else ["/".join(parts[i:]) for i in range(len(parts) + 1)]
  for at in tries:
    names = {short: n for n in source.arrays if (short := below(at, n)) is not None}
    if names:
      return _View(source.arrays, names), source.config
  raise UserError(f"config.init_from[{target!r}]: {path} has nothing below {prefix!r}")


class _View(Mapping[str, np.ndarray]):
  """A part of `arrays` under other names; none is put together before it is asked for."""

  def __init__(self, arrays: Arrays, names: Mapping[str, str]):
    self._arrays, self._names = arrays, names

  def __getitem__(self, name: str) -> np.ndarray:
    return self._arrays[self._names[name]]

  def __iter__(self) -> Iterator[str]:
    return iter(self._names)

  def __len__(self) -> int:
    return len(self._names)


class _Saved:
  """Saved arrays by their new names, found whether blocks are stacked there or apart."""

  def __init__(self, arrays: Arrays, rules: Sequence[tuple[str, str]], where: str):
    self._arrays, self._used = arrays, set()
    self._last: tuple[str | None, Any] = (None, None)
    self._names: dict[str, str] = {}  # new name -> saved name
    for name in arrays:
      found = ((re.fullmatch(pattern, name), goal) for pattern, goal in rules)
      new = next((match.expand(goal) for match, goal in found if match), name)
      if new in self._names:
        was = self._names[new]
        raise UserError(f"{where}: rename gives {was!r} and {name!r} the one name {new!r}")
      self._names[new] = name

  def find(self, short: str) -> tuple[np.ndarray, str] | None:
    """(array, what to say of it) for the leaf `short`, or None."""
    if short in self._names:
      source = self._names[short]
      return self._get(short), "" if source == short else f" (renamed from {source})"
    if block := re.search(r"(?:^|(?<=/))block_(\d+)/", short):
      stack = f"{short[: block.start()]}blocks/{short[block.end() :]}"
      if stack in self._names:
        return self._get(stack)[int(block[1])], f" (row of {stack})"
    if "blocks/" in short:
      apart = []
      while (name := short.replace("blocks/", f"block_{len(apart)}/")) in self._names:
        apart.append(self._get(name))
      if apart:
        return np.stack(apart), f" (stack of {len(apart)} blocks)"
    return None

  def _get(self, new: str) -> np.ndarray:
    """The last one is kept: the rows of a stack are asked for one after the other."""
    self._used.add(new)
    if self._last[0] != new:
      self._last = new, self._arrays[self._names[new]]
    return self._last[1]

  def unused(self) -> list[str]:
    return sorted(name for new, name in self._names.items() if new not in self._used)


# -------------------------------------------------------------------------------------- resampling


class _Sizes:
  """Grids and patches that a config speaks of, ours or theirs: `patch_size` and `image_size`."""

  def __init__(self, config: Mapping[str, Any], grid: Pair | None = None):
    self.patches: list[Pair] = []
    self.grids: dict[int, Pair] = {} if grid is None else {math.prod(grid): tuple(grid)}
    self._look(config)

  def _look(self, node: Any) -> None:
    if not isinstance(node, Mapping):
      return
    pair = lambda x: tuple(x) if isinstance(x, (list, tuple)) else (x, x)
    patch, _, named = None, *str(node.get("variant", "")).partition("/")[1:]
    if node.get("patch_size"):
      patch = pair(node["patch_size"])
    elif named.isdigit():
      patch = pair(int(named))
    if patch is not None and all(isinstance(n, int) and n > 0 for n in patch):
      size = pair(node.get("image_size") or 224)
      grid = tuple(int(n) // p for n, p in zip(size, patch))
      self.patches.append(patch)
      self.grids.setdefault(math.prod(grid), grid)
    for value in node.values():
      self._look(value)

  def grid(self, count: int) -> Pair | None:
    """Of so many patches: as a config has it, else a square."""
    side = math.isqrt(count)
    return self.grids.get(count, (side, side) if side * side == count else None)

  def table(self, rows: int, extra: int) -> Pair | None:
    """The grid whose relative positions are so many."""
    for grid in self.grids.values():
      if (2 * grid[0] - 1) * (2 * grid[1] - 1) + extra == rows:
        return grid
    side = math.isqrt(max(rows - extra, 0))
    return ((side + 1) // 2,) * 2 if side * side == rows - extra and side % 2 else None


def _resampled(
  name: str,
  x: np.ndarray,
  shape: tuple[int, ...],
  old: _Sizes,
  new: _Sizes,
  *,
  names: Mapping[str, Any],
) -> np.ndarray | None:
  """`x` in another shape, by what `name` says it is; None where it is nothing that can be."""
  leaf, parent = name.rsplit("/", 1)[-1], name.rpartition("/")[0]
  if x.ndim != len(shape) or x.shape[-1] != shape[-1]:
    return None
  if leaf == "pos_embed" and f"{parent}/embed/embedding" in names:
    return x[: shape[0]] if x.shape[0] > shape[0] else None
  if leaf == "pos_embed" and x.ndim == 2:
    a, b = old.grid(x.shape[0]), new.grid(shape[0])
    return None if a is None or b is None else np.asarray(resample_pos_embed(x, a, b))
  if name.endswith("patch_embed/proj/kernel"):
    for a, b in _patch_pairs(x.shape[0], shape[0], old, new):
      return resample_patch_kernel(x, a, b)
  if name.endswith("rel_pos_bias/table"):
    if x.ndim == 3 and x.shape[0] == shape[0]:  # of all layers
      rows = [_resampled(name, row, shape[1:], old, new, names=names) for row in x]
      return None if rows[0] is None else np.stack(rows)
    a, b = old.table(x.shape[0], 3), new.table(shape[0], 3)
    if a is not None and b is not None:
      return np.asarray(resample_rel_pos_bias(x, a, b, "geometric"))
  return None


def _patch_pairs(old_rows: int, new_rows: int, old: _Sizes, new: _Sizes) -> Iterator[tuple]:
  """(old patch, new patch) with as many channels, as the configs have them, then squares."""

  def options(rows: int, sizes: _Sizes) -> dict[int, Pair]:
    out: dict[int, Pair] = {}  # channels -> patch
    for patch in sizes.patches:
      if rows % math.prod(patch) == 0:
        out.setdefault(rows // math.prod(patch), patch)
    for channels in (3, 1):
      side = math.isqrt(rows // channels)
      if side * side * channels == rows:
        out.setdefault(channels, (side, side))
    return out

  first, second = options(old_rows, old), options(new_rows, new)
  yield from ((first[c], second[c]) for c in first if c in second)


def _grows(old: tuple[int, ...], new: tuple[int, ...]) -> bool:
  return len(old) == len(new) > 0 and old[0] < new[0] and old[1:] == new[1:]


def _extended(fresh: jax.Array, saved: np.ndarray) -> jax.Array:
  """`fresh` with its first rows from `saved`, where it lies."""
  rows = np.asarray(saved, fresh.dtype)
  fill = jax.jit(lambda x, y: x.at[: len(y)].set(y), out_shardings=fresh.sharding)
  return fill(fresh, rows)
