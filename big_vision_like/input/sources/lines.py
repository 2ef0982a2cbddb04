"""Image-text pairs in text files: tables (csv, tsv) and JSON lines, read by row number."""

import csv
import functools
from typing import Any

import numpy as np

from big_vision_like.config import UserError, unknown
from big_vision_like.input import paths
from big_vision_like.input.bad import BadExample
from big_vision_like.input.formats import rows


def _is_number(text: str) -> bool:
  return text.strip().removeprefix("-").isdecimal()


class _Table:
  def __init__(self, found: rows.Rows, root: str, tsv: bool, columns: dict[str, str], cache: str):
    self.rows, self.tsv = found, tsv
    self.roots = rows.roots(root, found.files, "source table")
    self.at = [
      self._columns(header, file, columns) for header, file in zip(found.headers, found.files)
    ]
    self.classes = self._classes(cache) if "label" in columns else []
    self.labels = {name: i for i, name in enumerate(self.classes)}

  def _columns(self, header: str, file: str, columns: dict[str, str]) -> dict[str, int]:
    """Key of the example -> number of its column."""
    names = [name.strip() for name in rows.cells(header, self.tsv, file)]
    for column in columns.values():
      if column not in names:
        raise unknown(f"source table: {file}: column", column, names)
    return {key: names.index(column) for key, column in columns.items()}

  def _classes(self, cache: str) -> list[str]:
    """Names of the labels, sorted; none where all of them are numbers."""
    found: set[str] = set()
    for file, at in zip(self.rows.files, self.at):
      make = functools.partial(_different, tsv=self.tsv, column=at["label"])
      kind = f"column-{at['label']}"
      [index] = paths.cached_index([file], make, kind, "source table", cache)
      found |= set(index["values"].tolist())
    return [] if all(map(_is_number, found)) else sorted(found)

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, index: int) -> dict[str, Any]:
    file, line = self.rows[index]
    where = f"row {index} of {self.rows.files[file]}"
    row, at = rows.cells(line, self.tsv, where), self.at[file]
    if len(row) <= max(at.values()):
      raise BadExample("broken line", f"{where}: {len(row)} cells, fewer than the header has")
    out: dict[str, Any] = {key: row[column] for key, column in at.items()}
    if "image" in out:
      out["image"] = rows.picture(out["image"], self.roots[file], where)
    if "label" in out:
      out["label"] = self.labels[out["label"]] if self.labels else int(out["label"])
    return out


def _different(file: str, tsv: bool, column: int) -> dict[str, np.ndarray]:
  """The different values of a column, sorted; what is not UTF-8 is replaced."""
  with paths.open_file(file, "source table") as data:
    lines = (line.decode("utf-8", "replace").replace("\r\n", "\n") for line in data)
    found = (line.rstrip("\n").split("\t") for line in lines) if tsv else csv.reader(lines)
    found = (row for row in found if any(row))
    next(found, None)  # the header
    values = {row[column] for row in found if len(row) > column}
  return {"values": np.array(sorted(values), str)}


def table(
  path: str,
  root: str = "",
  image: str = "image",
  text: str = "text",
  label: str = "",
  allow_missing_shards: bool = False,
  cache: str = "",
) -> _Table:
  """Rows of .csv or .tsv files (UTF-8, with a header): image as encoded bytes, text, label.

  Rows are found by number in an index that is kept beside the file; cells are read when asked for.
  In a .tsv file quotes are characters like any other. An empty caption stays "".

  Args:
    path: a file, or a pattern (`part-{00..07}.csv`, `*.tsv`).
    root: folder that the image paths are relative to; default: the folder of the table. Nothing
      outside it is read.
    image: column of image paths (with a suffix such as .jpg), `data:` URLs or base64; "" for none.
    text: column of captions; "" for none.
    label: column of labels; default: none. Whole numbers stay, other texts become the index into
      the sorted `classes`, which are kept with the index.
    allow_missing_shards: files that the braces name and that are not there are left out.
    cache: folder of the index, see `paths.cached_index`.

  Raises:
    UserError: no such file, neither .csv nor .tsv, a column that is not there.
  """
  files = paths.expand(path, "source table", allow_missing_shards=allow_missing_shards)
  endings = {file.lower().rpartition(".")[2] for file in files}
  if len(endings) != 1 or not endings <= {"csv", "tsv"}:
    raise UserError(f"source table: {path!r} ends in {' and '.join(sorted(endings))}; .csv or .tsv")
  columns = {k: v for k, v in dict(image=image, text=text, label=label).items() if v}
  if not columns:
    raise UserError("source table: image, text and label are all empty; name a column")
  tsv = endings == {"tsv"}
  found = rows.Rows(files, "source table", cache, quoted=not tsv, header=True)
  return _Table(found, root, tsv, columns, cache)


class _JsonLines:
  def __init__(self, found: rows.Rows, root: str, keys: dict[str, str]):
    self.rows, self.keys = found, keys
    self.roots = rows.roots(root, found.files, "source jsonl")

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, index: int) -> dict[str, Any]:
    file, line = self.rows[index]
    where = f"row {index} of {self.rows.files[file]}"
    row = rows.json_object(line, where)
    named = {key: rows.field(row, name, where) for key, name in self.keys.items()}
    out = {k: v for k, v in row.items() if k not in self.keys.values()} | named
    if "image" in named:
      out["image"] = rows.picture(out["image"], self.roots[file], where)
    if "label" in named and type(out["label"]) is not int:
      raise BadExample("label not a number", f"{where}: {out['label']!r}")
    return out


def jsonl(
  pattern: str,
  root: str = "",
  image: str = "image",
  text: str = "text",
  label: str = "",
  allow_missing_shards: bool = False,
  cache: str = "",
) -> _JsonLines:
  """JSON objects, one a line (UTF-8): image as encoded bytes, text, label, other keys as they are.

  Lines are found by number in an index that is kept beside the file. Examples whose other keys
  differ cannot be batched: end the ops with `keep`.

  Args:
    pattern: a file, or a pattern (`part-{00..07}.jsonl`).
    root: folder that the image paths are relative to; default: the folder of the file. Nothing
      outside it is read.
    image: key of the image, "" for none. A value with a dot is a path, `data:...;base64,` and any
      other value is base64.
    text: key of the caption (a text or a list of texts), "" for none. It may be empty.
    label: key of the label, a whole number; default: none.
    allow_missing_shards: files that the braces name and that are not there are left out.
    cache: folder of the index, see `paths.cached_index`.

  Raises:
    UserError: no such file, a `root` that is not a folder.
  """
  files = paths.expand(pattern, "source jsonl", allow_missing_shards=allow_missing_shards)
  keys = {k: v for k, v in dict(image=image, text=text, label=label).items() if v}
  return _JsonLines(rows.Rows(files, "source jsonl", cache), root, keys)
