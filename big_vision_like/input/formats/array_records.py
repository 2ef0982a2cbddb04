"""Records of ArrayRecord files by number: the reader of TFDS data sets and of `array_record`.

The library's own data source starts a pool of threads in every call for several records. A batch is
read here by many threads anyway: each call reads its records itself, those of a file at once.
"""

import bisect
import concurrent.futures
import functools
import itertools
import logging
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from big_vision_like.config import UserError
from big_vision_like.input.bad import BadExample

OPEN_FILES = 256
COUNTING_THREADS = 16


class Part(NamedTuple):
  """Records `skip` to `skip + take` of a file."""

  file: str
  skip: int
  take: int


def _open(file: str) -> Any:
  """A reader for random access; several threads may use it."""
  from array_record.python import array_record_module

  reader = array_record_module.ArrayRecordReader(
    file, options="readahead_buffer_size:0,max_parallelism:0", file_reader_buffer_size=1 << 15
  )
  if not reader.ok():
    reader.close()  # raises what is wrong
  return reader


def whole(files: Sequence[str], where: str) -> list[Part]:
  """All records of these files.

  Raises:
    UserError: a file that is not there, is cut, or is of another kind.
  """

  def part(file: str) -> Part:
    try:
      reader = _open(file)
      count, options = reader.num_records(), reader.writer_options_string() or ""
      reader.close()
    except (RuntimeError, ValueError, OSError) as e:
      raise UserError(f"{where}: {file!r} is not made of ArrayRecords: {e}") from None
    if options and "group_size:1," not in options:
      logging.warning("%s: %s: random access is slow: write it with group_size:1", where, file)
    return Part(file, 0, count)

  with concurrent.futures.ThreadPoolExecutor(COUNTING_THREADS) as pool:
    return list(pool.map(part, files))


class ArrayRecords:
  """Random access to the records of parts of files, one after the other."""

  def __init__(self, parts: Sequence[Part]):
    self.parts = list(parts)
    self.ends = list(itertools.accumulate(p.take for p in self.parts))
    self._reader = functools.lru_cache(OPEN_FILES)(_open)

  def __reduce__(self) -> Any:
    return ArrayRecords, (self.parts,)

  def __len__(self) -> int:
    return self.ends[-1] if self.ends else 0

  def __getitem__(self, index: int) -> bytes:
    return self.__getitems__([index])[0]

  def __getitems__(self, indices: Sequence[int]) -> list[bytes]:
    """The records of these numbers, in this order."""
    rows: dict[int, list[int]] = {}  # of each part
    for row, index in enumerate(indices):
      if not 0 <= index < len(self):
        raise IndexError(index)
      rows.setdefault(bisect.bisect_right(self.ends, index), []).append(row)
    out = [b""] * len(indices)
    for n, mine in rows.items():
      first = self.ends[n] - self.parts[n].take - self.parts[n].skip
      for row, record in zip(mine, self._read(n, [indices[row] - first for row in mine])):
        out[row] = record
    return out

  def _read(self, n: int, positions: list[int]) -> list[bytes]:
    file = self.parts[n].file
    try:
      return self._reader(file).read(positions)
    except RuntimeError as e:
      kind = "corrupt record" if os.path.exists(file) else "missing file"
      raise BadExample(kind, f"{file}: {e}") from None
