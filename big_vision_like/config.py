"""Experiment configs: views that remember what was read, the spec language, durations, names.

Everything a user can get wrong ends here as a `UserError`: one line that says the key, the value
found and what would be right. `tools` and `train` print it and exit with code 2 (`run_main`).
"""

import ast
import difflib
import importlib
import inspect
import math
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple


class UserError(ValueError):
  """A mistake of the user, in one line: key or file, value found, what would be right."""


def run_main(main: Callable[[], Any]) -> None:
  """Runs a command line entry; a `UserError` becomes one line on stderr and exit code 2."""
  try:
    code = main()
  except UserError as e:
    print("error: " + " ".join(str(e).split()), file=sys.stderr)
    code = 2
  sys.exit(code)


def parse_flags(values: Any, argv: Sequence[str], usage: str, needed: Sequence[str]) -> None:
  """absl's `values(argv)` with a `--config` of ml_collections; `needed` flags have no default.

  Raises:
    UserError: whatever is wrong with the flags, or with the config file.
  """
  names = list(values)
  try:
    rest = values(argv)
    if values["config"].value is not None:
      values["config"].value.to_dict()  # a file that is not there is noticed only now
  except Exception as e:  # a config file may raise anything
    raise UserError(_flag_error(e)) from None
  if len(rest) > 1:
    raise UserError(f"unknown argument {rest[1]!r}; flags are --{', --'.join(names)}")
  for name in needed:
    if values[name].value is None:
      raise UserError(f"--{name} is missing; {usage}")


def _flag_error(e: Exception) -> str:
  """What ml_collections has to say, without its wrapping."""
  while len(e.args) == 1 and isinstance(e.args[0], Exception):
    e = e.args[0]
  text = str(e.args[0] if len(e.args) == 1 else e).strip() or type(e).__name__
  if isinstance(e, (KeyError, AttributeError)):
    return f"--config has no key {text}"
  # Where it prints a traceback, the last line says what is wrong.
  return text.splitlines()[-1] if "Traceback" in text else text


# ---------------------------------------------------------------------------------------- config


class Config(Mapping):
  """Read-only view of a nested dict that records which leaves were read.

  `cfg.key` and `cfg["key"]` raise `UserError` where the key is missing, `cfg.get(key, default)`
  does not. `**cfg` counts as reading all of it. `unread()` lists the paths nobody asked for: a key
  that changes nothing is a mistake the user should hear about.

  `durations` is there from the time on when the length of the run is known, in all views below.
  """

  def __init__(
    self,
    data: Mapping[str, Any],
    path: str = "config",
    seen: set[str] | None = None,
    durations: "Durations | None" = None,
  ):
    object.__setattr__(self, "_data", dict(data))
    object.__setattr__(self, "_path", path)
    object.__setattr__(self, "_seen", set() if seen is None else seen)
    object.__setattr__(self, "durations", durations)

  def _wrap(self, key: str) -> Any:
    value, path = self._data[key], f"{self._path}.{key}"
    if isinstance(value, Mapping):
      if not value:
        self._seen.add(path)
      return Config(value, path, self._seen, self.durations)
    self._seen.add(path)
    return value

  def __getitem__(self, key: str) -> Any:
    if key not in self._data:
      raise UserError(f"{self._path}.{key} is missing; keys there: {', '.join(self._data) or '-'}")
    return self._wrap(key)

  def __getattr__(self, key: str) -> Any:
    if key.startswith("__"):  # copy, pickle and inspect probe for these
      raise AttributeError(key)
    return self[key]

  def __setattr__(self, key: str, value: Any) -> None:
    raise AttributeError(f"{self._path} is read-only; change the config file or the command line")

  def get(self, key: str, default: Any = None) -> Any:
    if key in self._data:
      return self._wrap(key)
    return Config(default, f"{self._path}.{key}", set()) if isinstance(default, dict) else default

  def __iter__(self) -> Iterator[str]:
    return iter(self._data)

  def __len__(self) -> int:
    return len(self._data)

  def __contains__(self, key: object) -> bool:
    return key in self._data

  def __repr__(self) -> str:
    return f"Config({self._path}: {self._data})"

  def timed(self, durations: "Durations") -> "Config":
    """The same view, which now knows how long the run is; reads count for both."""
    return Config(self._data, self._path, self._seen, durations)

  @property
  def path(self) -> str:
    """Where this view sits, e.g. `config.model.image`; for error messages."""
    return self._path

  def to_dict(self) -> dict[str, Any]:
    """A plain nested dict; does not count as reading."""
    return {
      k: Config(v, seen=set()).to_dict() if isinstance(v, Mapping) else v
      for k, v in self._data.items()
    }

  def read_all(self) -> dict[str, Any]:
    """A plain nested dict; every leaf counts as read."""
    return {k: v.read_all() if isinstance(v, Config) else v for k, v in self.items()}

  def unread(self) -> list[str]:
    """Paths of leaves below this view that nothing has read."""
    out = []
    for key, value in self._data.items():
      path = f"{self._path}.{key}"
      if isinstance(value, Mapping) and value:
        out += Config(value, path, self._seen).unread()
      elif path not in self._seen:
        out.append(path)
    return out


