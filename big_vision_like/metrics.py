"""What people see of a run: metrics.jsonl, TensorBoard, the progress line, pictures, peak FLOP/s.

`metrics.jsonl` has a line `{"step": n, "train/loss": x, ...}` per write and holds only what the
seed decides; a run that was killed and resumed leaves the same file. Timings go to TensorBoard and
the progress line.
"""

import contextlib
import functools
import io
import json
import math
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Dense bf16 peak FLOP/s of one device, as the makers state it; the first found inside
# `device_kind`, so the longer names come first.
PEAKS = {
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5e": 197e12,
  "TPU v5p": 459e12,
  "TPU v5": 459e12,
  "TPU v6 lite": 918e12,
  "TPU v6e": 918e12,
  "A100": 312e12,
  "H100 PCIe": 756e12,
  "H100": 989e12,
  "H200": 989e12,
  "GB200": 2500e12,
  "B200": 2250e12,
  "L40S": 362e12,
  "L40": 181e12,
  "L4": 121e12,
  "V100": 125e12,
}


def peak_flops(device: jax.Device) -> float | None:
  """Peak FLOP/s of one device: from the table, measured on a CPU, None where it is not known.

  Simulated CPU devices share one machine: each gets its share of the measured peak.
  """
  if device.platform == "cpu":
    return _measured_peak() / jax.local_device_count()
  return next((v for k, v in PEAKS.items() if k.lower() in device.device_kind.lower()), None)


@functools.cache
def _measured_peak(size: int = 1024, repeats: int = 5) -> float:
  """The best of a few float32 matrix products on the first CPU device."""
  device = jax.local_devices(backend="cpu")[0]
  x = jax.device_put(jnp.ones((size, size), jnp.float32), device)
  product = jax.jit(jnp.dot)
  product(x, x).block_until_ready()
  best = math.inf
  for _ in range(repeats):
    began = time.perf_counter()
    product(x, x).block_until_ready()
    best = min(best, time.perf_counter() - began)
  return 2 * size**3 / best


# ------------------------------------------------------------------------------------------ writer


class Writer:
  """`metrics.jsonl` and TensorBoard events below `workdir`; only process 0 writes."""

  def __init__(self, workdir: str | pathlib.Path):
    self.workdir = pathlib.Path(workdir)
    self.file = self.workdir / "metrics.jsonl"
    self.active = jax.process_index() == 0
    self._events: Any = None

  def __enter__(self) -> "Writer":
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()

  def truncate_after(self, step: int) -> None:
    """Drops lines of later steps and a half-written last line: no step is logged twice.

    TensorBoard is told to forget them too.
    """
    if not self.active or not self.file.exists():
      return
    kept = []
    for line in self.file.read_text().splitlines():
      try:
        if json.loads(line)["step"] <= step:
          kept.append(line + "\n")
      except (ValueError, KeyError, TypeError):
        continue
    part = self.file.with_suffix(".part")
    part.write_text("".join(kept))
    part.replace(self.file)
    from tensorboard.compat.proto.event_pb2 import SessionLog

    self._add(step=step + 1, session_log=SessionLog(status=SessionLog.START))

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """A line of `metrics.jsonl` (NaN and Inf become null, as JSON has neither) and scalars."""
    if not self.active or not values:
      return
    clean = {k: float(v) if math.isfinite(v) else None for k, v in values.items()}
    with self.file.open("a") as f:
      f.write(json.dumps({"step": step, **clean}) + "\n")
    self.scalars(step, values)

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """TensorBoard only: for timings, which no two runs share."""
    if self.active:
      self._event(step, [dict(tag=k, simple_value=float(v)) for k, v in values.items()])

  def image(self, step: int, name: str, image: np.ndarray) -> None:
    """uint8 [H, W, C] to TensorBoard."""
    if self.active:
      from tensorboard.compat.proto.summary_pb2 import Summary

      height, width, channels = image.shape
      png = Summary.Image(
        height=height, width=width, colorspace=channels, encoded_image_string=encode_png(image)
      )
      self._event(step, [dict(tag=name, image=png)])

  def _event(self, step: int, values: list[dict[str, Any]]) -> None:
    from tensorboard.compat.proto.summary_pb2 import Summary

    self._add(step=step, summary=Summary(value=[Summary.Value(**v) for v in values]))

  def _add(self, **fields: Any) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    if self._events is None:
      self._events = EventFileWriter(str(self.workdir / "tensorboard"))
    self._events.add_event(Event(wall_time=time.time(), **fields))

  def close(self) -> None:
    if self._events is not None:
      self._events.close()
      self._events = None


