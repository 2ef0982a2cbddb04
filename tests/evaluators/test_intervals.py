"""Bootstrap intervals against scipy.stats.bootstrap and the binomial; intervals of evaluators."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_mesh
from scipy import stats

from big_vision_like.config import UserError, wrap
from big_vision_like.evaluators import accuracy, intervals, loss
from big_vision_like.state import State

STATE = State({}, {}, {}, 0)


def cfg(**kwargs):
  base = dict(source="digits(split='test')", batch_size=100, pp="drop(text)")
  return wrap({"evals": {"x": base | kwargs}}).evals.x


@pytest.mark.parametrize("kind", ["hits", "numbers"])
def test_as_scipy(kind):
  rng = np.random.default_rng(0)
  values = rng.random(300) < 0.3 if kind == "hits" else rng.exponential(size=300)
  count = 20_000
  expected = stats.bootstrap(
    (values,), np.mean, n_resamples=count, method="percentile", rng=np.random.default_rng(1)
  )
  means = intervals.resampled_means(values, count, np.random.default_rng(2))
  error = expected.standard_error
  assert means.shape == (count,) and means.std() == pytest.approx(error, rel=0.03)
  found = intervals.interval(values, count)
  # The quantile of 20,000 resamples itself varies by about 0.02 standard errors, and means of hits
  # lie on a grid of 1/300.
  atol = 1.01 / 300 if kind == "hits" else 0.1 * error
  assert found == pytest.approx(tuple(expected.confidence_interval), abs=atol)


def test_hits_are_binomial():
  """200 of 1000: the ends are quantiles of Binomial(1000, 0.2) / 1000."""
  low, high = intervals.interval(np.arange(1000) < 200, 50_000)
  expected = stats.binom.ppf([0.025, 0.975], 1000, 0.2) / 1000
  assert (low, high) == pytest.approx(tuple(expected), abs=1.1e-3)


def test_seeded_in_chunks_and_at_the_edges(monkeypatch):
  values = np.random.default_rng(0).normal(size=50)
  whole = intervals.interval(values, 100)
  assert whole == intervals.interval(values, 100) != intervals.interval(values, 100, seed=1)
  monkeypatch.setattr(intervals, "CHUNK", 70)  # a row at a time: the same draws
  assert intervals.interval(values, 100) == pytest.approx(whole, rel=1e-12)
  assert intervals.interval(np.ones(5), 10) == (1.0, 1.0)
  assert np.isnan(intervals.interval(np.zeros(0), 10)).all()
  narrow, wide = (np.ptp(intervals.interval(values, 2000, level)) for level in (0.5, 0.99))
  assert narrow < wide


@pytest.mark.parametrize("shape", [dict(replica=1, fsdp=1), dict(replica=2, fsdp=2, tensor=2)])
def test_evaluators(shape):
  """The same keys as ever without `bootstrap`; with it the ends, the same on 8 devices."""
  mesh = make_mesh(**shape)
  predict = {
    "logits": jax.jit(lambda p, a, b: jax.nn.one_hot(b["label"] // 2 * 2, 10)),
    "loss_per_example": jax.jit(lambda p, a, b, rng: b["label"].astype(jnp.float32)),
  }
  plain = accuracy.Evaluator(cfg(), predict, mesh).run(STATE)
  found = accuracy.Evaluator(cfg(bootstrap=500), predict, mesh).run(STATE)
  assert plain.keys() == {"accuracy", "top5"}
  assert found.keys() == plain.keys() | {f"{k}/{end}" for k in plain for end in ("low", "high")}
  assert found.items() >= plain.items()
  split = accuracy.Evaluator(cfg(), predict, mesh).split
  right = split.map(lambda b: {})["label"] % 2 == 0
  assert (found["accuracy/low"], found["accuracy/high"]) == intervals.interval(right, 500)
  assert found["accuracy/low"] < right.mean() < found["accuracy/high"]
  found = loss.Evaluator(cfg(bootstrap=100), predict, mesh).run(STATE)
  assert found["loss/low"] < found["loss"] < found["loss/high"]


def test_a_mistake():
  with pytest.raises(UserError, match=r"x.bootstrap = -1; expected a whole number >= 0"):
    loss.Evaluator(cfg(bootstrap=-1), {"loss_per_example": None}, make_mesh(replica=1, fsdp=1))