def wrap(config: Any) -> Config:
  """A `Config` from a `Config`, a dict or an `ml_collections.ConfigDict`."""
  if isinstance(config, Config):
    return config
  return Config(config.to_dict() if hasattr(config, "to_dict") else config)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """`{"a": {"b": 1}}` -> `{"a.b": 1}`; for comparing two configs key by key."""
  out = {}
  for key, value in config.items():
    if isinstance(value, Mapping) and value:
      out.update(flatten(value, f"{prefix}{key}."))
    else:
      out[prefix + key] = value
  return out


def replaced(node: Any, **values: Any) -> Any:
  """A nested dict in which each of these keys, wherever it stands, has this value."""
  if not isinstance(node, Mapping):
    return node
  return {k: values[k] if k in values else replaced(v, **values) for k, v in node.items()}


def number(cfg: Config, key: str, *default: float | None, above: float | None = None) -> Any:
  """`cfg[key]`, a finite number >= 0, or > `above`; `default` where the key is missing."""
  value = cfg.get(key, *default) if default else cfg[key]
  if value is None and default == (None,):
    return None
  is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
  if (
    not is_number or not math.isfinite(value) or value < 0 or (above is not None and value <= above)
  ):
    bound = ">= 0" if above is None else f"> {above}"
    raise UserError(f"{cfg.path}.{key} = {value!r}; expected a number {bound}")
  return value


def whole_number(value: Any, what: str, low: int | None = None) -> int:
  """`value`, an int that is at least `low`, or positive; `what` begins the message."""
  if isinstance(value, bool) or not isinstance(value, int) or value < (1 if low is None else low):
    bound = "a positive whole number" if low is None else f"a whole number >= {low}"
    raise UserError(f"{what} = {value!r}; expected {bound}")
  return value


# ----------------------------------------------------------------------------------------- names


def unknown(what: str, name: str, known: Sequence[str]) -> UserError:
  """The error for a name that is not one of `known`: nearest ones first, then a list if short."""
  near = difflib.get_close_matches(str(name), list(known), n=3, cutoff=0.5)
  hint = f"did you mean {' or '.join(near)}? " if near else ""
  every = f"known: {', '.join(sorted(known))}" if len(known) <= 40 or not near else ""
  return UserError(f"{what} {name!r} is unknown; {hint}{every}".rstrip())


def find_module(package: str, name: str, what: str) -> ModuleType:
  """Imports `big_vision_like.<package>.<name>`: the file name is the registry.

  Files whose name starts with an underscore are helpers and not in it.
  """
  full = f"big_vision_like.{package}"
  names = (m.name for m in pkgutil.iter_modules(importlib.import_module(full).__path__))
  known = [n for n in names if not n.startswith("_")]
  if name not in known:
    raise unknown(what, name, known)
  return importlib.import_module(f"{full}.{name}")


def modules(package: str, path: Sequence[str]) -> tuple[ModuleType, ...]:
  """All modules of a package, by name; for packages whose files are a registry."""
  names = sorted(m.name for m in pkgutil.iter_modules(path))
  return tuple(importlib.import_module(f"{package}.{name}") for name in names)


def call(fn: Callable, kwargs: Mapping[str, Any], where: str, /, *args: Any, **extra: Any) -> Any:
  """`fn(*args, **extra, **kwargs)`, where a key of `kwargs` that `fn` lacks is a `UserError`."""
  params = inspect.signature(fn).parameters
  if not any(p.kind is p.VAR_KEYWORD for p in params.values()):
    named = [n for n, p in params.items() if p.kind is p.POSITIONAL_OR_KEYWORD][len(args) :]
    named += [n for n, p in params.items() if p.kind is p.KEYWORD_ONLY]
    known = [n for n in named if n not in extra]
    for key in kwargs:
      if key not in known:
        raise unknown(f"{where}: key", key, known)
  try:
    inspect.signature(fn).bind(*args, **extra, **kwargs)
  except TypeError as e:
    raise UserError(f"{where}: {e}") from None
  return fn(*args, **extra, **kwargs)


