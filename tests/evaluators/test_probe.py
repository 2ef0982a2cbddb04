"""Sweeps of the linear probe: the choice by hand, SGD against scikit-learn's minimum."""

import functools

import numpy as np
import pytest
from conftest import make_mesh

from big_vision_like.config import UserError, wrap
from big_vision_like.evaluators import linear_probe as probe
from big_vision_like.state import State

STATE = State({}, {}, {}, 0)
MESHES = [dict(replica=1, fsdp=1), dict(replica=2, fsdp=2, tensor=2)]
DIGITS = dict(source_train="digits(split='test')", source="digits(split='test')")


def evaluator(shape=MESHES[1], **kwargs):
  cfg = wrap({"evals": {"x": DIGITS | dict(pp="drop(text)", batch_size=100) | kwargs}}).evals.x
  flat = lambda p, a, b, rng=None: b["image"].reshape(len(b["image"]), -1)
  return probe.Evaluator(cfg, {"image_embed": flat}, make_mesh(**shape))


def data(n=203, seed=0):
  """Three classes that overlap, in 5 dimensions."""
  rng = np.random.default_rng(seed)
  y = rng.integers(0, 3, size=n) * 2 + 1
  return rng.normal(size=(n, 5)) + np.eye(5)[y // 2], y


def reference(x, y, head, momentum, batch, steps, lr, decay):
  """SGD on softmax regression, one step after the other in NumPy."""
  w, b, classes = np.zeros((5, 3)), np.zeros(3), np.unique(y)
  mw, mb = np.zeros_like(w), np.zeros_like(b)
  for t, rows in enumerate(probe.row_batches(len(x), batch, steps, 0)):
    z = x[rows] @ w + b
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    g = (p - (y[rows][:, None] == classes)) / batch
    mw = momentum * mw + x[rows].T @ g + decay * w
    mb = momentum * mb + g.sum(0)
    rate = lr * 0.5 * (1 + np.cos(np.pi * t / steps))
    w, b = w - rate * mw, b - rate * mb
  return classes[(head @ w + b).argmax(1)]


@pytest.mark.parametrize("shape", MESHES)
def test_heads_at_once_are_heads_alone(shape):
  (x, y), (z, _) = data(), data(500, 1)
  settings = [{"lr": lr, "weight_decay": d} for lr in (0.01, 0.3) for d in (0.0, 0.1)]
  args = dict(epochs=3, momentum=0.9, batch_size=40, seed=0, mesh=make_mesh(**shape))
  heads = probe.sgd(x, y, settings, **args)
  for head, s in zip(heads, settings):
    expected = reference(x, y, z, 0.9, 40, round(3 * 203 / 40), s["lr"], s["weight_decay"])
    assert (head(z) == expected).mean() > 0.998  # float32


def test_sgd_ends_where_scikit_learn_does():
  (x, y), (z, label) = data(), data(2000, 1)
  mesh = make_mesh(**MESHES[1])
  args = dict(epochs=80, momentum=0.9, batch_size=1000, seed=0, mesh=mesh)
  (head,) = probe.sgd(x, y, [{"lr": 0.3, "weight_decay": 0.0}], **args)
  (exact,) = probe.lbfgs(x, y, [{"C": 1e6}])
  assert (head(z) == exact(z)).mean() > 0.99
  assert 0.4 < (exact(z) == label).mean() < 0.9


def test_the_best_on_the_held_out_part_is_fitted_on_all():
  (x, y), seen = data(), []

  def solve(x, y, settings):
    """C = 2 is right, the others say 1."""
    seen.append((len(x), [s["C"] for s in settings]))
    right = probe.lbfgs(x, y, [{"C": 1.0}])[0]
    return [right if s["C"] == 2 else lambda x: np.ones(len(x)) for s in settings]

  settings = [{"C": c} for c in (1, 2, 3)]
  found = probe.best_probe(x, y, x, y, settings, solve, held_out=0.25)
  assert seen == [(152, [1, 2, 3]), (203, [2])]
  assert found["C"] == 2 and 0.4 < found["held_out"] < 1 and found["accuracy"] > 0.5
  assert set(probe.best_probe(x, y, x, y, settings[:1], solve)) == {"accuracy"}


def test_rows_come_once_an_epoch():
  batches = list(probe.row_batches(10, 4, 5, 0))
  assert sorted(np.concatenate(batches).tolist()) == sorted(2 * list(range(10)))
  assert len(next(probe.row_batches(3, 8, 1, 0))) == 8


def test_standardize():
  (x, y), scale = data(), np.array([1e-3, 1, 1, 1, 1])
  solve = functools.partial(probe.lbfgs, max_iter=100)
  score = lambda x, **kw: probe.best_probe(x, y, x, y, [{"C": 1.0}], solve, **kw)["accuracy"]
  assert score(x) == score(x * scale[None])
  assert score(x, standardize=False) > score(x * scale[None], standardize=False)


def test_evaluator_sweeps():
  found = evaluator(
    solver="sgd", lr=(1e-4, 0.1), weight_decay=(0.0, 10.0), train_batch_size=64
  ).run(STATE)
  assert found["lr"] == pytest.approx(0.1) and found["weight_decay"] == 0.0
  assert found["accuracy"] == found["pixels"] > 0.85 and found["held_out"] > 0.8
  found = evaluator(C=(1e-6, 1e-3), pixels=False).run(STATE)
  assert found["C"] == 1e-3 and found["accuracy"] > 0.85


def test_mistakes_are_one_line():
  with pytest.raises(UserError, match="solver 'lbgfs' is unknown; did you mean lbfgs"):
    evaluator(solver="lbgfs")
  with pytest.raises(UserError, match=r"C = 0; expected a number > 0"):
    evaluator(C=(1, 0))
  with pytest.raises(UserError, match="held_out = 1; expected a share below 1"):
    evaluator(held_out=1)
  with pytest.raises(UserError, match=r"lr = .*; expected a number or several"):
    evaluator(solver="sgd", lr=())
