"""Data sets by name: `"digits(split='train')"` -> random access to examples (dicts).

Each function of the files here whose name does not start with `_` is a source: it returns an object
with `__len__` and `__getitem__`. Anything that is missing is a `UserError` when it is opened.
"""

from collections.abc import Callable
from typing import Any, Protocol

from big_vision_like.config import UserError, call, modules, parse_spec, unknown

MODULES = modules(__name__, __path__)


class Source(Protocol):
  """Random access to examples."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> dict[str, Any]: ...


def functions(files: tuple) -> dict[str, Callable]:
  """Public functions defined in those modules, by name."""
  return {
    name: fn
    for module in files
    for name, fn in vars(module).items()
    if callable(fn) and fn.__module__ == module.__name__ and name[0] != "_" and name.islower()
  }


def open_source(spec: str, where: str = "config.input.source") -> Source:
  """Opens `"name(arguments)"`.

  Raises:
    UserError: an unknown name or argument, or data that is not there.
  """
  calls = parse_spec(spec, where)
  if len(calls) != 1:
    raise UserError(f"{where} = {spec!r}; expected one source such as digits(split='train')")
  known = functions(MODULES)
  [(name, args, kwargs)] = calls
  if name not in known:
    raise unknown(where, name, list(known))
  return call(known[name], kwargs, f"{where} {name}", *args)
