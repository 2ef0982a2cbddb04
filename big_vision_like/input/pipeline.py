"""From sources to this process's rows of the global batch.

Position is (seed, global example index) and nothing else: batch k is rows k*B to (k+1)*B of one
infinite stream, process i of n takes the i-th part of it. So a run that resumes on another number
of processes, threads or workers sees the same stream to the bit.

`config.input` has one of three forms:

    one source       source, pp
    a mixture        parts = {name: {source, pp, weight}}; `pp` beside them is their default
    several batches  {name: {source or parts, ..., spec}}: a step's batch is a dict of batches

and beside them: batch_size, spec (shapes, see compose.batch_spec), shuffle (True), pack (see
packing.py), max_bad_fraction (0.01), num_threads (8), num_workers (0, processes), prefetch
(2 batches). What is beside several batches holds for all of them; each may have its own.
"""

import collections
import functools
import logging
import math
import queue
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from big_vision_like.config import Config, UserError, number, whole_number, wrap
from big_vision_like.input import bad
from big_vision_like.input.batching import Assembly, Batch, joined
from big_vision_like.input.order import key_of
from big_vision_like.input.reader import Chunk, Part, Reader, last_seen

# Sources that draw their examples use small keys: the ops must not see the same numbers again.
_OPS_KEY = 1 << 64
EVAL_KEY = 0
MAX_CHUNK = 128
"""Rows that are read together. ArrayRecord's threads cost more than they bring for fewer; of more,
the examples wait longer in memory before they are copied into the batch."""


class Settings(NamedTuple):
  """How a stream is read; nothing of it changes what is read."""

  num_threads: int = 8
  num_workers: int = 0
  prefetch: int = 2
  max_bad_fraction: float = 0.01


class Input:
  """`config.input`, checked, and its sources opened once for all who ask.

  Raises:
    UserError: an unknown source or op, an empty source, a setting out of its range.
  """

  def __init__(self, cfg: Mapping[str, Any], *, seed: int):
    cfg = cfg if isinstance(cfg, Config) else wrap({"input": cfg}).input
    if not 0 <= seed < 1 << 32:
      raise UserError(f"config.seed = {seed}; expected 0 to 2^32 - 1")
    self._cfgs = named(cfg)
    self._settings = {name: _settings(own, cfg) for name, own in self._cfgs.items()}
    self.readers = {
      name: Reader(
        _parts(own),
        seed=seed,
        key=_OPS_KEY + key_of(seed, name),
        shuffle=own.get("shuffle", cfg.get("shuffle", True)),
        name=name,
        pack=own.get("pack", ""),
      )
      for name, own in self._cfgs.items()
    }

  @property
  def num_examples(self) -> int:
    """Rows of an epoch: of all parts of a mixture together, of the first of several batches."""
    reader = next(iter(self.readers.values()))
    return max(1, reader.first_row_after(sum(map(len, reader.sources))))

  def first(self) -> dict[str, Any]:
    """The first row, or window of packed rows, as a batch."""
    chunks = {name: reader(0, reader.window) for name, reader in self.readers.items()}
    for chunk in chunks.values():
      chunk.check()
    return _of_one({name: chunk.rows for name, chunk in chunks.items()})

  def examples(self, step: int, batch_size: int) -> dict[str, int]:
    """`[name/]part` of every mixture -> its examples in the first `step` batches."""
    out = {}
    for name, reader in self.readers.items():
      if len(reader.parts) > 1:
        at = reader.first_example(step * self._cfgs[name].get("batch_size", batch_size))
        prefix = f"{name}/" if name else ""
        out |= {f"{prefix}{part}": n for part, n in reader.order.examples(at).items()}
    return out

  def batches(
    self, *, batch_size: int, start_step: int, process_index: int = 0, process_count: int = 1
  ) -> "Stream | Streams":
    """This process's rows of every batch from step `start_step` on, endlessly."""
    streams = {}
    for name, reader in self.readers.items():
      own, settings = self._cfgs[name], self._settings[name]
      size = own.get("batch_size", batch_size) if name else batch_size
      rows = BatchRows(size, process_index, process_count, own.path, reader.window)
      streams[name] = Stream(reader, rows, settings, start_step)
    return streams[""] if "" in streams else Streams(streams)


