"""The loop: resumes to the bit, on another mesh to 1e-5, stops at a NaN, survives a kill."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_like import goodput, tree
from big_vision_like import train as trainer
from big_vision_like.config import Durations, UserError, wrap
from tests import tiny
from tools import export

MESH1 = {"replica": 1, "fsdp": 8, "tensor": 1, "sequence": 1}
MESH2 = {"replica": 1, "fsdp": 4, "tensor": 2, "sequence": 1}


def lines(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir):
  return np.array([x["train/loss"] for x in lines(workdir) if "train/loss" in x])


def assert_same(a, b):
  a, b = tree.flatten(jax.device_get(a)), tree.flatten(jax.device_get(b))
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """The uninterrupted run: workdir and final state."""
  workdir = tmp_path_factory.mktemp("whole")
  return workdir, trainer.train(tiny.config(), workdir)


def interrupted(workdir, after, monkeypatch, **overrides):
  """Runs until step `after` and stops there as if preempted."""
  from big_vision_like import checkpoint

  with monkeypatch.context() as patch:
    patch.setattr(checkpoint.PreemptionGuard, "requested", lambda self, at: at >= after)
    with pytest.raises(SystemExit) as stop:
      trainer.train(tiny.config(**overrides), workdir)
  assert stop.value.code == checkpoint.REQUEUE_EXIT_CODE


def test_loss_is_finite_and_logged_once(whole):
  workdir, _ = whole
  assert [x["step"] for x in lines(workdir)] == [1, 2, 3, 4, 5, 6]
  assert np.isfinite(losses(workdir)).all()


def test_summary_of_a_finished_run(whole):
  found = json.loads((whole[0] / "summary.json").read_text())
  assert found["steps"] == 6 and found["examples"] == 6 * 16 and found["method"] == "siglip"
  assert found["params"] == sum(x.size for x in jax.tree.leaves(whole[1].params))
  assert found["flops"] > 6 * found["examples"] * 1000


def test_preempted_and_resumed_to_the_bit(whole, tmp_path, monkeypatch, capsys):
  began = time.time()
  interrupted(tmp_path, 3, monkeypatch)
  assert len(losses(tmp_path)) == 3
  first = goodput.read(tmp_path / "goodput.json")
  assert not first["finished"] and first["seconds"]["compute"] > 0
  state = trainer.train(tiny.config(profile_steps=(4, 5)), tmp_path)
  assert_same(state, whole[1])
  assert lines(tmp_path) == lines(whole[0])
  assert len(list(tmp_path.glob("tensorboard/plugins/profile/*/*.xplane.pb"))) == 1
  # Nothing was lost, and every second since the start is in the account.
  found = goodput.read(tmp_path / "goodput.json")
  seconds = found["seconds"]
  assert found["finished"] and seconds["lost"] == 0 and list(found["marks"])[-2:] == ["4", "6"]
  assert all(seconds[k] > first["seconds"][k] for k in ("startup", "compute", "checkpoint"))
  assert seconds["restore"] > 0 and seconds["down"] > 0 and seconds["profile"] > 0
  assert sum(seconds.values()) == pytest.approx(found["last_seen"] - began, abs=1)
  assert "goodput" in capsys.readouterr().out.splitlines()[-1]


def test_step_time_is_in_tensorboard(whole):
  from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

  events = EventAccumulator(str(whole[0] / "tensorboard"))
  events.Reload()
  names = [f"perf/{k}_percent" for k in ("compute", "data_wait", "checkpoint", "evaluation")]
  for at in range(1, 6):  # a log interval each; the first begins with the compile
    shares = [events.Scalars(name)[at].value for name in names]
    assert all(0 <= x <= 100 for x in shares) and sum(shares) == pytest.approx(100, abs=1e-3)
  assert 0 < events.Scalars("perf/goodput_percent")[-1].value < 100
  assert not any("perf/" in name for line in lines(whole[0]) for name in line)


def test_data_wait_begins_when_the_devices_are_idle():
  """While they still work at the step before, a batch that is late costs nothing."""
  now, asked = [0.0], []

  class Running:
    def is_ready(self):
      now[0] += 3.0
      asked.append(now[0])
      return len(asked) == 2

  class Batches:
    def ready(self):
      return False

    def __next__(self):
      now[0] += 4.0
      return "batch"

  ledger = goodput.Ledger(lambda: now[0])
  ledger.otherwise("compute")
  assert trainer.next_batch(Batches(), {"loss": Running()}, ledger) == "batch"
  spent = ledger.here()
  assert (spent["compute"], spent["data_wait"]) == (6.0, 4.0)


@pytest.mark.parametrize("mesh", [MESH2, "one device"])
def test_resumed_on_another_mesh(whole, tmp_path, monkeypatch, mesh):
  interrupted(tmp_path, 3, monkeypatch, mesh=MESH1)
  if mesh == "one device":
    make = trainer.sharding.make_mesh
    monkeypatch.setattr(
      trainer.sharding, "make_mesh", lambda cfg, devices=None: make(cfg, jax.devices()[:1])
    )
    mesh = {"replica": 1, "fsdp": 1, "tensor": 1, "sequence": 1}
  trainer.train(tiny.config(mesh=mesh), tmp_path)
  np.testing.assert_allclose(losses(tmp_path), losses(whole[0]), rtol=1e-5)


def test_a_finished_run_does_nothing(whole):
  files = [whole[0] / name for name in ("metrics.jsonl", "goodput.json")]
  before = [f.read_text() for f in files]
  assert_same(trainer.train(tiny.config(), whole[0]), whole[1])
  assert [f.read_text() for f in files] == before


@pytest.mark.parametrize("form", ["run", "npz"])
def test_init_from_another_run(whole, tmp_path, form):
  """A fine-tuning run starts where the other ended; its optimizer and step start anew."""
  source = f"{whole[0]}::params/image"
  if form == "npz":
    export.main(["--workdir", str(whole[0]), "--format", "npz", "--out", str(tmp_path / "out")])
    source = f"{tmp_path / 'out' / 'params.npz'}::image"
  workdir, init_from = tmp_path / "run", {"params/image": source}
  trainer.train(tiny.config(2, init_from=init_from, optim__lr=1e-9), workdir)
  assert "taken" in (workdir / "init_from.txt").read_text()
  _, _, state, _ = trainer.restore(workdir)
  a, b = tree.flatten(state.params), tree.flatten(whole[1].params)
  for name in a:
    if name.startswith("image/"):  # two steps at a rate of 1e-9 move nothing that shows
      np.testing.assert_allclose(a[name], b[name], atol=1e-6, err_msg=name)
  assert int(state.step) == 2 and not np.array_equal(a["text/pos_embed"], b["text/pos_embed"])


def test_accumulation_of_a_mean_equals_the_batch():
  """k micro-batches of a loss that is a mean over examples give the gradients of the batch."""
  from big_vision_like import method as method_lib
  from big_vision_like import step

  def loss(params, aux, batch, rng, count):
    value = jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2)
    return value, (aux, {"mse": value})

  method = method_lib.Method(init=None, loss=loss, predict={})
  rng = np.random.default_rng(0)
  params = {"w": jnp.asarray(rng.normal(size=(3,)), jnp.float32)}
  batch = {
    "x": jnp.asarray(rng.normal(size=(8, 3)), jnp.float32),
    "y": jnp.asarray(rng.normal(size=(8,)), jnp.float32),
  }
  args = (params, {}, batch, jax.random.key(0), jnp.int32(0))
  (one, _), grads_one = step.accumulated(method, 1)(*args)
  (four, _), grads_four = step.accumulated(method, 4)(*args)
  np.testing.assert_allclose(four, one, rtol=1e-6)
  np.testing.assert_allclose(grads_four["w"], grads_one["w"], rtol=1e-5)


def test_nan_stops_at_its_step_and_keeps_the_last_checkpoint(tmp_path, monkeypatch):
  read = trainer.pipeline.Stream.__next__

  def poisoned(stream):
    batch = read(stream)
    if batch["index"][0] == 48:
      batch = {**batch, "image": np.full_like(batch["image"], np.nan)}
    return batch

  monkeypatch.setattr(trainer.pipeline.Stream, "__next__", poisoned)
  with pytest.raises(trainer.NonFiniteError, match="step 4: NaN or Inf in loss"):
    trainer.train(tiny.config(), tmp_path)
  dump = json.loads((tmp_path / "nonfinite_4.json").read_text())
  assert dump["index"] == list(range(48, 64))
  monkeypatch.undo()
  _, _, state, _ = trainer.restore(tmp_path)
  assert int(state.step) == 2


@pytest.mark.parametrize(
  "overrides, message",
  [
    (dict(method="siglpi"), "config.method 'siglpi' is unknown; did you mean siglip"),
    (dict(optim__lrr=1.0), "lrr"),
    (dict(optim__name="adamv"), "adamw"),
    (dict(model__image__patch_size=(5, 8)), "patch"),
    (dict(input__batch_size=12), "12"),
    (dict(mesh=dict(replica=1, fsdp=3, tensor=1, sequence=1)), "3"),
    (dict(input__source="digit_pears(split='train')"), "digit_pairs"),
    (dict(input__pp="value_rang(-1, 1)"), "value_range"),
    (dict(evals=dict(z=dict(type="zeroshoot"))), "zeroshot"),
    (dict(evals=dict(z=dict(type="intervals"))), "'intervals' is a helper, not an evaluator"),
    (dict(speling=1), "nothing reads config.speling"),
    (dict(profile_steps=(5, 7)), "config.profile_steps = (5, 7)"),
    (dict(loss__impl="rign"), "ring"),
    (dict(input__source="image_folder(path='/nowhere')"), "/nowhere"),
  ],
)
def test_mistakes_are_one_line(overrides, message, tmp_path):
  with pytest.raises(UserError) as error:
    trainer.train(tiny.config(**overrides), tmp_path / "w")
  assert message in str(error.value)
  assert "\n" not in str(error.value)
  assert not (tmp_path / "w").exists()


def test_a_workdir_of_another_config(whole):
  with pytest.raises(UserError, match=r"optim.lr \(0.001 -> 0.5\)"):
    trainer.train(tiny.config(optim__lr=0.5), whole[0])


def test_an_unwritable_workdir(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="cannot be written"):
    trainer.train(tiny.config(), tmp_path / "file" / "w")


# ------------------------------------------------------------------------ separate processes

PROGRAM = """
import sys, jax
jax.config.update("jax_compilation_cache_dir", {cache!r})
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
from tests import tiny
from big_vision_like import train
train.train(tiny.config(steps={steps}{extra}), {workdir!r})
"""


def start(workdir, steps, devices=2, extra="", **environment):
  cache = str(jax.config.jax_compilation_cache_dir)
  code = PROGRAM.format(cache=cache, steps=steps, workdir=str(workdir), extra=extra)
  env = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu", **environment}
  return subprocess.Popen(
    [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
  )


def wait(process, timeout=240):
  out, _ = process.communicate(timeout=timeout)
  return process.returncode, out.decode()


def test_killed_three_times_and_restarted(tmp_path):
  """SIGKILL at random moments: the end is the uninterrupted run's to the bit."""
  steps, draw = 30, random.Random(0)
  code, out = wait(start(tmp_path / "whole", steps))
  assert code == 0, out
  killed = tmp_path / "killed"
  for round_ in range(3):
    process = start(killed, steps)
    seen = max((x["step"] for x in lines(killed)), default=0) if round_ else 0
    target = min(seen + draw.randint(1, 9), steps - 1)
    while process.poll() is None:
      file = killed / "metrics.jsonl"
      if file.exists() and file.read_text().count("\n") >= target:
        break
      time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
  code, out = wait(start(killed, steps))
  assert code == 0, out
  assert lines(killed) == lines(tmp_path / "whole")
  states = [trainer.restore(d)[2] for d in (killed, tmp_path / "whole")]
  assert_same(*states)
  content = goodput.read(killed / "goodput.json")
  assert content["finished"] and content["seconds"]["down"] > 0


