"""Input pipeline: batches a second, against the least that the same work costs, and PyTorch.

    read/raw        ArrayRecords through the pipeline, undecoded, against batched reads of the file
    decode/threads  JPEGs of 500 x 375, random crops of 224, against threads that only do that
    decode/torch    the same from a folder, against a DataLoader of worker processes with PIL
    digits/direct   the bundled digits, against indexing them
    stall/decode    share of a training loop that waits for data

A run draws a fixed number of batches from a fresh iterator, its start included.
"""

import concurrent.futures
import importlib.util
import io
import itertools
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from big_vision_like.config import UserError
from big_vision_like.input import ops, pipeline, sources
from tools.bench.harness import Options, Row, Run, Target, compare

OURS_AGAINST_RAW = Target("14", 0.9, 0.97)
STALL = Target("14 (stall)", 0.03, 0.005, at_most=True)


class Sizes(NamedTuple):
  """What a run draws."""

  images: int = 256
  batch: int = 32
  crop: int = 224
  records: int = 2048
  record_batch: int = 256
  digits: int = 4096


SMOKE = Sizes(16, 8, 32, 32, 8, 64)


def rows(options: Options) -> Iterator[Row]:
  """All rows of the suite.

  Raises:
    UserError: the packages of the pipeline are not installed.
  """
  for package in ("grain", "array_record"):
    if importlib.util.find_spec(package) is None:
      raise UserError(f"--suite input needs {package}: pip install -e .")
  sizes = SMOKE if options.smoke else Sizes()
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    yield from _read(options, sizes, root / "read.array_record")
    yield from _decode(options, sizes, root / "pictures")
    yield from _digits(options, sizes)
    yield from _stall(options, sizes, root / "stall")


# -------------------------------------------------------------------------------------------- data