def encode_png(image: np.ndarray) -> bytes:
  """uint8 [H, W, 1 or 3] -> PNG."""
  from PIL import Image

  out = io.BytesIO()
  Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(out, "PNG")
  return out.getvalue()


def write_picture(workdir: str | pathlib.Path, name: str, image: np.ndarray) -> None:
  """`report/<name>.png` of the workdir, for `tools.report`; process 0 only."""
  if jax.process_index() == 0:
    folder = pathlib.Path(workdir) / "report"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.png").write_bytes(encode_png(image))


def write_examples(workdir: str | pathlib.Path, name: str, rows: list[dict[str, Any]]) -> None:
  """`report/<name>.json`: rows of image (uint8, becomes base64 PNG), label, predictions."""
  import base64

  if jax.process_index() == 0:
    folder = pathlib.Path(workdir) / "report"
    folder.mkdir(exist_ok=True)
    encode = lambda image: base64.b64encode(encode_png(image)).decode()
    rows = [row | {"image": encode(row["image"])} for row in rows]
    (folder / f"{name}.json").write_text(json.dumps(rows))


# ---------------------------------------------------------------------------------------- progress


class Progress:
  """The line people watch: step, loss, examples/s, MFU, share of time spent waiting for data, ETA.

  A live bar on a terminal, else a plain line every few seconds. `rates` holds the last figures.
  """

  def __init__(
    self,
    total_steps: int,
    *,
    start_step: int,
    batch_size: int,
    flops_per_step: int,
    peak_flops: float | None,
    enabled: bool = True,
    plain_every_seconds: float = 5.0,
  ):
    self.total, self.batch_size = total_steps, batch_size
    self.flops, self.peak = flops_per_step, peak_flops
    self.enabled, self.plain_every = enabled, plain_every_seconds
    self.rates: dict[str, float] = {}
    self._step, self._clock, self._waited = start_step, time.perf_counter(), 0.0
    self._paused = 0.0
    self._printed = -math.inf
    self._bar: Any = None

  def __enter__(self) -> "Progress":
    if self.enabled and sys.stdout.isatty():
      from rich.progress import BarColumn, TextColumn
      from rich.progress import Progress as Bar

      columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"))
      self._bar = Bar(*columns)
      self._bar.start()
      self._task = self._bar.add_task("train", total=self.total, completed=self._step, said="")
    return self

  def __exit__(self, *_: Any) -> None:
    if self._bar is not None:
      self._bar.stop()

  def update(self, step: int, *, loss: float, data_wait: float) -> dict[str, float]:
    """`data_wait`: seconds waited for data since the start. Returns the rates since last time."""
    now = time.perf_counter()
    seconds = max(now - self._clock - self._paused, 1e-9)
    steps = step - self._step
    rate = steps / seconds
    self.rates = {
      "perf/examples_per_second": rate * self.batch_size,
      "perf/data_wait_percent": 100 * (data_wait - self._waited) / seconds,
    }
    if self.peak:
      self.rates["perf/mfu_percent"] = 100 * rate * self.flops / self.peak
    self._step, self._clock, self._waited, self._paused = step, now, data_wait, 0.0
    mfu = f"mfu {self.rates['perf/mfu_percent']:.1f} %  " if self.peak else ""
    left = (self.total - step) / rate if rate else 0.0
    said = (
      f"step {step}/{self.total}  loss {loss:.4f}  "
      f"{self.rates['perf/examples_per_second']:,.0f} examples/s  {mfu}"
      f"data wait {self.rates['perf/data_wait_percent']:.0f} %  eta {_clock(left)}"
    )
    if self._bar is not None:
      self._bar.update(self._task, completed=step, said=said)
    elif now - self._printed > self.plain_every or step == self.total:
      self._printed = now
      self.say(said)
    return self.rates

  def say(self, text: str) -> None:
    """A line of its own."""
    if self._bar is not None:
      self._bar.console.print(text)
    elif self.enabled:
      print(text, flush=True)

  @contextlib.contextmanager
  def pause(self) -> Iterator[None]:
    """Time in here (evaluation) does not count as training."""
    began = time.perf_counter()
    try:
      yield
    finally:
      self._paused += time.perf_counter() - began


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02d}:{seconds:02d}"
