"""What people see of a run: metrics.jsonl, TensorBoard, the progress line, pictures, traces.

`metrics.jsonl` has a line `{"step": n, "train/loss": x, ...}` per write and holds only what the
seed decides; a run that was killed and resumed leaves the same file. Timings go to TensorBoard and
the progress line.
"""

import functools
import io
import json
import math
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from big_vision_like.config import UserError, whole_number
from big_vision_like.goodput import Ledger

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

    now = time.time_ns()
    if self._events is None:
      from tensorboard.summary.writer.record_writer import RecordWriter

      # TensorBoard reads a folder's files by name, so a resumed run's name must sort last, also
      # within the same second: the library's own EventFileWriter names files to the second.
      folder = self.workdir / "tensorboard"
      folder.mkdir(parents=True, exist_ok=True)
      name = f"events.out.tfevents.{now // 10**9:010d}.{now % 10**9:09d}"
      self._events = RecordWriter((folder / name).open("xb"))
      self._add(file_version="brain.Event:2")
    self._events.write(Event(wall_time=now / 1e9, **fields).SerializeToString())
    self._events.flush()

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
  """The line people watch: step, loss, examples/s, MFU, where the time goes, ETA.

  A live bar on a terminal, else a plain line every few seconds. Examples/s and MFU are of the time
  that training takes, waiting for data included; the ETA also counts saves and evaluations.
  """

  def __init__(
    self,
    total_steps: int,
    *,
    start_step: int,
    batch_size: int,
    flops_per_step: int,
    peak_flops: float | None,
    ledger: Ledger,
    enabled: bool = True,
    plain_every_seconds: float = 5.0,
  ):
    self.total, self.batch_size = total_steps, batch_size
    self.flops, self.peak = flops_per_step, peak_flops
    self.enabled, self.plain_every = enabled, plain_every_seconds
    self._start = self._step = start_step
    self._ledger, self._spent = ledger, ledger.here()
    self._looped = 0.0
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

  def update(self, step: int, *, loss: float, said: str = "") -> dict[str, float]:
    """`perf/...` of the time since the update before, for the logs; goodput is the whole run's.

    `said`: what others have to add to the line.

    The shares are of the wall time; start-up and traces take what is missing to 100 %.
    """
    now = self._ledger.here()
    spent = {k: v - self._spent[k] for k, v in now.items()}
    training = max(spent["compute"] + spent["data_wait"], 1e-9)
    looped = {k: spent[k] for k in ("compute", "data_wait", "checkpoint", "evaluation")}
    self._looped += sum(looped.values())
    rate = (step - self._step) / training
    rates = {"perf/examples_per_second": rate * self.batch_size}
    if self.peak:
      rates["perf/mfu_percent"] = 100 * rate * self.flops / self.peak
    wall = max(sum(spent.values()), 1e-9)
    rates |= {f"perf/{k}_percent": 100 * v / wall for k, v in looped.items()}
    rates["perf/goodput_percent"] = 100 * self._ledger.goodput()
    self._step, self._spent = step, now
    left = (self.total - step) * self._looped / max(step - self._start, 1)
    line = (
      f"step {step}/{self.total}  loss {loss:.4f}  "
      f"{rates['perf/examples_per_second']:,.0f} examples/s  {self._shares(rates)}"
      f"{said}eta {_clock(left)}"
    )
    if self._bar is not None:
      self._bar.update(self._task, completed=step, said=line)
    elif sum(now.values()) - self._printed > self.plain_every or step == self.total:
      self._printed = sum(now.values())
      self.say(line)
    return rates

  @staticmethod
  def _shares(rates: Mapping[str, float]) -> str:
    """`mfu 41.0 %  data wait 2 %  evaluation 5 %  `; saves and evaluations where they show."""
    mfu = rates.get("perf/mfu_percent")
    out = "" if mfu is None else f"mfu {mfu:.1f} %  "
    for name, least in (("data_wait", 0), ("checkpoint", 0.5), ("evaluation", 0.5)):
      if (share := rates[f"perf/{name}_percent"]) >= least:
        out += f"{name.replace('_', ' ')} {share:.0f} %  "
    return out

  def say(self, text: str) -> None:
    """A line of its own."""
    if self._bar is not None:
      self._bar.console.print(text, markup=False, highlight=False)
    elif self.enabled:
      print(text, flush=True)


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02d}:{seconds:02d}"


# ----------------------------------------------------------------------------------------- profile


def profile_range(value: Any, total_steps: int) -> range:
  """`config.profile_steps = (10, 15)` -> the steps 10 to 15; None and () -> no steps."""
  if value is None or (isinstance(value, (tuple, list)) and not value):
    return range(0)
  if not isinstance(value, (tuple, list)) or len(value) != 2:
    raise UserError(f"config.profile_steps = {value!r}; expected (first, last), both traced, or ()")
  first, last = (whole_number(v, "config.profile_steps: step") for v in value)
  if not first <= last <= total_steps:
    raise UserError(
      f"config.profile_steps = ({first}, {last}); expected first <= last <= {total_steps}, the "
      "number of steps"
    )
  return range(first, last + 1)


class Profiler:
  """A trace of some steps, `tensorboard/plugins/profile/<time>/<host>.xplane.pb` of the workdir.

  One process of each host writes. A context manager: a run that ends early leaves its trace.
  A run that starts amid `steps` traces the rest of them, its compile included.
  """

  def __init__(self, workdir: str | pathlib.Path, steps: range, ledger: Ledger):
    self.folder, self.steps, self._ledger = pathlib.Path(workdir) / "tensorboard", steps, ledger
    self._active = bool(steps) and _first_on_host()
    self._running = False

  def before(self, step: int, running: Any) -> None:
    """Call before `step` is started; `running`: outputs of what the devices still work at."""
    if self._active and not self._running and step in self.steps:
      jax.block_until_ready(running)
      with self._ledger.phase("profile"):
        jax.profiler.start_trace(self.folder)
      self._running = True

  def after(self, step: int, outputs: Any) -> None:
    """Call when `step` is started."""
    if self._running and step == self.steps[-1]:
      jax.block_until_ready(outputs)
      self._stop()

  def _stop(self) -> None:
    with self._ledger.phase("profile"):
      jax.profiler.stop_trace()
    self._running = False

  def __enter__(self) -> "Profiler":
    return self

  def __exit__(self, *_: Any) -> None:
    if self._running:
      self._stop()


def _first_on_host() -> bool:
  """Whether no process of a lower number runs on this machine; all processes call it."""
  if jax.process_count() == 1:
    return True
  import socket
  import zlib

  from jax.experimental import multihost_utils

  host = np.uint32(zlib.crc32(socket.gethostname().encode()))
  hosts = multihost_utils.process_allgather(host)
  return int(np.argmax(hosts == host)) == jax.process_index()
