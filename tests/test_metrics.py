"""What a resumed run logs, the peaks of devices, and the progress line in a pipe."""

import json
import types

import jax
import numpy as np
import pytest

from big_vision_like import metrics


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


def test_plain_lines_are_rare_and_pauses_do_not_count(capsys, monkeypatch):
  now = [0.0]
  monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
  with metrics.Progress(
    100, start_step=10, batch_size=8, flops_per_step=50, peak_flops=1000.0
  ) as progress:
    for step in range(11, 21):
      now[0] += 1.0
      with progress.pause():
        now[0] += 3.0
      rates = progress.update(step, loss=0.5, data_wait=0.25 * (step - 10))
  assert rates == {
    "perf/examples_per_second": pytest.approx(8.0),
    "perf/data_wait_percent": pytest.approx(25.0),
    "perf/mfu_percent": pytest.approx(5.0),
  }
  lines = capsys.readouterr().out.splitlines()
  # 40 seconds pass, an update every 4: a line every second update.
  assert len(lines) == 5
  assert lines[-1] == (
    "step 19/100  loss 0.5000  8 examples/s  mfu 5.0 %  data wait 25 %  eta 0:01:21"
  )


def test_unknown_peak_shows_no_mfu(capsys):
  with metrics.Progress(
    2, start_step=0, batch_size=1, flops_per_step=1, peak_flops=None
  ) as progress:
    rates = progress.update(2, loss=float("nan"), data_wait=0.0)
  assert "perf/mfu_percent" not in rates
  assert "mfu" not in capsys.readouterr().out