# ---------------------------------------------------------------------------------- spec language


class Call(NamedTuple):
  """One `name(args, key=value)` of a spec string."""

  name: str
  args: tuple
  kwargs: dict[str, Any]

  def __str__(self) -> str:
    args = [repr(a) for a in self.args] + [f"{k}={v!r}" for k, v in self.kwargs.items()]
    return f"{self.name}({', '.join(args)})" if args else self.name


def parse_spec(text: str, where: str) -> list[Call]:
  """`"decode|resize(224)|shard(-1, tensor)"` -> calls, in order. Literals and bare words only.

  One language for preprocessing ops, data sources, sharding tactics and parameter boxes. Parsed as
  a Python expression with `ast`, never evaluated; a bare word is its own string.
  """
  if not isinstance(text, str):
    raise UserError(f"{where}: expected a string such as 'name(1)|other', found {text!r}")
  if not text.strip():
    return []
  try:
    tree = ast.parse(text.strip(), mode="eval").body
    return [_call(node, text, where) for node in _split_or(tree)]
  except UserError:
    raise
  except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
    raise UserError(f"{where}: cannot parse {text!r}; write 'name|name(1, key=2)'") from None


def _split_or(node: ast.expr) -> list[ast.expr]:
  if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
    return _split_or(node.left) + _split_or(node.right)
  return [node]


def _dotted(node: ast.expr) -> str | None:
  if isinstance(node, ast.Name):
    return node.id
  if isinstance(node, ast.Attribute) and (left := _dotted(node.value)):
    return f"{left}.{node.attr}"
  return None


def _call(node: ast.expr, text: str, where: str) -> Call:
  def value(arg: ast.expr) -> Any:
    if (word := _dotted(arg)) is not None:
      return word
    try:
      return ast.literal_eval(arg)
    except ValueError:
      raise UserError(
        f"{where}: {ast.unparse(arg)!r} in {text!r} is not a number, string, tuple or name"
      ) from None

  fn, args, kwargs = node, [], []
  if isinstance(node, ast.Call):
    fn, args, kwargs = node.func, node.args, node.keywords
  name = _dotted(fn)
  if name is None or any(k.arg is None for k in kwargs):
    raise UserError(f"{where}: {ast.unparse(node)!r} in {text!r} is not of the form name(1, key=2)")
  names = [k.arg for k in kwargs]
  if twice := [n for n in names if names.count(n) > 1]:
    raise UserError(f"{where}: {name} in {text!r} has the key {twice[0]} twice")
  return Call(name, tuple(value(a) for a in args), {k.arg: value(k.value) for k in kwargs})


# -------------------------------------------------------------------------------------- durations


class Durations:
  """Reads a duration given as steps, epochs, examples or percent of the run, returns steps.

  `durations(cfg, "warmup")` looks for `warmup_steps`, `warmup_epochs`, `warmup_examples`,
  `warmup_percent` (0 to 100). `num_examples` is an epoch; it may be None (endless sources).
  """

  UNITS = ("steps", "epochs", "examples", "percent")

  def __init__(self, batch_size: int, num_examples: int | None, total_steps: int | None = None):
    self.batch_size, self.num_examples, self.total_steps = batch_size, num_examples, total_steps

  def __call__(self, cfg: Mapping[str, Any], name: str, default: int | None = None) -> int | None:
    keys = [f"{name}_{u}" for u in self.UNITS if f"{name}_{u}" in cfg]
    where = f"{getattr(cfg, 'path', 'config')}.{name}"
    if len(keys) > 1:
      raise UserError(f"{where} is given {len(keys)} times ({', '.join(keys)}); give one of them")
    if not keys:
      return default
    key, value = keys[0], cfg[keys[0]]
    if value is None:
      return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
      raise UserError(f"{where[: -len(name)]}{key} = {value!r}; expected a number >= 0")
    unit = key.rsplit("_", 1)[1]
    if unit == "steps":
      return int(value)
    if unit == "examples":
      return math.ceil(value / self.batch_size)
    if unit == "epochs":
      if self.num_examples is None:
        raise UserError(f"{where[: -len(name)]}{key}: the source is endless; give {name}_steps")
      return math.ceil(value * self.num_examples / self.batch_size)
    if self.total_steps is None:
      raise UserError(f"{where[: -len(name)]}{key}: percent needs config.total_steps")
    return round(value / 100 * self.total_steps)
