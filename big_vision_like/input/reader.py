"""Chunks of a batch, read and preprocessed: what threads and worker processes do.

A chunk is a function of its row numbers alone, so it does not matter who makes it, or when.
"""

import os
import pathlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from big_vision_like.config import UserError
from big_vision_like.input import ops, packing
from big_vision_like.input.bad import Bad, describe
from big_vision_like.input.batching import Batch, Example, stack
from big_vision_like.input.order import Order
from big_vision_like.input.randomness import LazyGenerator
from big_vision_like.input.sources import Source, open_source

MAX_TRIES = 100
"""Neighbours that are tried in the place of a bad example."""


class Part(NamedTuple):
  """One source of a stream and its preprocessing; `where` is its place in the config."""

  source: str
  pp: str
  where: str
  weight: float = 1.0
  key: str = "source"  # under which the config names the source


class Chunk(NamedTuple):
  """Rows of a batch, and what happened on the way."""

  rows: Batch  # empty where they went to another place
  seen: int = 0  # examples asked for
  bad: tuple[Bad, ...] = ()  # those that were replaced
  dropped: int = 0  # examples that found no room in packed rows
  error: str | None = None  # a mistake of the user's: there are no rows

  def check(self) -> "Chunk":
    """Itself, or the `UserError` that came about where it was made."""
    if self.error:
      raise UserError(self.error)
    return self


class Reader:
  """`(first row, rows) -> Chunk`. Pickled as its specs: a worker process opens its own sources.

  Args:
    parts: name -> source, ops and weight; one of them where nothing is mixed.
    seed, shuffle, name: of the `Order`.
    key: of the ops' random numbers.
    pack: spec of a packer, whose windows of examples then are the rows.
    exact: for evaluations: a bad example raises and is not replaced, the stream is not endless
      (rows past the end are the last example again).
    trace: folder in which a worker process notes where it is.
  """

  def __init__(
    self,
    parts: Mapping[str, Part],
    *,
    seed: int,
    key: int,
    shuffle: bool = True,
    name: str = "",
    pack: str = "",
    exact: bool = False,
    trace: str = "",
  ):
    self._made_of = dict(
      seed=seed, key=key, shuffle=shuffle, name=name, pack=pack, exact=exact, trace=trace
    )
    self.names, self.parts = list(parts), list(parts.values())
    self.sources = [open_source(p.source, f"{p.where}.{p.key}") for p in self.parts]
    for part, source in zip(self.parts, self.sources):
      if not len(source):
        raise UserError(f"{part.where}.{part.key} = {part.source!r} has no examples")
    self.ops = [ops.build(p.pp, f"{p.where}.pp") for p in self.parts]
    self.ops_at = " and ".join(f"{p.where}.pp" for p in self.parts)
    self.packer = packing.build(pack) if pack else None
    self.window = self.packer.rows if self.packer else 1
    self.order = Order(
      dict(zip(parts, map(len, self.sources))),
      {name: p.weight for name, p in parts.items()},
      seed=seed,
      shuffle=shuffle,
      name=name,
    )
    self.key, self.exact = key, exact
    self.trace = Trace(trace, self.ops) if trace else None

  def __reduce__(self) -> Any:
    return _reopened, (dict(zip(self.names, self.parts)), self._made_of)

  def traced(self, folder: str) -> "Reader":
    """The same, for worker processes: they note in `folder` what they are at."""
    return _reopened(dict(zip(self.names, self.parts)), self._made_of | {"trace": folder})

  def first_example(self, row: int) -> int:
    """Position of the first example that goes into this row's window."""
    return row // self.window * self.packer.examples if self.packer else row

  def first_row_after(self, examples: int) -> int:
    """How many rows that many examples make."""
    return examples // self.packer.examples * self.window if self.packer else examples

  def __call__(
    self, first: int, count: int, put: Callable[[list[Example]], Any] | None = None
  ) -> Chunk:
    """Rows `first` to `first + count` of the stream, whole windows of them where it packs.

    `put`, if given, takes the rows instead of the chunk.
    """
    found: list[Bad] = []
    seen = self.first_example(first + count) - self.first_example(first)
    try:
      at = np.arange(first, first + count)
      if self.exact:
        at = np.minimum(at, len(self.sources[0]) - 1)
      if self.packer is None:
        rows, dropped = self.examples(at, found), 0
      else:
        rows, dropped = self._packed(first, count, found)
      for row, index in zip(rows, at.tolist()):
        row["index"] = index
      batch = stack(rows, self.ops_at) if put is None else put(rows)
      return Chunk(batch or {}, seen, tuple(found), dropped)
    except UserError as e:  # as a value: it would lose its type between processes
      return Chunk({}, seen, tuple(found), error=str(e))

  def _packed(self, first: int, count: int, found: list[Bad]) -> tuple[list[Example], int]:
    """Rows of whole windows, and how many examples found no room."""
    rows, dropped = [], 0
    for start in range(first, first + count, self.window):
      at = self.first_example(start) + np.arange(self.packer.examples)
      packed, left_over = self.packer(self.examples(at, found))
      rows, dropped = rows + packed, dropped + left_over
    return rows, dropped

  def examples(self, at: np.ndarray, found: list[Bad]) -> list[Example]:
    """The examples at these positions of the stream, preprocessed; appends to `found`."""
    part, index = self.order(at)
    out: list[Example] = [{}] * len(at)
    for p in np.unique(part).tolist():
      rows = np.flatnonzero(part == p)
      indices = index[rows].tolist()
      for row, i, raw in zip(rows.tolist(), indices, read_together(self.sources[p], indices)):
        out[row] = self._good(p, i, int(at[row]), raw, found)
    return out

  def _good(self, p: int, index: int, at: int, raw: Example | None, found: list[Bad]) -> Example:
    """Example `index` of part p after its ops, or the next one that is good. `raw`: if read."""
    source, spec = self.sources[p], self.parts[p].source
    for attempt in range(MAX_TRIES):
      chosen = (index + attempt) % len(source) if attempt else index
      try:
        if self.trace:
          self.trace.example(p, chosen)
        raw = source[chosen] if raw is None else raw
        return self.ops[p](dict(raw), LazyGenerator(self.key, at))
      except UserError:
        raise
      except Exception as e:
        if self.exact:
          e.add_note(f"in example {chosen} of {spec}")
          raise
        found.append(describe(e, spec, chosen))
        raw = None
    raise UserError(f"{MAX_TRIES} examples in a row are bad; the last: {found[-1]}")


