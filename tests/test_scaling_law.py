"""Scaling laws: known laws are found again, with intervals that hold what they claim."""

import csv
import json
import pathlib

import numpy as np
import pytest
from scipy.optimize import check_grad

from big_vision_like.config import UserError
from tools.scaling_law import __main__ as command
from tools.scaling_law import compare, fit, frontier, laws, runs

DATA = pathlib.Path(__file__).parents[2] / "shared" / "data" / "scaling"
TRUE = dict(E=1.8, A=480.0, B=2100.0, alpha=0.35, beta=0.37)


def table(budgets=5, sizes=7):
  """Runs of IsoFLOP families."""
  flops = np.repeat(np.geomspace(1e15, 1e18, budgets), sizes)
  params = np.tile(np.geomspace(0.05, 1, sizes), budgets) * (flops / 6) ** 0.5
  return {"params": params, "examples": flops / 6 / params, "flops": flops}


def true_loss(columns, **changed):
  t = TRUE | changed
  return (
    t["E"] + t["A"] / columns["params"] ** t["alpha"] + t["B"] / columns["examples"] ** t["beta"]
  )


def noisy(loss, seed, scale=0.01):
  return loss * np.exp(scale * np.random.default_rng(seed).normal(size=len(loss)))


ALL = (laws.CHINCHILLA, laws.REPEATED, laws.BATCH, laws.saturating(), laws.power())


