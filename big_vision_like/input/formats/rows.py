"""Rows of text files by number, whatever their count, and the pictures that rows name or hold."""

import base64
import binascii
import csv
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from big_vision_like.config import UserError
from big_vision_like.input import paths
from big_vision_like.input.bad import BadExample

BLOCK = 1 << 24
"""Bytes that are searched for line ends at once."""


class Rows:
  """Rows of several files as `(number of the file, text)`; where each begins is found once.

  Args:
    files: their paths, read one after the other.
    where: begins messages.
    cache: folder of the indices, see `paths.cached_index`.
    quoted: as in .csv files a row goes on over line ends within double quotes; else a row is a
      line. Empty lines are no rows.
    header: the first row of each file is not counted; `headers` has their texts.

  Raises:
    UserError: a file that is compressed, or whose quotes make no sense.
  """

  def __init__(
    self,
    files: Sequence[str],
    where: str,
    cache: str = "",
    quoted: bool = False,
    header: bool = False,
  ):
    make, kind = (_quoted_rows, "csv-rows") if quoted else (_lines, "lines")
    found = paths.cached_index(files, lambda f: make(f, where), kind, where, cache)
    self.files, self.where, self.headers = list(files), where, [""] * len(files)
    if header:
      for i, (file, index) in enumerate(zip(files, found)):
        bounds = [int(index[key][0]) if len(index[key]) else 0 for key in ("starts", "stops")]
        self.headers[i] = _header(file, *bounds, where)
    skip = int(header)
    self._starts = [index["starts"][skip:] for index in found]
    self._stops = [index["stops"][skip:] for index in found]
    self._first = np.cumsum([0, *map(len, self._starts)])  # row of each file, and their number

  def __len__(self) -> int:
    return int(self._first[-1])

  def __getitem__(self, index: int) -> tuple[int, str]:
    """Raises `BadExample`: not UTF-8, or a file that is gone."""
    if not 0 <= index < len(self):
      raise IndexError(index)
    file = int(np.searchsorted(self._first, index, "right")) - 1
    row = index - self._first[file]
    start, stop = int(self._starts[file][row]), int(self._stops[file][row])
    data = paths.read_bytes(self.files[file], start, stop, self.where)
    return file, text_of(data, f"row {row} of {self.files[file]}")


def _lines(file: str, where: str, empty: bool = False) -> dict[str, np.ndarray]:
  """int64 starts and stops of the lines, without their ends; the `empty` ones if asked for."""
  ends, size = [], 0
  with paths.open_file(file, where) as data:
    while block := data.read(BLOCK):
      if not size and block[:2] == b"\x1f\x8b":
        raise UserError(f"{where}: {file} is compressed, rows cannot be read by number; unpack it")
      ends.append(np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + size)
      size += len(block)
  ends = np.concatenate([*ends, [size]]).astype(np.int64)
  starts = np.concatenate([[0], ends[:-1] + 1])
  kept = np.full(len(ends), True) if empty else ends > starts
  return {"starts": starts[kept], "stops": ends[kept]}


def _quoted_rows(file: str, where: str) -> dict[str, np.ndarray]:
  """The same of rows that may hold line ends: the csv reader says how many lines each takes."""
  lines = _lines(file, where, empty=True)
  first, after, before = [], [], 0
  with paths.open_file(file, where) as data:
    # A carriage return outside of quotes would be an error, but never ends a row.
    texts = (line.decode("utf-8", "replace").replace("\r", " ") for line in data)
    reader = csv.reader(texts)
    try:
      for row in reader:
        if any(cell.strip() for cell in row):
          first.append(before)
          after.append(reader.line_num)
        before = reader.line_num
    except csv.Error as e:
      raise UserError(f"{where}: {file} line {before + 1}: {e}; is a quote missing?") from None
  starts, stops = lines["starts"], lines["stops"]
  return {"starts": starts[np.array(first, int)], "stops": stops[np.array(after, int) - 1]}


def _header(file: str, start: int, stop: int, where: str) -> str:
  try:
    return paths.read_bytes(file, start, stop, where).decode("utf-8-sig")
  except UnicodeDecodeError as e:
    raise UserError(f"{where}: {file}: the header is not UTF-8: {e}") from None


def text_of(data: bytes, where: str) -> str:
  """Raises `BadExample`: not UTF-8."""
  try:
    return data.decode("utf-8-sig")
  except UnicodeDecodeError as e:
    raise BadExample("not UTF-8", f"{where}: {e}") from None


def cells(text: str, tsv: bool, where: str) -> list[str]:
  """The cells of one row; in .tsv files quotes are characters like any other.

  Raises:
    BadExample: no row.
  """
  if tsv:
    return text.removesuffix("\r").split("\t")
  try:
    [row] = csv.reader(_with_ends(text))
    return row
  except (csv.Error, ValueError) as e:
    raise BadExample("broken line", f"{where}: {e}") from None


def _with_ends(text: str) -> Iterator[str]:
  """Its lines; the end of the last one is the row's, the others are part of a cell."""
  *lines, last = text.split("\n")
  yield from (line + "\n" for line in lines)
  yield last.removesuffix("\r")


def json_object(text: str, where: str) -> dict[str, Any]:
  """Raises `BadExample`: no JSON object."""
  try:
    value = json.loads(text)
  except (ValueError, RecursionError) as e:
    raise BadExample("broken line", f"{where}: {e}") from None
  if not isinstance(value, dict):
    raise BadExample("broken line", f"{where}: {type(value).__name__}; expected a JSON object")
  return value


def field(row: dict[str, Any], key: str, where: str) -> Any:
  """Raises `BadExample`: a key that is not there."""
  if key not in row:
    raise BadExample("missing key", f"{where}: no {key!r}; keys there: {', '.join(row) or '-'}")
  return row[key]


def roots(root: str, files: Sequence[str], where: str) -> list[str]:
  """For each file the folder that pictures are named from: `root`, or the file's own.

  Raises:
    UserError: `root` is not a folder.
  """
  root = os.path.expanduser(str(root))
  if root and not paths.is_remote(root) and not os.path.isdir(root):
    raise UserError(f"{where}: root = {root!r} is not a folder")
  return [root or (file.rpartition("/")[0] if "/" in file else ".") or "/" for file in files]


def picture(value: Any, root: str, where: str) -> bytes:
  """Encoded bytes of a picture, given as a path in `root`, a `data:` URL or plain base64.

  The alphabet of base64 has no dot: a value with a dot is a path (so a file needs a suffix).

  Raises:
    BadExample: missing image, missing file, unsafe path, bad base64.
  """
  if not isinstance(value, str) or not value:
    raise BadExample("missing image", f"{where}: {value!r}")
  if value.startswith("data:"):
    kind, comma, value = value.partition(",")
    if not comma or not kind.endswith(";base64"):
      raise BadExample("bad base64", f"{where}: {kind[:40]!r}; expected data:...;base64,...")
  elif "." in value:
    return paths.read_bytes(paths.inside(root, value))
  try:
    return base64.b64decode(value, validate=True)
  except (binascii.Error, ValueError) as e:  # ValueError: characters beyond ASCII
    raise BadExample("bad base64", f"{where}: {value[:40]!r}: {e}") from None
