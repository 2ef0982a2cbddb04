"""Input pipeline: batches a second, against the least that the same work costs, and against others.

    read/raw           ArrayRecords through the pipeline, undecoded, against batched reads of them
    decode/direct      JPEGs of 500 x 375, random crops of 224: our source and ops in a plain loop
    decode/torch       the same from a folder, against PIL in a DataLoader without workers
    decode/torch_1     against a DataLoader with one worker
    decode/torchvision against a DataLoader with one worker and torchvision's transforms
    decode/tfdata      against tf.data, with its fused decoding and cropping
    decode/webdataset  the same from tar shards, against the library webdataset with PIL
    shards/random      random members of tar shards, against batched reads of ArrayRecords
    digits/direct      the bundled digits, against indexing them
    stall/decode       share of a training loop that waits for data
    start/million_*    seconds to the first batch of a million examples, in a fresh process
    memory/epoch       resident memory in the last tenth of an epoch over that in the second

A run draws a fixed number of batches from a fresh iterator, its start included. Rows of decode/ are
per core: each side is a process of its own, pinned to one core, and they take turns. Peers run in
the first Python of $BENCH_PEERS (separated by colons) that has them, else in this one.
"""

import contextlib
import importlib.util
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from big_vision_like import goodput
from big_vision_like.config import UserError
from big_vision_like.input import ops, pipeline, sources
from tools.bench import input_data as data
from tools.bench import input_peers, processes
from tools.bench.harness import Options, Row, Run, Spread, Target, compare

OURS_AGAINST_RAW = Target("14", 0.9, 0.97)
STALL = Target("14 (stall)", 0.03, 0.005, at_most=True)
DECODE = Target("14 (decode)", 1.3)
SHARDS = Target("14 (shards)", 0.8)
START = Target("14 (start)", 2.0, at_most=True)
FLAT = Target("14 (memory)", 1.05, at_most=True)


class Sizes(NamedTuple):
  """What a run draws."""

  images: int = 256
  batch: int = 32
  crop: int = 224
  records: int = 8192
  record_batch: int = 256
  members: int = 2048
  digits: int = 4096
  million: int = 1_000_000
  epoch: int = 8192
  shards: int = 8


SMOKE = Sizes(16, 8, 32, 32, 8, 32, 64, 200, 80, 2)


def rows(options: Options) -> Iterator[Row]:
  """All rows of the suite.

  Raises:
    UserError: the packages of the pipeline are not installed.
  """
  for package in ("grain", "array_record"):
    if importlib.util.find_spec(package) is None:
      raise UserError(f"--suite input needs {package}: pip install -e .")
  sizes = SMOKE if options.smoke else Sizes()
  for part in (_read, _decode, _decode_shards, _shards, _digits, _stall, _start, _memory):
    with tempfile.TemporaryDirectory() as folder:
      yield from part(options, sizes, pathlib.Path(folder))


def _cores() -> int:
  return len(os.sched_getaffinity(0))


def _ours(cfg: dict[str, Any], batch: int, batches: int) -> Run:
  """A run of the pipeline in this process."""
  return input_peers.ours({"num_threads": _cores(), **cfg}, batch, batches)


# -------------------------------------------------------------------------------------------- rows


def _rates(rows: Iterator[Row], examples: int, **values: Any) -> Iterator[Row]:
  for row in rows:
    if row.ours is not None:
      rates = {f"{k}_per_s": examples / getattr(row, k).median for k in ("ours", "peer")}
      row = row._replace(values={**values, **rates})
    yield row


def _raw(file: pathlib.Path, count: int, batch: int) -> Run:
  """Batched reads of an ArrayRecord file by its own library."""
  from array_record.python import array_record_data_source

  records = array_record_data_source.ArrayRecordDataSource([str(file)])
  parts = np.random.default_rng(0).permutation(count).reshape(-1, batch).tolist()

  def run():
    for part in parts:
      records.__getitems__(part)

  return run