def test_two_processes_equal_one(tmp_path):
  """Two processes of 4 devices give the losses of one process of 8."""
  port = random.randint(20_000, 50_000)
  shared = dict(JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}", JAX_NUM_PROCESSES="2")
  pair = [start(tmp_path / "two", 4, devices=4, JAX_PROCESS_ID=str(i), **shared) for i in range(2)]
  results = [wait(p) for p in pair]
  assert [code for code, _ in results] == [0, 0], results
  code, out = wait(start(tmp_path / "one", 4, devices=8))
  assert code == 0, out
  np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5)


def test_a_dead_peer_ends_the_other(tmp_path):
  port = random.randint(20_000, 50_000)
  shared = dict(JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}", JAX_NUM_PROCESSES="2")
  pair = [
    start(tmp_path / "two", 100_000, devices=4, JAX_PROCESS_ID=str(i), **shared) for i in range(2)
  ]
  while not (tmp_path / "two" / "metrics.jsonl").exists() and pair[0].poll() is None:
    time.sleep(0.1)
  pair[1].send_signal(signal.SIGKILL)
  pair[1].communicate()
  code, out = wait(pair[0], timeout=30)
  assert code != 0
  # jax names the task by its number, on a line of its own.
  assert re.search(r"stopped sending heartbeats\):\s+1\b", out), out[-2000:]


def test_initial_evaluation_is_of_the_untrained_model(tmp_path):
  config = tiny.config(steps=3)
  source = "digit_pairs(split='val', size=32)"
  val = dict(type="loss", every_steps=3, initial=True, source=source, pp=config.input.pp)
  config.evals = {"val": dict(val, batch_size=32)}
  trainer.train(config, tmp_path)
  trainer.train(config, tmp_path)  # resuming does not repeat it
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  scores = {line["step"]: line["eval/val/loss"] for line in lines if "eval/val/loss" in line}
  assert list(scores) == [0, 3] and scores[3] < scores[0]


def test_a_method_can_ask_how_long_the_run_is():
  config = wrap(dict(total_steps=40, loss=dict(warmup_percent=25)))
  assert config.durations is None
  durations = Durations(8, 80, 40)
  timed = config.timed(durations)
  assert timed.durations(timed.loss, "warmup") == 10
  assert timed.loss.durations.total_steps == 40
  assert config.unread() == ["config.total_steps"]