def named(cfg: Config) -> dict[str, Config]:
  """The batches of a step by name, `""` where there is one."""
  if "source" in cfg and "parts" in cfg:
    raise UserError(f"{cfg.path} has source and parts; a mixture has its sources in its parts")
  if "source" in cfg or "parts" in cfg:
    return {"": cfg}
  out = {name: own for name, own in cfg.items() if isinstance(own, Config) and name != "spec"}
  if not out:
    raise UserError(f"{cfg.path} has no source, no parts, and no batches by name that have them")
  for own in out.values():
    if "" not in named(own):
      raise UserError(f"{own.path} has no source and no parts; keys there: {', '.join(own)}")
  return out


def _parts(own: Config) -> dict[str, Part]:
  if "parts" not in own:
    return {"": Part(own.source, own.pp, own.path)}
  out = {}
  for name, part in own.parts.items():
    if not isinstance(part, Config):
      raise UserError(f"{own.path}.parts.{name} = {part!r}; expected source, and pp and weight")
    pp = part.get("pp", own.get("pp", ""))
    out[name] = Part(part.source, pp, part.path, number(part, "weight", 1.0, above=0))
  if not out:
    raise UserError(f"{own.path}.parts is empty; expected name -> source, pp, weight")
  return out


def _settings(own: Config, shared: Config) -> Settings:
  values = {
    key: own.get(key, shared.get(key, default)) for key, default in Settings()._asdict().items()
  }
  least = dict(num_threads=0, num_workers=0, prefetch=1)
  for key, low in least.items():
    whole_number(values[key], f"{own.path}.{key}", low)
  bad.check_fraction(values["max_bad_fraction"], f"{own.path}.max_bad_fraction")
  return Settings(**values)


def _of_one(by_name: dict[str, Any]) -> Any:
  """What belongs to the one batch, or to each of several by name."""
  return by_name.get("", by_name)


def train_batches(
  cfg: Mapping[str, Any],
  *,
  batch_size: int,
  seed: int,
  start_step: int,
  process_index: int = 0,
  process_count: int = 1,
) -> "Stream | Streams":
  """`Input(cfg).batches(...)`: endless batches from step `start_step` on.

  Each holds this process's rows, with their global position under `index`.

  Raises:
    UserError: see `Input`; or a batch that does not divide by the processes.
  """
  return Input(cfg, seed=seed).batches(
    batch_size=batch_size,
    start_step=start_step,
    process_index=process_index,
    process_count=process_count,
  )


# ----------------------------------------------------------------------------------------- reading