def _read(options: Options, sizes: Sizes, folder: pathlib.Path) -> Iterator[Row]:
  if not options.wants("read/raw"):
    return
  file = folder / "read.array_record"
  source = data.write_records(file, sizes.records)
  cfg = {"source": source, "pp": "keep(record)"}
  raw = lambda: _raw(file, sizes.records, sizes.record_batch)
  ours = lambda: _ours(cfg, sizes.record_batch, sizes.records // sizes.record_batch)
  found = compare(options, "read", ours, {"raw": raw}, targets={"raw": OURS_AGAINST_RAW})
  yield from _rates(found, sizes.records, bytes=file.stat().st_size)


def _decode_pp(sizes: Sizes) -> str:
  return f"decode|random_resized_crop({sizes.crop})|flip_lr|value_range(-1, 1)|keep(image)"


def _wanted(options: Options, *names: str) -> bool:
  return sum(options.wants(name) for name in names) > 0  # not any: all of them are asked for


def _per_core(
  options: Options, sizes: Sizes, source: str, peers: dict[str, dict[str, Any]]
) -> Iterator[Row]:
  """Rows decode/<peer>: ours and each peer in a process of one core; `peers`: kind, arguments."""
  pp, batches = _decode_pp(sizes), sizes.images // sizes.batch
  cfg = {"source": source, "pp": pp, "num_threads": 1}
  made: dict[str, processes.Process] = {}
  with contextlib.ExitStack() as stack:

    def start(name: str, **args: Any) -> Callable[[], Run]:
      def build() -> Run:
        made[name] = stack.enter_context(processes.Process(**args, batch=sizes.batch))
        return made[name]

      return build

    ours = start("ours", kind="ours", cfg=cfg, batches=batches)
    runs = {name: start(name, **args) for name, args in peers.items()}
    targets = dict.fromkeys(("torch", "torch_1", "torchvision"), DECODE)
    for row in _rates(compare(options, "decode", ours, runs, targets=targets), sizes.images):
      if row.value is not None:
        cpu = [min(made[name].cpu) for name in ("ours", row.name.removeprefix("decode/"))]
        row = row._replace(values={**row.values, "cpu_ratio": cpu[1] / cpu[0]})
      yield row


def _decode(options: Options, sizes: Sizes, folder: pathlib.Path) -> Iterator[Row]:
  names = ("direct", "torch", "torch_1", "torchvision", "tfdata")
  if not _wanted(options, *(f"decode/{name}" for name in names)):
    return
  source = data.write_pictures(folder, sizes.images)
  same = dict(folder=str(folder), size=sizes.crop)
  batches = sizes.images // sizes.batch
  direct = dict(kind="direct", source=source, pp=_decode_pp(sizes), batches=batches)
  peers = {
    "direct": direct,
    "torch": dict(kind="torch", workers=0, **same),
    "torch_1": dict(kind="torch", workers=1, **same),
    "torchvision": dict(kind="torchvision", workers=1, **same),
    "tfdata": dict(kind="tfdata", **same),
  }
  yield from _per_core(options, sizes, source, peers)


def _decode_shards(options: Options, sizes: Sizes, folder: pathlib.Path) -> Iterator[Row]:
  if not options.wants("decode/webdataset"):
    return
  shards = data.write_shards(folder, sizes.images, sizes.shards)
  peer = dict(kind="webdataset", shards=shards, size=sizes.crop)
  source = f"webdataset(pattern='{folder}/*.tar')"
  yield from _per_core(options, sizes, source, {"webdataset": peer})


def _shards(options: Options, sizes: Sizes, folder: pathlib.Path) -> Iterator[Row]:
  if not options.wants("shards/random"):
    return
  data.write_shards(folder, sizes.members, sizes.shards)
  file = folder / "same.array_record"
  data.write_records(file, sizes.members)
  parts = np.random.default_rng(0).permutation(sizes.members).reshape(-1, sizes.record_batch)

  def ours() -> Run:
    shards = sources.open_source(f"webdataset(pattern='{folder}/*.tar')")
    together = getattr(shards, "__getitems__", lambda part: [shards[i] for i in part])

    def run():
      for part in parts.tolist():
        together(part)

    return run

  raw = lambda: _raw(file, sizes.members, sizes.record_batch)
  found = compare(options, "shards", ours, {"random": raw}, targets={"random": SHARDS})
  yield from _rates(found, sizes.members)


def _digits(options: Options, sizes: Sizes, folder: pathlib.Path) -> Iterator[Row]:
  batch = min(128, sizes.digits)

  def direct() -> Run:
    digits, op = sources.open_source("digits(split='train')"), ops.build("value_range(-1, 1)")
    rng = np.random.default_rng(0)
    order = rng.integers(0, len(digits), (sizes.digits // batch, batch)).tolist()

    def run():
      for part in order:
        np.stack([op(digits[i], rng)["image"] for i in part])

    return run

  cfg = {"source": "digits(split='train')", "pp": "value_range(-1, 1)|keep(image, label)"}
  ours = lambda: _ours(cfg, batch, sizes.digits // batch)
  yield from _rates(compare(options, "digits", ours, {"direct": direct}), sizes.digits)


def _stall(options: Options, sizes: Sizes, folder: pathlib.Path) -> Iterator[Row]:
  """An accelerator of 1.5 x the time that a batch takes to make, which leaves the host alone."""
  if not options.wants("stall/decode"):
    return
  cfg = {"source": data.write_pictures(folder, sizes.images), "pp": _decode_pp(sizes)}
  batches = sizes.images // sizes.batch
  run = _ours(cfg, sizes.batch, batches)
  run()
  began = time.perf_counter()
  run()
  busy = 1.5 * (time.perf_counter() - began) / batches
  share = stall_share(cfg, sizes.batch, steps=2 * batches, compute=lambda: time.sleep(busy))
  what = "share of the loop that waits for data"
  values = {"step_s": busy, "batch": sizes.batch}
  yield Row("stall/decode", what, share, target=STALL, values=values)


def stall_share(
  cfg: dict[str, Any], batch: int, *, steps: int, compute: Callable[[], Any]
) -> float:
  """Seconds waited for data over all seconds, from the second batch on."""
  stream = pipeline.train_batches(
    {"num_threads": _cores(), **cfg}, batch_size=batch, seed=0, start_step=0
  )
  with pipeline.prefetch_to_device(stream, lambda batch: batch) as batches:
    next(batches)
    compute()
    ledger = goodput.Ledger()
    for _ in range(steps):
      with ledger.phase("data_wait"):
        next(batches)
      with ledger.phase("compute"):
        compute()
    spent = ledger.here()
    return spent["data_wait"] / sum(spent.values())


def _start(options: Options, sizes: Sizes, folder: pathlib.Path) -> Iterator[Row]:
  """Fresh processes, the index of the source in its cache."""
  for name, write in (("million_tar", data.write_captions), ("million_lines", data.write_lines)):
    if not options.wants(f"start/{name}"):
      continue
    source = write(folder, sizes.million)
    run = dict(kind="start", cores=_cores(), batch=128, cfg={"source": source, "pp": "keep(text)"})
    indexed = processes.once(**run)["first"]
    found = [processes.once(**run) for _ in range(options.repeats)]
    first = Spread.of([f["first"] for f in found])
    imports = Spread.of([f["imports"] for f in found]).median
    values = {"examples": sizes.million, "imports_s": imports, "without_index_s": indexed}
    what = "seconds to the first batch"
    yield Row(f"start/{name}", what, first.median, first, target=START, values=values)


def _memory(options: Options, sizes: Sizes, folder: pathlib.Path) -> Iterator[Row]:
  """Of fresh processes that decode."""
  if not options.wants("memory/epoch"):
    return
  cfg = {"source": data.write_pictures(folder, sizes.epoch), "pp": _decode_pp(sizes)}
  run = dict(kind="memory", cores=_cores(), batch=sizes.batch, batches=sizes.epoch // sizes.batch)
  found = [processes.once(**run, cfg=cfg) for _ in range(options.repeats)]
  growth = Spread.of([f["end"] / f["early"] for f in found])
  values = {"examples": sizes.epoch, "end_bytes": round(max(f["end"] for f in found))}
  what = "x the memory at the epoch's start"
  yield Row("memory/epoch", what, growth.median, ratios=growth, target=FLAT, values=values)
