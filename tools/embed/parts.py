"""Embeddings on disk: parts, whole or absent, the plan they follow, and the file at the end.

    OUT.parts/plan.json       what is embedded, and how
    OUT.parts/00000.parquet   rows 0 to `part_size` of the input, but for those that are bad

`OUT` ends with .parquet (needs pyarrow) or .npz.
"""

import io
import json
import pathlib
import shutil
from typing import Any, NamedTuple

import numpy as np

from big_vision_like.config import UserError
from big_vision_like.interop import files

MISSING = {"int": -1, "float": np.nan, "str": ""}
"""What npz has in the place of a value that is not there; Parquet has null."""


class Plan(NamedTuple):
  """What decides about the rows. The batch size and the devices do not."""

  input: str
  files: str  # SHA-256 of the names in a folder
  examples: int
  workdir: str
  step: int
  predict: str
  pp: str
  columns: dict[str, str]  # name -> kind
  size: int  # of an embedding
  part_size: int

  @property
  def parts(self) -> int:
    """How many there are."""
    return -(-self.examples // self.part_size)

  def range(self, part: int) -> range:
    """The examples of a part."""
    return range(part * self.part_size, min((part + 1) * self.part_size, self.examples))


class Rows(NamedTuple):
  """Rows of a part in order, and what was left out: {index, path or key, kind, message}."""

  index: list[int]
  columns: dict[str, list[Any]]
  embedding: np.ndarray  # float32 [n, D]
  bad: list[dict[str, Any]]


class Parts:
  """The parts of `out`; made by process 0, read by all.

  Raises:
    UserError: another ending, pyarrow is not there, `out` is there already, or another plan.
  """

  def __init__(self, out: pathlib.Path, plan: Plan, lead: bool = True):
    self.out, self.plan, self.suffix = out, plan, check_out(out)
    self.folder = folder_of(out)
    if lead:
      self._claim()

  def _claim(self) -> None:
    file = self.folder / "plan.json"
    new = json.loads(json.dumps(self.plan._asdict()))
    if not file.exists():
      files.write(file, json.dumps(new, indent=2).encode())
      return
    old = read_json(file)
    for key, now in new.items():
      if old.get(key) != now:
        raise UserError(
          f"{file} was begun with {key} = {old.get(key)!r}, not {now!r}; choose another --out, or "
          "delete the folder"
        )

  def path(self, part: int) -> pathlib.Path:
    """Of a part."""
    return self.folder / f"{part:05d}{self.suffix}"

  def todo(self) -> list[int]:
    """Those that are not there yet."""
    return [k for k in range(self.plan.parts) if not self.path(k).exists()]

  def write(self, part: int, rows: Rows) -> None:
    """The whole part or nothing."""
    encode = _parquet if self.suffix == ".parquet" else _npz
    files.write(self.path(part), encode(rows, self.plan))

  def bad(self, part: int) -> list[dict[str, Any]]:
    """What a finished part left out."""
    if self.suffix == ".npz":
      return json.loads(str(files.load_npz(self.path(part))["bad"]))
    import pyarrow.parquet as pq

    return json.loads(pq.read_schema(self.path(part)).metadata[b"bad"])

  def merge(self) -> tuple[int, list[dict[str, Any]]]:
    """Writes `out`, and `OUT.bad.jsonl` where rows were left out; deletes the parts.

    Returns:
      How many embeddings there are, and what was left out.
    """
    numbers = range(self.plan.parts)
    bad = [row for k in numbers for row in self.bad(k)]
    listing = self.out.with_name(self.out.name + ".bad.jsonl")
    listing.unlink(missing_ok=True)
    if bad:
      files.write(listing, "".join(json.dumps(row) + "\n" for row in bad).encode())
    part = self.out.with_name(self.out.name + ".part")
    merge = _merged_parquet if self.suffix == ".parquet" else _merged_npz
    count = merge([self.path(k) for k in numbers], part, self.plan)
    part.replace(self.out)
    shutil.rmtree(self.folder)
    return count, bad


def folder_of(out: pathlib.Path) -> pathlib.Path:
  """Where the parts of `out` are."""
  return out.with_name(out.name + ".parts")


def check_out(out: pathlib.Path) -> str:
  """The ending of `out`, before anything is computed; raises as `Parts` does."""
  if out.suffix not in (".parquet", ".npz"):
    raise UserError(f"--out {out}: expected a name that ends with .parquet or .npz")
  if out.exists() and not folder_of(out).exists():
    raise UserError(f"--out {out} is there already; delete it, or choose another name")
  if out.suffix == ".parquet":
    try:
      import pyarrow  # noqa: F401
    except ImportError:
      raise UserError(
        "Parquet needs pyarrow: pip install 'big_vision_like[data]'; or --out X.npz"
      ) from None
  return out.suffix


def read_json(file: pathlib.Path) -> Any:
  """Raises `UserError` where it is none."""
  try:
    return json.loads(file.read_text())
  except ValueError:
    raise UserError(f"{file} is not JSON; delete its folder") from None


# ----------------------------------------------------------------------------------------- formats


def _metadata(plan: Plan, **more: Any) -> dict[str, str]:
  return {"big_vision_like": json.dumps(plan._asdict())} | {
    k: json.dumps(v) for k, v in more.items()
  }


def _parquet(rows: Rows, plan: Plan) -> bytes:
  import pyarrow as pa
  import pyarrow.parquet as pq

  types = {"int": pa.int64(), "float": pa.float64(), "str": pa.string()}
  flat = pa.array(np.ascontiguousarray(rows.embedding).reshape(-1), pa.float32())
  arrays = {"index": pa.array(rows.index, pa.int64())}
  arrays |= {k: pa.array(rows.columns[k], types[kind]) for k, kind in plan.columns.items()}
  arrays["embedding"] = pa.FixedSizeListArray.from_arrays(flat, plan.size)
  table = pa.table(arrays).replace_schema_metadata(_metadata(plan, bad=rows.bad))
  out = io.BytesIO()
  pq.write_table(table, out)
  return out.getvalue()


def _merged_parquet(paths: list[pathlib.Path], out: pathlib.Path, plan: Plan) -> int:
  import pyarrow.parquet as pq

  schema = pq.read_schema(paths[0]).with_metadata(_metadata(plan))
  count = 0
  with pq.ParquetWriter(out, schema) as writer:
    for path in paths:  # one at a time: all of them may be larger than the memory
      table = pq.read_table(path).replace_schema_metadata(_metadata(plan))
      writer.write_table(table)
      count += len(table)
  return count


def _npz(rows: Rows, plan: Plan) -> bytes:
  types = {"int": np.int64, "float": np.float64, "str": np.str_}
  arrays = {"index": np.array(rows.index, np.int64)}
  for key, kind in plan.columns.items():
    values = [MISSING[kind] if x is None else x for x in rows.columns[key]]
    arrays[key] = np.array(values, types[kind])
  arrays |= {"embedding": rows.embedding, "bad": np.array(json.dumps(rows.bad))}
  out = io.BytesIO()
  np.savez(out, **arrays)
  return out.getvalue()


def _merged_npz(paths: list[pathlib.Path], out: pathlib.Path, plan: Plan) -> int:
  parts = [files.load_npz(path) for path in paths]
  keys = ["index", *plan.columns, "embedding"]
  arrays = {k: np.concatenate([p[k] for p in parts]) for k in keys}
  with out.open("wb") as f:
    np.savez(f, **arrays, plan=np.array(_metadata(plan)["big_vision_like"]))
  return len(arrays["index"])
