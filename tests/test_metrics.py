"""What a resumed run logs, the peaks of devices, and the progress line in a pipe."""

import contextlib
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_like import goodput, metrics
from big_vision_like.config import UserError


def test_resumed_run_logs_no_step_twice(tmp_path):
  from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

  with metrics.Writer(tmp_path) as writer:
    for step in (1, 2, 3, 4):
      writer.write(step, {"train/loss": float(step)})
  with writer.file.open("a") as f:
    f.write('{"step": 5, "train/lo')
  with metrics.Writer(tmp_path) as writer:
    writer.truncate_after(2)
    writer.write(3, {"train/loss": 30.0})
  rows = [json.loads(x) for x in writer.file.read_text().splitlines()]
  assert [(r["step"], r["train/loss"]) for r in rows] == [(1, 1.0), (2, 2.0), (3, 30.0)]
  events = EventAccumulator(str(tmp_path / "tensorboard"))
  events.Reload()
  found = [(e.step, e.value) for e in events.Scalars("train/loss")]
  assert found == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_nothing_to_truncate_writes_nothing(tmp_path):
  with metrics.Writer(tmp_path) as writer:
    writer.truncate_after(0)
  assert list(tmp_path.iterdir()) == []


def test_only_process_0_writes(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  with metrics.Writer(tmp_path) as writer:
    writer.write(1, {"train/loss": 1.0})
    writer.image(1, "x", np.zeros((2, 2, 3), np.uint8))
    writer.truncate_after(0)
  metrics.write_picture(tmp_path, "x", np.zeros((2, 2, 3), np.uint8))
  metrics.write_examples(tmp_path, "x", [])
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_every_line_is_json(tmp_path, bad):
  with metrics.Writer(tmp_path) as writer:
    writer.write(1, {"a": bad, "b": np.float32(0.5)})

  def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")

  text = writer.file.read_text()
  assert json.loads(text, parse_constant=refuse) == {"step": 1, "a": None, "b": 0.5}


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_come_back(tmp_path, channels):
  from PIL import Image

  image = np.arange(6 * channels, dtype=np.uint8).reshape(2, 3, channels)
  metrics.write_picture(tmp_path, "x", image)
  found = np.asarray(Image.open(tmp_path / "report" / "x.png"))
  np.testing.assert_array_equal(found.reshape(image.shape), image)


@pytest.mark.parametrize(
  "kind, peak",
  [
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5", 459e12),
    ("TPU v6 lite", 918e12),
    ("NVIDIA A100-SXM4-80GB", 312e12),
    ("NVIDIA H100 80GB HBM3", 989e12),
    ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA H200", 989e12),
    ("NVIDIA L40S", 362e12),
    ("NVIDIA L4", 121e12),
    ("NVIDIA GB200", 2500e12),
    ("Abacus 9000", None),
  ],
)
def test_peak_of_accelerators(kind, peak):
  device = types.SimpleNamespace(platform="gpu", device_kind=kind)
  assert metrics.peak_flops(device) == peak


def test_peak_of_a_cpu_is_measured_once():
  first = metrics.peak_flops(jax.devices()[0])
  # Above what one scalar unit does, below any machine: a unit or a factor of 8 slipped otherwise.
  assert 1e8 < first < 1e14
  assert metrics.peak_flops(jax.devices()[7]) == first


class Clock:
  """A ledger's, past its start-up."""

  def __init__(self):
    self.now = 0.0
    self.ledger = goodput.Ledger(lambda: self.now)
    self.ledger.otherwise("compute")

  def spend(self, seconds, phase=None):
    with self.ledger.phase(phase) if phase else contextlib.nullcontext():
      self.now += seconds


def progress_of(total, clock=None, **kwargs):
  kwargs = dict(start_step=0, batch_size=1, flops_per_step=1, peak_flops=None) | kwargs
  return metrics.Progress(total, ledger=(clock or Clock()).ledger, **kwargs)


def test_where_the_time_of_an_interval_goes(capsys):
  clock = Clock()
  with progress_of(
    100, clock, start_step=10, batch_size=8, flops_per_step=50, peak_flops=1000.0
  ) as progress:
    for step in range(11, 21):
      clock.spend(0.25, "data_wait")
      clock.spend(0.75)
      clock.spend(0.5, "checkpoint")
      clock.spend(2.5, "evaluation")
      rates = progress.update(step, loss=0.5)
  assert rates == {
    "perf/examples_per_second": pytest.approx(8.0),
    "perf/mfu_percent": pytest.approx(5.0),
    "perf/compute_percent": pytest.approx(18.75),
    "perf/data_wait_percent": pytest.approx(6.25),
    "perf/checkpoint_percent": pytest.approx(12.5),
    "perf/evaluation_percent": pytest.approx(62.5),
    "perf/goodput_percent": pytest.approx(18.75),
  }
  lines = capsys.readouterr().out.splitlines()
  # 40 seconds pass, an update every 4: a line every second update. 81 steps of 4 s are left.
  assert len(lines) == 5
  assert lines[-1] == (
    "step 19/100  loss 0.5000  8 examples/s  mfu 5.0 %  data wait 6 %  checkpoint 12 %  "
    "evaluation 62 %  eta 0:05:24"
  )


def test_start_up_is_no_training(capsys):
  """It lowers the goodput, not the rate or the ETA."""
  clock = Clock()
  with progress_of(10, clock, plain_every_seconds=0) as progress:
    clock.spend(90, "startup")
    clock.spend(10)
    rates = progress.update(5, loss=1.0)
  assert rates["perf/examples_per_second"] == 0.5 and rates["perf/goodput_percent"] == 10
  assert rates["perf/compute_percent"] == 10
  assert capsys.readouterr().out == (
    "step 5/10  loss 1.0000  0 examples/s  data wait 0 %  eta 0:00:10\n"
  )


def test_unknown_peak_shows_no_mfu(capsys):
  with progress_of(2) as progress:
    rates = progress.update(2, loss=float("nan"))
  assert "perf/mfu_percent" not in rates
  assert "mfu" not in capsys.readouterr().out


def test_the_bar_of_a_terminal(capsys, monkeypatch):
  monkeypatch.setattr(metrics.sys.stdout, "isatty", lambda: True, raising=False)
  monkeypatch.setenv("COLUMNS", "200")
  with progress_of(2) as progress:
    progress.update(2, loss=0.5)
    progress.say("saved [bold] in a [folder]")
  out = capsys.readouterr().out
  assert "step 2/2  loss 0.5000" in out
  assert "saved [bold] in a [folder]" in out  # names are no markup


# ----------------------------------------------------------------------------------------- profile


def traces(workdir):
  return list(workdir.glob("tensorboard/plugins/profile/*/*.xplane.pb"))


def test_a_trace_of_the_steps_asked_for(tmp_path):
  """Where TensorBoard looks for it; the annotation of a step outside is not in it."""
  ledger, running = goodput.Ledger(), {}
  with metrics.Profiler(tmp_path, metrics.profile_range((3, 4), 6), ledger) as profiler:
    for step in range(1, 7):
      profiler.before(step, running)
      assert bool(traces(tmp_path)) == (step > 4)
      with jax.profiler.TraceAnnotation(f"marked_{step}"):
        running = jnp.ones(2) + step
      profiler.after(step, running)
  [file] = traces(tmp_path)
  assert [i for i in range(1, 7) if f"marked_{i}".encode() in file.read_bytes()] == [3, 4]
  assert ledger.here()["profile"] > 0


def test_a_run_that_ends_early_leaves_its_trace(tmp_path):
  ledger = goodput.Ledger()
  with (
    pytest.raises(SystemExit),
    metrics.Profiler(tmp_path, range(2, 9), ledger) as profiler,
  ):
    profiler.before(5, {})  # resumed amid the steps
    raise SystemExit
  assert len(traces(tmp_path)) == 1


def test_nothing_is_traced_by_default_or_beside_another_process(tmp_path, monkeypatch):
  from jax.experimental import multihost_utils

  same_host = lambda host: np.stack([host, host])
  monkeypatch.setattr(multihost_utils, "process_allgather", same_host)
  for steps, count in ((range(0), 1), (range(1, 3), 2)):
    monkeypatch.setattr(jax, "process_count", lambda n=count: n)
    monkeypatch.setattr(jax, "process_index", lambda n=count: n - 1)
    with metrics.Profiler(tmp_path, steps, goodput.Ledger()) as profiler:
      profiler.before(1, {})
      profiler.after(2, {})
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("off", [None, (), []])
def test_profile_off(off):
  assert len(metrics.profile_range(off, 10)) == 0


@pytest.mark.parametrize(
  "value, message",
  [
    ((10,), r"profile_steps = \(10,\); expected \(first, last\)"),
    (10, r"profile_steps = 10; expected \(first, last\)"),
    ("10", r"profile_steps = '10'; expected"),
    ((0, 5), r"step = 0; expected a positive whole number"),
    ((1.5, 5), r"step = 1.5; expected a positive whole number"),
    ((5, 3), r"\(5, 3\); expected first <= last <= 10"),
    ((5, 11), r"\(5, 11\); expected first <= last <= 10"),
  ],
)
def test_mistakes_in_profile_steps(value, message):
  with pytest.raises(UserError, match=message):
    metrics.profile_range(value, 10)
