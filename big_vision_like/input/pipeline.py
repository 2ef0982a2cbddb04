"""From a source to this process's rows of the global batch.

Position is (seed, global example index) and nothing else: batch k is examples k*B to (k+1)*B of one
infinite stream, process i of n takes the i-th part of it. So a run that resumes on another number
of processes or threads sees the same stream to the bit.
"""

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from big_vision_like.config import Config, UserError, whole_number, wrap
from big_vision_like.input import ops
from big_vision_like.input.randomness import generator
from big_vision_like.input.sources import open_source

Batch = dict[str, np.ndarray]

# Sources that draw their examples use small keys: the ops must not see the same numbers again.
_OPS_KEY = 1 << 64
EVAL_KEY = 0


class _Preprocess:
  """`(index, example) -> example`, with the index's own randomness; bad examples are replaced."""

  def __init__(self, source: Any, name: str, op: ops.Op, seed: int, max_bad: float):
    self.source, self.name, self.op, self.seed, self.max_bad = source, name, op, seed, max_bad
    self.bad = self.seen = 0
    self.lock = threading.Lock()

  def __call__(self, at: int, index: int) -> dict[str, Any]:
    """Example `index` of the source, at position `at` of the stream."""
    with self.lock:
      self.seen += 1
    for attempt in range(len(self.source)):
      chosen = (index + attempt) % len(self.source)
      try:
        rng = generator(_OPS_KEY + self.seed, at)
        return self.op(dict(self.source[chosen]), rng)
      except Exception as e:
        self._count(chosen, e)
    raise RuntimeError("no good example in the source")

  def _count(self, index: int, error: Exception) -> None:
    note = "; ".join(getattr(error, "__notes__", []))
    with self.lock:
      self.bad += 1
      logging.warning(
        "bad example %d (%s: %s) %s of %s", index, type(error).__name__, error, note, self.name
      )
      # The first 100 examples are too few to call it a fraction.
      if self.bad > self.max_bad * max(self.seen, 100):
        raise RuntimeError(
          f"{self.bad} of {self.seen} examples are bad, more than input.max_bad_fraction = "
          f"{self.max_bad}; the last: example {index} of {self.name}, "
          f"{type(error).__name__}: {error} {note}"
        ) from error


def num_examples(cfg: Mapping[str, Any]) -> int:
  """Examples of an epoch of `config.input`."""
  return len(open_source(wrap(cfg).source))


def train_batches(
  cfg: Mapping[str, Any],
  *,
  batch_size: int,
  seed: int,
  start_step: int,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[Batch]:
  """Endless batches from step `start_step` on, shuffled anew every epoch.

  `cfg` is `config.input`: source, pp, shuffle (True), num_threads, prefetch (batches),
  max_bad_fraction. Each batch holds this process's rows and their global `index`.

  Raises:
    UserError: an unknown source or op, an empty source, a setting out of its range, or a batch that
      does not divide by the processes.
  """
  import grain

  cfg = cfg if isinstance(cfg, Config) else wrap({"input": cfg}).input
  source, op = open_source(cfg.source), ops.build(cfg.pp, "config.input.pp")
  _check_batch("config.input", batch_size, process_count)
  if not len(source):
    raise UserError(f"config.input.source = {cfg.source!r} has no examples")
  if not 0 <= seed < 1 << 32:
    raise UserError(f"config.seed = {seed}; expected 0 to 2^32 - 1")
  num_threads = whole_number(cfg.get("num_threads", 8), "config.input.num_threads", 0)
  prefetch = whole_number(cfg.get("prefetch", 2), "config.input.prefetch", 1)
  max_bad = cfg.get("max_bad_fraction", 0.01)
  if not isinstance(max_bad, (int, float)) or not 0 <= max_bad <= 1:
    raise UserError(f"config.input.max_bad_fraction = {max_bad!r}; expected 0 to 1")
  preprocess = _Preprocess(source, cfg.source, op, seed, max_bad)
  order = grain.MapDataset.range(len(source)).seed(seed)
  if cfg.get("shuffle", True):
    order = order.shuffle()
  order = order.repeat()
  first = start_step * batch_size
  stream = order.map_with_index(lambda at, index: {"index": at, **preprocess(at, index)})
  local = batch_size // process_count
  # Always given: the default of 500 elements would be gigabytes of images.
  ahead = prefetch * local
  read = grain.ReadOptions(num_threads=min(num_threads, ahead), prefetch_buffer_size=ahead)
  rows = _rows(stream, first, batch_size, process_index * local, local)
  return iter(rows.to_iter_dataset(read).batch(local, batch_fn=_stack))


def _check_batch(where: str, batch_size: int, process_count: int) -> None:
  if batch_size < 1 or batch_size % process_count:
    raise UserError(
      f"{where}.batch_size = {batch_size} does not divide by {process_count} processes"
    )


def _rows(stream: Any, first: int, batch_size: int, offset: int, local: int) -> Any:
  """Row r of this process lies in batch r // local, at offset + r % local of it."""
  import grain

  class Rows(grain.MapDataset):
    def __len__(self) -> int:
      return (1 << 62) // batch_size

    def __getitem__(self, r: int) -> dict[str, Any]:
      return stream[first + r // local * batch_size + offset + r % local]

  return Rows([])


def _stack(examples: list[dict[str, Any]]) -> Batch:
  out = {k: np.stack([np.asarray(e[k]) for e in examples]) for k in examples[0]}
  # jax's default integers have 32 bits: labels of Python are made so, positions past 2^31 wrap.
  if "index" in out:
    out["index"] = out["index"] & 0x7FFF_FFFF
  return {k: v.astype(np.int32) if v.dtype == np.int64 else v for k, v in out.items()}


def eval_batches(
  source: str,
  pp: str,
  *,
  batch_size: int,
  process_index: int = 0,
  process_count: int = 1,
  where: str = "config.evals",
) -> Iterator[Batch]:
  """Every example once, in order: ceil(n / batch) batches, the last padded, `_mask` [b] says which
  rows count. Every process yields equally many batches.

  Raises:
    UserError: an unknown source or op, or a batch that does not divide by the processes.
  """
  data, op = open_source(source, f"{where}.source"), ops.build(pp, f"{where}.pp")
  _check_batch(where, batch_size, process_count)
  local = batch_size // process_count

  def batches() -> Iterator[Batch]:
    for start in range(0, len(data), batch_size):
      at = np.arange(start, start + batch_size)[process_index * local :][:local]
      rows = []
      for i in np.minimum(at, len(data) - 1):
        rows.append({"index": int(i), **op(dict(data[int(i)]), generator(EVAL_KEY, i))})
      yield {**_stack(rows), "_mask": at < len(data)}

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