@pytest.mark.parametrize("law", ALL, ids=[law.name for law in ALL])
def test_gradients(law):
  columns = table(2, 3)
  columns["unique_examples"] = columns["examples"] / np.array([1, 2, 3, 4, 8, 0.5])
  columns["batch_size"] = np.geomspace(8, 4096, 6)
  v = law.grid()[len(law.grid()) // 2]
  for i in range(6):
    one = {k: x[i : i + 1] for k, x in columns.items()}
    if law.name.startswith("saturating"):
      one = columns
    value = lambda v, one=one, i=i: law.predict(v, one)[0][min(i, len(one["params"]) - 1)]
    slope = lambda v, one=one, i=i: law.predict(v, one)[1][min(i, len(one["params"]) - 1)]
    assert check_grad(value, slope, v) < 1e-5


def test_a_law_without_noise_is_found_again():
  columns = table()
  found = fit.fit(laws.CHINCHILLA, columns, true_loss(columns), bootstrap=0).intervals()
  for name, value in TRUE.items():
    assert found[name]["value"] == pytest.approx(value, rel=2e-2)


def test_terms_for_repetition_and_batch_size():
  columns = table()
  rng = np.random.default_rng(0)
  columns["unique_examples"] = columns["examples"] / rng.choice([1, 4, 16, 64], 35)
  u, repeats = columns["unique_examples"], columns["examples"] / columns["unique_examples"] - 1
  effective = {**columns, "examples": u + u * 15 * (1 - np.exp(-repeats / 15))}
  found = fit.fit(laws.REPEATED, columns, true_loss(effective), bootstrap=0)
  assert found.law.shown(found.variables)["R"] == pytest.approx(15, rel=0.1)
  columns["batch_size"] = rng.choice([64.0, 512.0, 4096.0, 32768.0], 35)
  effective = {**columns, "examples": columns["examples"] / (1 + columns["batch_size"] / 1000)}
  found = fit.fit(laws.BATCH, columns, true_loss(effective), bootstrap=0)
  assert found.law.shown(found.variables)["critical"] == pytest.approx(1000, rel=0.1)


def covered(draws):
  """How many of the intervals hold the true exponents."""
  columns, inside = table(), np.zeros(2, int)
  for seed in range(draws):
    loss = noisy(true_loss(columns), seed)
    found = fit.fit(laws.CHINCHILLA, columns, loss, bootstrap=200, seed=seed, delta=0.03)
    found = found.intervals()
    for i, name in enumerate(("alpha", "beta")):
      inside[i] += found[name]["low"] <= TRUE[name] <= found[name]["high"]
  return inside


def test_intervals_hold_the_true_exponents_in_few_draws():
  assert (covered(5) >= 4).all()


@pytest.mark.slow
def test_intervals_hold_the_true_exponents():
  inside = covered(100)
  print("intervals that hold alpha, beta, of 100:", inside)
  assert (inside >= 90).all()


def test_saturating_error():
  x = np.geomspace(1e15, 1e20, 20)
  loss = 0.4 * (x / np.exp(np.log(x).mean()) + 0.01) ** -0.3 + 0.12
  found = fit.fit(laws.saturating(), {"flops": x}, loss, bootstrap=0)
  shown = found.law.shown(found.variables)
  assert shown["e"] == pytest.approx(0.12, rel=0.05) and shown["b"] == pytest.approx(0.3, rel=0.05)


def test_huber():
  value, slope = fit.huber(np.array([-2.0, 0.5]), 1.0)
  np.testing.assert_allclose(value, [1.5, 0.125])
  np.testing.assert_allclose(slope, [-1.0, 0.5])


def test_isoflop_and_the_optima_of_the_law_agree():
  columns = table(5, 9)
  loss = true_loss(columns)
  found = frontier.parabolas(columns["params"], columns["flops"], loss)
  assert len(found) == 5
  law = fit.fit(laws.CHINCHILLA, columns, loss, bootstrap=0)
  best = frontier.optimal(law, np.array([p.flops for p in found]))
  np.testing.assert_allclose([p.params for p in found], best["params"], rtol=0.15)
  np.testing.assert_allclose(6 * best["params"] * best["examples"], best["flops"])
  line = frontier.line(best["flops"], best["params"], bootstrap=50)
  assert line.exponent == pytest.approx(TRUE["beta"] / (TRUE["alpha"] + TRUE["beta"]), rel=0.02)
  # A minimum by search along one budget.
  n = np.geomspace(best["params"][2] / 3, best["params"][2] * 3, 2001)
  flat = true_loss({"params": n, "examples": best["flops"][2] / 6 / n})
  assert n[flat.argmin()] == pytest.approx(best["params"][2], rel=0.05)


def test_budgets_and_parabolas_that_say_nothing():
  flops = np.array([1.0, 10.0, 1.05, 99.0, 10.2])
  assert frontier.budgets(flops).tolist() == [0, 1, 0, 2, 1]
  params, flops = np.array([1.0, 2.0, 4.0]), np.full(3, 1e3)
  assert not frontier.parabolas(params, flops, np.array([1.0, 1.5, 1.0]))  # opens downwards
  assert not frontier.parabolas(params, flops, np.array([3.0, 2.0, 1.5]))  # falls to its end
  assert not frontier.parabolas(params[:2], flops[:2], np.array([3.0, 2.0]))


def test_envelope():
  x = np.geomspace(1, 100, 30)
  curves = [(1.0, x, 2 - 0.2 * np.log(x)), (8.0, x * 2, 2.6 - 0.4 * np.log(x * 2))]
  found = frontier.envelope(curves, bins=40)
  crossing = np.exp(0.6 / 0.2)
  assert set(found["params"][found["flops"] < crossing * 0.9]) == {1.0}
  assert set(found["params"][found["flops"] > crossing * 1.1]) == {8.0}
  assert found["flops"].min() >= 2 and found["flops"].max() <= 100


def write(root, name, summary, losses):
  folder = root / name
  folder.mkdir(parents=True)
  (folder / "summary.json").write_text(json.dumps(summary))
  rows = [{"step": i + 1, "eval/val/loss": x} for i, x in enumerate(losses)]
  (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


@pytest.fixture
def folder(tmp_path):
  columns = table(4, 5)
  for i in range(20):
    one = {k: v[i] for k, v in columns.items()}
    curve = [
      true_loss({**one, "examples": one["examples"] * share}) for share in (0.25, 0.5, 0.75, 1)
    ]
    write(tmp_path, f"runs/{i:02d}", {k: float(v) for k, v in one.items()}, curve)
  return tmp_path


def test_command(folder, capsys):
  args = ["--runs", str(folder / "runs"), "--out", str(folder / "out"), "--bootstrap", "20"]
  assert command.main(args) == 0
  found = json.loads((folder / "out" / "fit.json").read_text())
  for name, value in TRUE.items():
    assert found[name].keys() == {"value", "low", "high"}
    assert found[name]["value"] == pytest.approx(value, rel=0.1)
  assert found["flops_per_param_and_example"]["counted"] == pytest.approx(6)
  assert abs(found["laws"]["parametric"]["holdout"]["largest_error"]) < 1e-2
  assert len(found["isoflop"]["budgets"]) >= 3 and found["envelope"]["optimal_params"]
  assert {f.name for f in (folder / "out").iterdir()} == {
    *("fit.json", "index.html", "curves.png", "compute.png", "isoflop.png")
  }
  assert "E + A / N^alpha" in (folder / "out" / "index.html").read_text()
  assert "alpha" in capsys.readouterr().out


def test_pairs(tmp_path):
  for size, ratio in ((16, 0.9), (64, 0.95), (256, 1.0)):
    for loss, value in (("sigmoid", 2.0 * ratio), ("softmax", 2.0)):
      for seed in (0, 1):
        summary = dict(params=10, examples=100, flops=1e4, batch_size=size, loss=loss, seed=seed)
        write(tmp_path, f"{loss}{size}_{seed}", summary, [value * (1 + 0.001 * seed)])
  found = compare.paired(runs.read(tmp_path, "eval/val/loss"), "loss")
  assert found["values"] == ["sigmoid", "softmax"] and len(found["settings"]) == 3
  ratio = found["softmax / sigmoid"]
  assert ratio["value"] == pytest.approx((1 / (0.9 * 0.95)) ** (1 / 3))
  assert 1 <= ratio["low"] <= ratio["value"] <= ratio["high"] <= 1 / 0.9 + 1e-9
  assert {s["batch_size"] for s in found["settings"]} == {16, 64, 256}
  with pytest.raises(UserError, match="did you mean loss"):
    compare.paired(runs.read(tmp_path, "eval/val/loss"), "losss")
  with pytest.raises(UserError, match="no setting was run with two values"):
    compare.paired(runs.read(tmp_path / "sigmoid16_0", "eval/val/loss"), "loss")


def test_mistakes(tmp_path):
  with pytest.raises(UserError, match=r"no folder in it has a summary.json"):
    runs.read(tmp_path, "x")
  write(tmp_path, "a", dict(params=0, examples=1, flops=1), [1.0])
  with pytest.raises(UserError, match="params = 0; expected a positive number"):
    runs.read(tmp_path, "eval/val/loss")
  (tmp_path / "a" / "summary.json").write_text('{"params": 1, "examples": 1, "flops": 1}')
  with pytest.raises(UserError, match="'eval/val/los' is unknown; did you mean eval/val/loss"):
    runs.read(tmp_path, "eval/val/los")
  columns, loss = runs.columns(runs.read(tmp_path, "eval/val/loss"))
  with pytest.raises(UserError, match="1 runs cannot fix 5 variables"):
    fit.fit(laws.CHINCHILLA, columns, loss)
  with pytest.raises(UserError, match="no 'unique_examples'"):
    fit.fit(laws.REPEATED, columns, loss)


def test_points_of_the_chinchilla_paper():
  """Besiroglu et al. 2024 (arXiv:2404.10102) find E 1.82, A 482, B 2085, 0.348 and 0.366."""
  file = DATA / "chinchilla_figure4_points.csv"
  if not file.exists():
    pytest.skip("shared/data/scaling is absent")
  rows = list(csv.DictReader(file.read_text().splitlines()))
  n, c, loss = (
    np.array([float(r[k]) for r in rows]) for k in ("Model Size", "Training FLOP", "loss")
  )
  kept = np.argsort(-loss)[5:]  # it leaves out the five points of highest loss
  columns = {"params": n[kept], "examples": (c / 6 / n)[kept]}
  found = fit.fit(laws.CHINCHILLA, columns, loss[kept], bootstrap=50).intervals()
  assert found["alpha"]["value"] == pytest.approx(0.348, abs=0.02)
  assert found["beta"]["value"] == pytest.approx(0.366, abs=0.02)
  assert found["E"]["value"] == pytest.approx(1.82, abs=0.03)
  assert found["alpha"]["low"] < 0.348 < found["alpha"]["high"]


@pytest.mark.parametrize(
  "task, score, upstream, published",
  [
    ("imagenet1k", "acc1", "LAION", 0.11),
    ("imagenet1k", "acc1", "CLIP-WIT", 0.16),
    ("mscoco_captions", "image_retrieval_recall@5", "LAION", 0.08),
    ("mscoco_captions", "image_retrieval_recall@5", "CLIP-WIT", 0.05),
  ],
)
def test_exponents_of_openclip(task, score, upstream, published):
  """Error over compute: Cherti et al. 2022 (arXiv:2212.07143), Fig. 1, two digits."""
  file = DATA / "openclip_zeroshot_results.csv"
  if not file.exists():
    pytest.skip("shared/data/scaling is absent")
  rows = [
    (float(r["gmacs_total"]), float(r[score]))
    for r in csv.DictReader(file.read_text().splitlines())
    if r["downstream_dataset"] == task and r["upstream_dataset"].startswith(upstream)
  ]
  compute, right = np.array(rows).T
  found = fit.fit(laws.power(), {"flops": 2e9 * compute}, 1 - right, bootstrap=0, delta=0.1)
  assert found.law.shown(found.variables)["b"] == pytest.approx(published, abs=0.005)
