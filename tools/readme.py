"""README's tables that are written by tools: the rows between two markers."""

import pathlib

from big_vision_like.config import UserError

ROOT = pathlib.Path(__file__).parents[1]


def filled(readme: str, rows: str, begin: str, end: str) -> str:
  """`readme` with `rows` between its markers.

  Raises:
    UserError: the markers are not there, each once and in order.
  """
  at, until = readme.find(begin), readme.find(end)
  if readme.count(begin) != 1 or readme.count(end) != 1 or at > until:
    raise UserError(f"README.md needs the line {begin!r} and then {end!r}, each once")
  return f"{readme[:at]}{begin}\n{rows}\n{readme[until:]}"


def write(
  root: pathlib.Path, rows: str, begin: str, end: str, *, stale: str, check: bool = False
) -> int:
  """Writes `rows` into README.md; with `check` only says `stale` where they differ.

  Returns:
    The exit code: 1 where it is stale.
  """
  file = root / "README.md"
  old = file.read_text()
  new = filled(old, rows, begin, end)
  if not check:
    file.write_text(new)
    return 0
  if old != new:
    print(f"README.md's {stale}")
  return int(old != new)


def row(*cells: str) -> str:
  """A row of a Markdown table."""
  return "| " + " | ".join(c.replace("|", r"\|") for c in cells) + " |"