class BatchRows:
  """Which rows of the stream are this process's part of batch k, in chunks that threads share.

  Raises:
    UserError: the batch does not divide by the processes, or into windows of packed rows.
  """

  def __init__(self, batch_size: int, index: int, count: int, where: str, window: int = 1):
    if batch_size < 1 or batch_size % count:
      raise UserError(f"{where}.batch_size = {batch_size} does not divide by {count} processes")
    self.batch_size, self.local = batch_size, batch_size // count
    if self.local % window:
      raise UserError(
        f"{where}.batch_size = {batch_size} on {count} processes does not divide into windows of "
        f"{window} packed rows"
      )
    self.offset, self.window, self.chunks = index * self.local, window, 1

  def split(self, readers: int) -> None:
    """Into chunks enough for all readers, but no larger than `MAX_CHUNK` windows."""
    windows = self.local // self.window
    self.chunks = math.ceil(windows / min(MAX_CHUNK, max(1, windows // max(1, readers))))

  def __call__(self, chunk: int) -> tuple[int, int]:
    """(first row, rows) of a chunk; `chunks` of them are a batch."""
    batch, start = self.place(chunk)
    end = self.place(chunk + 1)[1] or self.local
    return batch * self.batch_size + self.offset + start, end - start

  def place(self, chunk: int) -> tuple[int, int]:
    """(batch, first row of the local ones) of a chunk."""
    batch, part = divmod(chunk, self.chunks)
    return batch, self.local // self.window * part // self.chunks * self.window


class Ranges(NamedTuple):
  """Number -> (first, count), in the place of `BatchRows`: what tools read that make no batches."""

  ranges: list[tuple[int, int]]
  chunks: int = 1  # a batch

  def __call__(self, chunk: int) -> tuple[int, int]:
    """One of the ranges."""
    return self.ranges[chunk]


class _ReadChunk(NamedTuple):
  """Chunk number -> `Chunk`, for Grain, in threads that share a batch, or in worker processes."""

  reader: Reader
  rows: BatchRows
  batches: Assembly | None = None

  def __call__(self, chunk: int) -> Chunk:
    if self.batches is None:
      return self.reader(*self.rows(chunk))
    put = functools.partial(self.batches.put, *self.rows.place(chunk))
    return self.reader(*self.rows(chunk), put)


class Stream:
  """Batches of one schema, to `stop` or endlessly. `bad` and `dropped` count what is left out."""

  def __init__(
    self,
    reader: Reader,
    rows: BatchRows,
    settings: Settings,
    start: int,
    stop: int | None = None,
  ):
    rows.split(settings.num_workers or settings.num_threads)
    self.bad, self.dropped = bad.Counter(settings.max_bad_fraction), 0
    self._reader, self._rows, self._next = reader, rows, start
    # Workers share no memory: their chunks are stacked to travel, and joined here.
    self._batches = None if settings.num_workers else Assembly(rows.local, reader.ops_at)
    self._chunks = read_ahead(reader, rows, settings, start, stop, self._batches)

  def __iter__(self) -> "Stream":
    return self

  def __next__(self) -> Batch:
    parts = []
    for _ in range(self._rows.chunks):
      chunk = next(self._chunks)
      self.bad.add(chunk.seen, chunk.bad)
      self.dropped += chunk.dropped
      parts.append(chunk.check().rows)
    self._next += 1
    if self._batches is not None:
      return self._batches.take(self._next - 1)
    return joined(parts, self._reader.ops_at)

  def close(self) -> None:
    """Ends the threads and processes that read ahead."""
    self._chunks.close()

  def counts(self) -> dict[str, int]:
    """`input/bad/<kind>` and `input/unpacked` so far, on this process; empty where all is well."""
    out = {f"input/bad/{kind.replace(' ', '_')}": n for kind, n in self.bad.kinds.items()}
    return out | ({"input/unpacked": self.dropped} if self.dropped else {})

  def said(self) -> str:
    """For the progress line: `bad 3 (empty text 2, truncated image 1)  `."""
    out = f"bad {self.bad.kinds.total()} ({self.bad})  " if self.bad.kinds else ""
    return out + (f"unpacked {self.dropped}  " if self.dropped else "")


class Streams:
  """Several streams of one step: a batch is a dict of their batches."""

  def __init__(self, streams: dict[str, Stream]):
    self.streams = streams

  def __iter__(self) -> "Streams":
    return self

  def __next__(self) -> dict[str, Batch]:
    return {name: next(stream) for name, stream in self.streams.items()}

  def close(self) -> None:
    """Ends all of them."""
    for stream in self.streams.values():
      stream.close()

  def counts(self) -> dict[str, int]:
    """The sums of all of them."""
    total: collections.Counter[str] = collections.Counter()
    for stream in self.streams.values():
      total.update(stream.counts())
    return dict(total)

  def said(self) -> str:
    """What each has to say."""
    said = ((name, stream.said()) for name, stream in self.streams.items())
    return "".join(f"{name} {text}" for name, text in said if text)


def read_ahead(
  reader: Reader,
  rows: BatchRows,
  settings: Settings,
  start: int,
  stop: int | None = None,
  batches: Assembly | None = None,
) -> Iterator[Chunk]:
  """The chunks of the batches start to stop, in order, made ahead of time by Grain.

  Threads put their rows into `batches`; chunks of worker processes have them themselves.
  """
  import grain

  stop = (1 << 62) // rows.chunks if stop is None else stop
  chunks = grain.MapDataset.range(start * rows.chunks, stop * rows.chunks)
  ahead = settings.prefetch * rows.chunks
  if settings.num_workers:
    yield from _by_workers(reader, rows, settings.num_workers, ahead, chunks)
  else:
    # Always given: the default of 500 elements would be gigabytes of images.
    threads = min(settings.num_threads, ahead)
    read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    yield from chunks.map(_ReadChunk(reader, rows, batches)).to_iter_dataset(read)


def _by_workers(
  reader: Reader, rows: BatchRows, workers: int, ahead: int, chunks: Any
) -> Iterator[Chunk]:
  """As many processes, each of which makes every so-manieth chunk."""
  import multiprocessing

  import grain
  from absl import flags

  if not flags.FLAGS.is_parsed():  # Grain reads flags of its own, which nobody here sets
    flags.FLAGS.mark_as_parsed()
  options = grain.MultiprocessingOptions(
    num_workers=workers, per_worker_buffer_size=math.ceil(ahead / workers)
  )
  with tempfile.TemporaryDirectory() as folder:
    chunks = chunks.map(_ReadChunk(reader.traced(folder), rows))
    chunks = chunks.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
    try:
      yield from chunks.mp_prefetch(options)
    except Exception as e:
      alive = {child.pid for child in multiprocessing.active_children()}
      raise RuntimeError(
        f"a worker process failed, and all end: {e} They were at {last_seen(folder, reader, alive)}"
      ) from e


def eval_reader(
  source: str, pp: str, where: str = "config.evals", key: str = "source", view: int = 0
) -> Reader:
  """Reads a split for an evaluation, in order; a bad example is an error that names it.

  Each `view` of the split gets random numbers of its own in its ops.
  """
  part = Part(source, pp, where, key=key)
  return Reader({"": part}, seed=0, key=EVAL_KEY + (view << 80), shuffle=False, exact=True)


def eval_batches(
  reader: Reader, *, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
  """Every example once, in order: ceil(n / batch) batches, the last padded, `_mask` [b] says which
  rows count. Every process yields equally many batches.

  Raises:
    UserError: a batch that does not divide by the processes.
  """
  rows = BatchRows(batch_size, process_index, process_count, reader.parts[0].where)
  stop = math.ceil(len(reader.sources[0]) / batch_size)

  def batches() -> Iterator[Batch]:
    at = np.arange(rows.local) + rows.offset
    stream = Stream(reader, rows, Settings(), 0, stop)
    for k, batch in enumerate(stream):
      yield {**batch, "_mask": k * batch_size + at < len(reader.sources[0])}

  return batches()


class prefetch_to_device:
  """Runs `put(batch)` on a thread, up to `size` batches ahead; an iterator and context manager.

  An exception of the thread is raised where its batch was due; after it, and after `close`, the
  iterator is at its end.
  """

  def __init__(self, batches: Iterator[Any], put: Callable[[Any], Any], size: int = 2):
    self._ended = False
    self._queue: queue.Queue = queue.Queue(maxsize=size)
    self._stop = threading.Event()
    self._thread = threading.Thread(target=self._work, args=(batches, put), daemon=True)
    self._thread.start()

  def _work(self, batches: Iterator[Any], put: Callable[[Any], Any]) -> None:
    end: BaseException | None = None
    try:
      for batch in batches:
        self._offer((put(batch), None))
        if self._stop.is_set():
          break
    except BaseException as e:  # raised again where the consumer asks for the batch
      end = e
    finally:
      self._offer((None, end or StopIteration()))
      if hasattr(batches, "close"):  # ends the threads that read ahead
        batches.close()

  def _offer(self, item: Any) -> None:
    while not self._stop.is_set():
      try:
        return self._queue.put(item, timeout=0.1)
      except queue.Full:
        continue

  def __iter__(self) -> "prefetch_to_device":
    return self

  def __next__(self) -> Any:
    if self._ended:
      raise StopIteration
    batch, error = self._queue.get()
    if error is not None:
      self._ended = True
      raise error
    return batch

  def ready(self) -> bool:
    """Whether the next batch, or the end, is there without waiting."""
    return self._ended or not self._queue.empty()

  def close(self) -> None:
    """Stops the thread, after the batch it is at."""
    self._ended = True
    self._stop.set()
    self._thread.join(timeout=10)
    if self._thread.is_alive():
      logging.warning("the input is still reading 10 s after it was closed")

  def __enter__(self) -> "prefetch_to_device":
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()