def _reopened(parts: Mapping[str, Part], made_of: Mapping[str, Any]) -> Reader:
  return Reader(parts, **made_of)


def read_together(source: Source, indices: list[int]) -> list[Example | None]:
  """All at once where the source can; None for what has to be read one by one."""
  together = getattr(source, "__getitems__", None)
  if together is None or len(indices) == 1:
    return [None] * len(indices)
  try:
    return list(together(indices))
  except Exception:  # read one by one, the example that caused it is found
    return [None] * len(indices)


def each_good(
  source: Source,
  op: ops.Ops,
  indices: Iterable[int],
  *,
  key: int,
  spec: str,
  found: list[Bad],
  trace: "Trace | None" = None,
) -> Iterator[tuple[int, Example, Example]]:
  """(index, example as the source has it, and after the ops) of those that can be read.

  Nothing takes the place of the others, which are appended to `found`: for tools that go through a
  source once, in order. The random numbers of an example are of (`key`, index).
  """
  indices = list(indices)
  for index, raw in zip(indices, read_together(source, indices)):
    try:
      if trace:
        trace.example(0, index)
      raw = source[index] if raw is None else raw
      example = op(dict(raw), LazyGenerator(key, index))
    except UserError:
      raise
    except Exception as e:
      found.append(describe(e, spec, index))
      continue
    yield index, raw, example


def sampled(count: int, most: int = 64) -> list[int]:
  """At most so many of the indices below `count`, evenly spread, first and last among them."""
  return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int)).tolist()


class Trace:
  """Where a worker is, in a file of its own, for when it is killed: part, example, op."""

  def __init__(self, folder: str, built: list[ops.Ops]):
    self.folder, self._mine = folder, threading.local()
    for op in built:
      op.watch = self.op

  def example(self, part: int, index: int) -> None:
    """This thread starts with an example."""
    if not hasattr(self._mine, "at"):
      name = f"{os.getpid()}-{threading.get_ident()}"
      self._mine.at = np.memmap(pathlib.Path(self.folder) / name, np.int64, "w+", shape=3)
    self._mine.at[:] = part, index, -1

  def op(self, number: int) -> None:
    """It starts with the op of this number."""
    self._mine.at[2] = number


def last_seen(folder: str, reader: Reader, alive: set[int]) -> str:
  """What the processes that left a trace and are not `alive` any more were at."""
  out = []
  for file in sorted(pathlib.Path(folder).iterdir()):
    if int(file.name.split("-")[0]) not in alive:
      part, index, op = np.fromfile(file, np.int64).tolist()
      name = reader.ops[part].names[op] if op >= 0 else "reading"
      out.append(f"example {index} of {reader.parts[part].source} ({name})")
  return ", ".join(out) or "no example"