def jpeg(seed: int, width: int = 500, height: int = 375) -> bytes:
  """A picture of smooth blobs with some noise: compresses about as well as a photograph."""
  from PIL import Image

  rng = np.random.default_rng(seed)
  coarse = Image.fromarray(rng.integers(0, 256, (height // 25, width // 25, 3), np.uint8))
  smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
  noisy = np.clip(smooth + rng.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)
  out = io.BytesIO()
  Image.fromarray(noisy).save(out, "JPEG", quality=90)
  return out.getvalue()


def write_records(path: pathlib.Path, count: int) -> int:
  """An ArrayRecord file of `count` pictures' bytes; returns its size in bytes."""
  from array_record.python.array_record_module import ArrayRecordWriter

  pictures = [jpeg(seed) for seed in range(16)]
  writer = ArrayRecordWriter(str(path), "group_size:1")
  for record in itertools.islice(itertools.cycle(pictures), count):
    writer.write(record)
  writer.close()
  return path.stat().st_size


def write_pictures(folder: pathlib.Path, count: int) -> None:
  """A folder with one class of `count` pictures."""
  (folder / "class").mkdir(parents=True)
  for seed in range(count):
    (folder / "class" / f"{seed:05d}.jpg").write_bytes(jpeg(seed))


def _cores() -> int:
  return len(os.sched_getaffinity(0))


def _ours(cfg: dict[str, Any], batch: int, batches: int) -> Run:
  """A run of the pipeline, of `batches` batches."""

  def run():
    stream = pipeline.train_batches(
      {"num_threads": _cores(), **cfg}, batch_size=batch, seed=0, start_step=0
    )
    for _ in range(batches):
      next(stream)
    stream.close()

  return run


# -------------------------------------------------------------------------------------------- rows


def _rates(rows: Iterator[Row], examples: int, **values: Any) -> Iterator[Row]:
  for row in rows:
    if row.ours is not None:
      rates = {f"{k}_per_s": examples / getattr(row, k).median for k in ("ours", "peer")}
      row = row._replace(values={**values, **rates})
    yield row


def _read(options: Options, sizes: Sizes, path: pathlib.Path) -> Iterator[Row]:
  if not options.wants("read/raw"):
    return
  written = write_records(path, sizes.records)
  batches = sizes.records // sizes.record_batch

  def raw() -> Run:
    records = sources.open_source(f"array_record(pattern='{path}')").records
    order = np.random.default_rng(0).permutation(sizes.records)
    parts = order.reshape(batches, sizes.record_batch).tolist()

    def run():
      for part in parts:
        records.__getitems__(part)

    return run

  cfg = {"source": f"array_record(pattern='{path}')", "pp": "keep(record)"}
  ours = lambda: _ours(cfg, sizes.record_batch, batches)
  found = compare(options, "read", ours, {"raw": raw}, targets={"raw": OURS_AGAINST_RAW})
  yield from _rates(found, sizes.records, bytes=written)


def _decode_pp(sizes: Sizes) -> str:
  return f"decode|random_resized_crop({sizes.crop})|flip_lr|value_range(-1, 1)|keep(image)"


def _decode(options: Options, sizes: Sizes, folder: pathlib.Path) -> Iterator[Row]:
  if not [n for n in ("decode/threads", "decode/torch") if options.wants(n)]:
    return
  write_pictures(folder, sizes.images)
  source, pp = f"image_folder(path='{folder}')", _decode_pp(sizes)
  batches = sizes.images // sizes.batch

  def threads() -> Run:
    data, op = sources.open_source(source), ops.build(pp)
    pool = concurrent.futures.ThreadPoolExecutor(_cores())
    one = lambda i: op(data[i], np.random.default_rng(i))["image"]

    def run():
      for start in range(0, sizes.images, sizes.batch):
        np.stack(list(pool.map(one, range(start, start + sizes.batch))))

    return run

  def torch() -> Run:
    from torch.utils.data import DataLoader

    loader = DataLoader(
      Pictures(folder, sizes.crop),
      sizes.batch,
      shuffle=True,
      num_workers=_cores(),
      persistent_workers=True,
      multiprocessing_context="spawn",  # jax has threads, which a fork would not survive
    )

    def run():
      for _ in zip(range(batches), loader):
        pass

    return run

  ours = lambda: _ours({"source": source, "pp": pp}, sizes.batch, batches)
  peers = {"threads": threads, "torch": torch}
  yield from _rates(compare(options, "decode", ours, peers), sizes.images)


class Pictures:
  """The same work for torch's DataLoader: decode, random crop, flip, float32 [3, S, S] in -1..1."""

  def __init__(self, folder: pathlib.Path, size: int):
    self.files, self.size = sorted(folder.glob("*/*.jpg")), size

  def __len__(self) -> int:
    return len(self.files)

  def __getitem__(self, index: int) -> np.ndarray:
    from PIL import Image

    rng = np.random.default_rng(index)
    image = Image.open(self.files[index]).convert("RGB")
    width, height = image.size
    area = rng.uniform(0.08, 1.0) * width * height
    aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    w, h = min(width, round((area * aspect) ** 0.5)), min(height, round((area / aspect) ** 0.5))
    left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
    box = (int(left), int(top), int(left + w), int(top + h))
    image = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box)
    pixels = np.asarray(image)[:, :: -1 if rng.random() < 0.5 else 1]
    return np.moveaxis(pixels.astype(np.float32) / 127.5 - 1, -1, 0)


def _digits(options: Options, sizes: Sizes) -> Iterator[Row]:
  batch = min(128, sizes.digits)

  def direct() -> Run:
    data, op = sources.open_source("digits(split='train')"), ops.build("value_range(-1, 1)")
    rng = np.random.default_rng(0)
    order = rng.integers(0, len(data), (sizes.digits // batch, batch)).tolist()

    def run():
      for part in order:
        np.stack([op(data[i], rng)["image"] for i in part])

    return run

  cfg = {"source": "digits(split='train')", "pp": "value_range(-1, 1)|keep(image, label)"}
  ours = lambda: _ours(cfg, batch, sizes.digits // batch)
  yield from _rates(compare(options, "digits", ours, {"direct": direct}), sizes.digits)


def _stall(options: Options, sizes: Sizes, folder: pathlib.Path) -> Iterator[Row]:
  """An accelerator of 1.5 x the time that a batch takes to make, which leaves the host alone."""
  if not options.wants("stall/decode"):
    return
  write_pictures(folder, sizes.images)
  cfg = {"source": f"image_folder(path='{folder}')", "pp": _decode_pp(sizes)}
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
    batches.wait_seconds, began = 0.0, time.perf_counter()
    for _ in range(steps):
      next(batches)
      compute()
    return batches.wait_seconds / (time.perf_counter() - began)
