"""Benchmarks: arithmetic by a clock of our own, missing peers, the command line, tiny suites."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_like.config import UserError
from tools.bench import __main__ as bench
from tools.bench import gpu, harness, loss, table
from tools.bench.harness import Options, Row, Spread, Target


class Clock:
  """Time passes only where `spend` says so."""

  def __init__(self):
    self.now = 0.0

  def __call__(self):
    return self.now

  def spend(self, *seconds):
    """A run that takes these times, one after the other, and then zero."""
    left = list(seconds)

    def run():
      self.now += left.pop(0) if left else 0.0

    return run


def no_torch():
  raise ModuleNotFoundError("No module named 'torch'", name="torch")


def test_compare_takes_turns_and_leaves_the_warm_up_out():
  clock, order = Clock(), []
  runs = {
    "ours": clock.spend(90, 90, 2, 4, 2, 4, 6),
    "fast": clock.spend(90, 90, 3, 3, 3, 3, 3),
    "slow": clock.spend(90, 90, 10, 10, 12, 40, 12),
  }
  build = lambda name: lambda: order.append(name) or runs[name]()
  options = Options(repeats=5, clock=clock)
  peers = {"fast": lambda: build("fast"), "slow": lambda: build("slow"), "gone": no_torch}
  targets = {"slow": Target("4", 2.5, 3.5)}
  found = harness.compare(options, "x", lambda: build("ours"), peers, targets=targets)
  rows = {row.name: row for row in found}
  assert order[:2] == ["ours", "ours"] and order[6:] == ["ours", "fast", "slow"] * 5
  assert rows["x/slow"].ours == Spread(2, 4, 6) and rows["x/slow"].peer == Spread(10, 12, 40)
  assert rows["x/slow"].value == 12 / 4  # of the medians, not the median of the pairs
  assert rows["x/slow"].ratios == Spread(2, 5, 10)
  assert rows["x/fast"].value == 3 / 4 and rows["x/fast"].target is None
  plain = rows["x/slow"].to_json()
  assert plain["gate_met"] and not plain["stretch_met"]
  json.dumps(plain)
  assert rows["x/gone"].note == "peer not installed: pip install -e .[parity] (torch)"
  assert rows["x/gone"].value is None and "gate_met" not in rows["x/gone"].to_json()


def test_rows_that_nobody_wants_are_not_built():
  options = Options(only="x/b$")
  fail = lambda: pytest.fail("built")
  [row] = harness.compare(options, "x", fail, {"a": fail, "b": no_torch})
  assert row.name == "x/b"
  assert not list(harness.compare(options, "y", fail, {"a": fail, "b": fail}))
  assert list(options.names) == ["x/a", "x/b", "y/a", "y/b"]


def test_share_of_peak():
  clock = Clock()
  ours, peak = clock.spend(0, 0, 4, 5, 6, 5, 5), clock.spend(0, 0, 2, 1, 2, 2, 2)
  options = Options(repeats=5, clock=clock)
  row = harness.share_of_peak(options, "x", ours, 100, (peak, 40), values={"batch": 3})
  assert row.value == (100 / 5) / (40 / 1)
  assert row.values == {"batch": 3, "flop_per_s": 20, "matmul_flop_per_s": 40}


def test_targets_and_cells():
  least, most = Target("1", 2.0, 3.0), Target("2", 2.0, at_most=True)
  assert least.met(2.0) and not least.met(1.9) and least.stretch_met(3.0)
  assert most.met(2.0) and not most.met(2.1) and most.stretch_met(1.0) is None
  out = io.StringIO()
  with table.Table("loss", {"device": "cpu"}, out) as shown:
    shown.add(Row("a", "x faster", 2.5, Spread(0.1, 0.2, 0.3), target=least, values={"n": 4096}))
    shown.add(Row("b", "ratio", 2.1, Spread(1.0, 2.0, 3.0), target=most))
    shown.add(Row("c", "ratio", None, target=most, note="none"))
  text = out.getvalue()
  assert "100 / 200 / 300 ms" in text and "1: >= 2 / 3 gate met" in text and "n=4,096" in text
  assert "1 / 2 / 3 s" in text and "2: <= 2 MISSED" in text
  assert text.endswith("1 of 2 gates met\n")


def test_a_terminal_gets_a_live_table():
  class Terminal(io.StringIO):
    def isatty(self):
      return True

  with table.Table("loss", {"device": "cpu"}, Terminal()) as shown:
    for name in ("first", "[red]second"):
      shown.add(Row(name, "x", 1.0, target=Target("1", 2.0)))
  text = shown.out.getvalue()
  assert "first" in text and "[red]" in text and "MISSED" in text
  assert text.endswith("0 of 2 gates met\n")


@pytest.mark.parametrize(
  "args, message",
  [
    (["--suite", "los"], "did you mean loss"),
    (["--suite", "loss", "--only", "("], "not a regular expression"),
    (["--suite", "loss", "--repeats", "4"], ">= 5"),
    (["--suite", "loss", "--json", "/nowhere/x.json"], "is not a folder"),
    (["--suite", "loss", "--smoke", "--only", "nothing"], "rows: memory/sigmoid/formula/256"),
    (["--suite", "gpu"], "--smoke runs anywhere"),
  ],
)
def test_mistakes_on_the_command_line(args, message):
  with pytest.raises(UserError, match=message):
    bench.main(args)


def test_memory_of_the_losses_by_the_command(tmp_path, capsys):
  out = tmp_path / "rows.json"
  args = ["--suite", "loss", "--smoke", "--only", "^(memory|growth)/sigmoid", "--json", str(out)]
  assert bench.main(args) == 0
  rows = {row["name"]: row for row in json.loads(out.read_text())["rows"]}
  dense = rows["memory/sigmoid/dense/256"]["values"]
  # Half of the rows of the B x B logits, at least twice: themselves and their gradient.
  assert dense["local_bytes"] == 128 * 32 * 4 and dense["temp_bytes"] >= 2 * 128 * 256 * 4
  ring = rows["memory/sigmoid/ring/256"]["values"]["temp_bytes"]
  formula = rows["memory/sigmoid/formula/256"]["values"]["temp_bytes"]
  assert rows["memory/sigmoid/formula_over_ring/256"]["value"] == formula / ring
  assert rows["growth/sigmoid/formula"]["value"] == pytest.approx(2, rel=0.02)
  assert "memory/sigmoid/ring/256" in capsys.readouterr().out


def test_reference_of_the_losses():
  """The tiled float64 gradients against autodiff of the formula, and the errors it reports."""
  image, text = loss.embeddings(24, 8)
  assert np.linalg.norm(image, axis=1) == pytest.approx(1, rel=1e-6)
  true = loss.reference(image, text, 1.5, -2.0, tile=7)
  scalars = jnp.float32(1.5), jnp.float32(-2.0)
  fn = jax.value_and_grad(loss.formula, argnums=(0, 1, 2, 3))
  value, grads = fn(image, text, *scalars)
  assert max(loss.relative_errors((value, *grads), true).values()) < 2e-6
  wrong = (value, grads[0] * 1.01, *grads[1:])
  assert loss.relative_errors(wrong, true)["d_img"] == pytest.approx(0.01, rel=1e-3)


def test_gpu_suite_runs_anywhere_tiny():
  options = Options("siglip_mu16/(torch|scan|best)", repeats=1, smoke=True)
  rows = {row.name: row for row in gpu.rows(options)}
  assert harness.NOT_INSTALLED in rows["pair/siglip_mu16/torch"].note or (
    rows["pair/siglip_mu16/torch"].value > 0
  )
  best = rows["step/siglip_mu16/best"]
  assert best.note == "of step/siglip_mu16/scan/none" and 0 < best.value < 1
  assert best.values["batch"] == 8 and best.values["peak_bytes"] > 0
  assert best.values["examples_per_s"] == pytest.approx(8 / best.ours.median)


def test_gpu_configs_are_the_committed_ones():
  """Every model of the suite is a committed config with the choices of layout set."""
  for model in gpu.MODELS.values():
    config = gpu.config_of(model, 8, False, "full", smoke=False)
    towers = [config["model"].get(k, config["model"]) for k in ("image", "text")]
    for tower in towers:
      assert (tower["scan"], tower["remat"], tower["dtype"]) == (False, "full", "bfloat16")
    assert config["optim"]["name"] == "adamw" and config["input"]["batch_size"] == 8


def test_batches_get_smaller_until_one_fits():
  tried = []

  def attempt(batch):
    tried.append(batch)
    if batch > 4:
      raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating")
    return batch

  assert gpu.first_that_fits((16, 8, 4, 2), attempt) == 4 and tried == [16, 8, 4]
  assert gpu.first_that_fits((16, 8), attempt) is None
  with pytest.raises(ZeroDivisionError):
    gpu.first_that_fits((1,), lambda batch: 1 / 0)
