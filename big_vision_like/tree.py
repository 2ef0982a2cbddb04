"""Pytrees by path: the one regex semantics behind sharding, learning rates, decay and freezing."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from big_vision_like.config import UserError

PyTree = Any


def path_name(path: tuple) -> str:
  """`(GetAttrKey("params"), DictKey("kernel"))` -> `"params/kernel"`."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def flatten(tree: PyTree) -> dict[str, Any]:
  """`{path: leaf}` in tree order; paths are joined by `/`."""
  return {path_name(p): x for p, x in jax.tree_util.tree_flatten_with_path(tree)[0]}


def unflatten(like: PyTree, leaves: Mapping[str, Any]) -> PyTree:
  """The structure of `like` with the leaves of `leaves`, matched by path."""
  return map_with_name(lambda name, _: leaves[name], like)


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
  """`{"a/b": x}` -> `{"a": {"b": x}}`."""
  out: dict[str, Any] = {}
  for name, leaf in flat.items():
    *parents, last = name.split("/")
    node = out
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = leaf
  return out


def find(pattern: str, names: Iterable[str], where: str, what: str = "parameter") -> list[str]:
  """Those of the paths `names` that match.

  Raises:
    UserError: none does, or it is not a regular expression; `where` begins the message.
  """
  names = list(names)
  try:
    found = [name for name in names if matches(pattern, name)]
  except re.error as e:
    raise UserError(f"{where}: {pattern!r} is not a regular expression: {e}") from None
  if not found:
    some = ", ".join(names[:3])
    raise UserError(f"{where}: {pattern!r} matches no {what}; paths are such as {some}")
  return found


def average(old: PyTree, new: PyTree, keep: Any) -> PyTree:
  """`keep * old + (1 - keep) * new` of all leaves, in the dtypes of `old`: a moving average."""
  return jax.tree.map(lambda o, n: (keep * o + (1 - keep) * n).astype(o.dtype), old, new)


def map_with_name(fn: Callable, tree: PyTree, *rest: PyTree) -> PyTree:
  """`jax.tree.map` whose function receives the leaf's path first."""
  return jax.tree_util.tree_map_with_path(lambda p, *xs: fn(path_name(p), *xs), tree, *rest)


def matches(pattern: str, name: str) -> bool:
  """Whether `pattern` matches whole path components of `name` up to its end.

  `kernel` matches `a/kernel`, not `a/kernel2` and not `a/kernel/b`; `a/.*` matches all below `a`.
  """
  return re.search(rf"(?:^|/)(?:{pattern})$", name) is not None


def first_match(patterns: Sequence[str], name: str) -> int | None:
  """Index of the first pattern that matches `name`, or None: first match wins, everywhere."""
  return next((i for i, p in enumerate(patterns) if matches(p, name)), None)


def mask(tree: PyTree, pattern: str) -> PyTree:
  """Booleans in the structure of `tree`: True where the path matches."""
  return map_with_name(lambda name, _: matches(pattern, name), tree)


def num_params(tree: PyTree) -> int:
  """Number of scalars in the tree (arrays or `jax.ShapeDtypeStruct`s)."""
  return sum(x.size for x in jax.tree.leaves(tree))


def num_bytes(tree: PyTree) -> int:
  """Bytes of the tree's leaves, not divided by any sharding."""
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
