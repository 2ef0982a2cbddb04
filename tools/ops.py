"""What `config.input` can name: python -m tools.ops [NAME] [--sources] [--readme [--check]]

All ops with their arguments, first line and file; or, with NAME, the whole docstring of the op,
source, packer or op of `config.augment` of that name. `--sources` lists sources and packers.
`--readme` writes the tables of schema, sources and ops into README.md; with `--check` it only says
whether they are current (exit code 1 where not).
"""

import argparse
import inspect
import pathlib
from collections.abc import Callable

from big_vision_like.config import UserError, run_main, unknown
from big_vision_like.input import ops, packing, schema, sources
from tools import readme

BEGIN = "<!-- input: written by python -m tools.ops --readme -->"
END = "<!-- end of input -->"


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("name", nargs="?", help="one op, source or packer, with its whole docstring")
  parser.add_argument("--sources", action="store_true", help="list sources and packers instead")
  parser.add_argument("--readme", action="store_true", help="write the tables of README.md")
  parser.add_argument("--check", action="store_true", help="with --readme: write nothing")
  args = parser.parse_args(argv)
  if args.check and not args.readme:
    raise UserError("--check is for --readme")
  if args.readme:
    stale = "tables of input are stale; run python -m tools.ops --readme"
    return readme.write(readme.ROOT, tables(), BEGIN, END, stale=stale, check=args.check)
  if args.name:
    print(found(args.name))
  elif args.sources:
    print(listed(known_sources()), listed(packers()), sep="\n\n")
  else:
    print(listed(known_ops()))
  return 0


def known_ops() -> dict[str, Callable]:
  """The ops of `config.input.pp`, file by file."""
  return sources.functions(ops.MODULES)


def known_sources() -> dict[str, Callable]:
  """What `config.input.source` can name."""
  return sources.functions(sources.MODULES)


def packers() -> dict[str, Callable]:
  """What `config.input.pack` can name."""
  return dict(packing.PACKERS)


def signature(name: str, fn: Callable) -> str:
  """`resize(height, width=None, method='bilinear')`: defaults, no types."""
  parameters = inspect.signature(fn).parameters.values()
  plain = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
  return f"{name}{inspect.Signature(plain)}"


def first_line(fn: Callable) -> str:
  """Of its docstring."""
  return (inspect.getdoc(fn) or "").partition("\n")[0]


def place(fn: Callable) -> str:
  """Its file, from the root of the project."""
  return str(pathlib.Path(inspect.getfile(fn)).relative_to(readme.ROOT))


def listed(functions: dict[str, Callable]) -> str:
  """For a terminal."""
  return "\n".join(
    f"{signature(name, fn)}  [{place(fn)}]\n    {first_line(fn)}" for name, fn in functions.items()
  )


def tables() -> str:
  """What README.md says of input: the schema, the sources, and the ops by their files."""
  named = [readme.row(f"`{n}`", first_line(fn)) for n, fn in (known_sources() | packers()).items()]
  by_file: dict[str, list[str]] = {}
  for name, fn in known_ops().items():
    by_file.setdefault(pathlib.Path(place(fn)).name, []).append(f"`{name}`")
  files = [readme.row(f"`{file}`", ", ".join(names)) for file, names in by_file.items()]
  return "\n".join(
    [
      *(schema.table(), "| source or packer | gives |", "|---|---|", *named),
      *("", "| file in `input/ops/` | ops |", "|---|---|", *files),
    ]
  )


def found(name: str) -> str:
  """Everything of that name, with its docstring.

  Raises:
    UserError: there is nothing.
  """
  from big_vision_like import augment

  kinds = {
    "op": known_ops(),
    "source": known_sources(),
    "packer": packers(),
    "op of config.augment": augment.OPS,
  }
  if not any(name in functions for functions in kinds.values()):
    raise unknown("op or source", name, [n for functions in kinds.values() for n in functions])
  return "\n\n".join(
    f"{signature(name, fn[name])}  ({kind}, {place(fn[name])})\n\n{inspect.getdoc(fn[name])}"
    for kind, fn in kinds.items()
    if name in fn
  )


if __name__ == "__main__":
  run_main(main)
