"""What a folder of shards holds: the plan it follows, and every finished shard with its checksum.

`SPLIT.manifest.jsonl`: a line with the plan, a line a shard, and, when all are there, the sum.
"""

import hashlib
import json
import pathlib
from typing import Any, NamedTuple

from big_vision_like.config import UserError
from big_vision_like.interop import files

SUFFIX = ".manifest.jsonl"


class Plan(NamedTuple):
  """What is written; a folder's split follows one plan to its end."""

  source: str
  pp: str
  to: str
  name: str
  split: str
  examples: int
  shards: int
  features: dict[str, Any] | None = None  # of TFDS

  def range(self, shard: int) -> range:
    """The source's examples that a shard holds."""
    bounds = (self.examples * (shard + i) // self.shards for i in (0, 1))
    return range(*bounds)


class Manifest:
  """`SPLIT.manifest.jsonl` in `out`.

  Raises:
    UserError: it is there and follows another plan.
  """

  def __init__(self, out: pathlib.Path, plan: Plan):
    self.out, self.plan, self.path = out, plan, out / f"{plan.split}{SUFFIX}"
    self.shards: dict[int, dict[str, Any]] = {}
    if not self.path.exists():
      return
    old, self.shards, _ = read(self.path)
    for key, value in plan._asdict().items():
      if old[key] != value:
        raise UserError(
          f"{self.path} was begun with {key} = {old[key]!r}, not {value!r}; give another --out, or "
          "delete its files"
        )

  def keep_whole_shards(self) -> None:
    """Forgets those that are not as they were written; the others need no second pass."""
    self.shards = {k: s for k, s in self.shards.items() if damage(self.out, s) is None}
    self._write()

  def add(self, shard: int, file: str, examples: int, bad: dict[str, int]) -> None:
    """A shard is there under its name."""
    path, at = self.out / file, self.plan.range(shard)
    row = dict(shard=shard, file=file, first=at.start, stop=at.stop, examples=examples)
    row |= dict(bytes=path.stat().st_size, sha256=checksum(path), bad=bad)
    self.shards[shard] = row
    with self.path.open("a") as f:
      f.write(json.dumps(row) + "\n")

  def done(self) -> None:
    """All shards are there."""
    self._write({"examples": sum(s["examples"] for s in self.shards.values()), "done": True})

  def _write(self, *last: dict[str, Any]) -> None:
    rows = [self.plan._asdict(), *(self.shards[k] for k in sorted(self.shards)), *last]
    files.write(self.path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def read(path: pathlib.Path) -> tuple[dict[str, Any], dict[int, dict[str, Any]], bool]:
  """Plan, shards by number, and whether all are there; a last line that was cut is no line.

  Raises:
    UserError: the file is no manifest.
  """
  rows = []
  for line in path.read_text().splitlines():
    try:
      rows.append(json.loads(line))
    except ValueError:
      break
  if not rows or rows[0].keys() != set(Plan._fields):
    raise UserError(f"{path} does not begin with the plan of a conversion; delete it to begin anew")
  shards = {row["shard"]: row for row in rows[1:] if "shard" in row}
  return rows[0], shards, bool(rows[-1].get("done"))


def checksum(path: pathlib.Path) -> str:
  """SHA-256 of a file, in hexadecimal."""
  with path.open("rb") as f:
    return hashlib.file_digest(f, "sha256").hexdigest()


def damage(out: pathlib.Path, row: dict[str, Any]) -> str | None:
  """What is wrong with a finished shard; None where nothing is."""
  path = out / row["file"]
  if not path.is_file():
    return f"{path}: missing"
  if (size := path.stat().st_size) != row["bytes"]:
    return f"{path}: {size} bytes, {row['bytes']} were written"
  if checksum(path) != row["sha256"]:
    return f"{path}: another SHA-256 than was written"
  return None


def verify(out: pathlib.Path) -> list[str]:
  """Everything that is wrong with the conversions in a folder.

  Raises:
    UserError: there is none.
  """
  paths = sorted(out.glob(f"*{SUFFIX}"))
  if not paths:
    raise UserError(f"--out {out}: no *{SUFFIX} there; it is the folder convert_data wrote")
  found = []
  for path in paths:
    plan, shards, done = read(path)
    found += [text for k in sorted(shards) if (text := damage(out, shards[k]))]
    if not done:
      found.append(f"{path}: {len(shards)} of {plan['shards']} shards; run the conversion again")
  return found
