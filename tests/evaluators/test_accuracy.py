"""`accuracy` and `linear_probe`: hand-worked ranks, the same on 8 devices, against scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_mesh

from big_vision_like.config import UserError, wrap
from big_vision_like.evaluators import accuracy, linear_probe
from big_vision_like.input.sources.digits import digits
from big_vision_like.state import State

STATE = State({}, {}, {}, 0)
MESHES = [dict(replica=1, fsdp=1), dict(replica=2, fsdp=2, tensor=2)]
W = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32) / 255


def logits(params, aux, batch, rng=None, head="a"):
  sign = 1.0 if head == "a" else -1.0
  return sign * batch["image"].reshape(-1, 64).astype(jnp.float32) @ W


PREDICT = {
  "logits": jax.jit(logits, static_argnames="head"),
  "image_embed": jax.jit(logits, static_argnames="head"),
}


def cfg(**kwargs):
  base = dict(source="digits(split='test')", batch_size=100, pp="drop(text)")
  return wrap({"evals": {"x": base | kwargs}}).evals.x


def pixels(split):
  data = digits(split)
  return data.images.reshape(-1, 64).astype(np.float64), data.labels


@pytest.mark.parametrize("shape", MESHES)
def test_accuracy(shape):
  evaluator = accuracy.Evaluator(cfg(heads=("a", "b")), PREDICT, make_mesh(**shape))
  found = evaluator.run(STATE)
  x, label = pixels("test")
  order = np.argsort(-x @ W, axis=1)
  top = lambda order, k: (order[:, :k] == label[:, None]).any(1).mean()
  assert found["a/accuracy"] == pytest.approx(top(order, 1))
  assert found["b/accuracy"] == pytest.approx(top(order[:, ::-1], 1))
  assert found["accuracy"] == max(found["a/accuracy"], found["b/accuracy"])
  best = order if found["a/accuracy"] >= found["b/accuracy"] else order[:, ::-1]
  assert found["top5"] == pytest.approx(top(best, 5))
  assert found.keys() == {"accuracy", "top5", "a/accuracy", "b/accuracy"}


def test_pixels_is_the_nearest_neighbour():
  config = cfg(source_train="digits(split='train')")
  evaluator = accuracy.Evaluator(config, PREDICT, make_mesh(**MESHES[0]))
  (x, y), (z, label) = pixels("train"), pixels("test")
  near = y[((z[:, None] - x[None]) ** 2).sum(-1).argmin(1)]
  assert evaluator.run(STATE)["pixels"] == pytest.approx((near == label).mean())
  evaluator.train.map = None  # looked at once
  evaluator.run(STATE)


def test_ranks_by_hand():
  scores = jnp.array([[3.0, 1.0, 2.0], [3.0, 3.0, 2.0], [1.0, jnp.nan, 0.0], [0.0, jnp.nan, 0.0]])
  np.testing.assert_array_equal(accuracy.rank(scores, jnp.array([2, 0, 0, 1])), [1, 1, 1, 2])
  # Several right classes: the best of them counts, and not against itself.
  several = jnp.array([[0.0, 1, 1], [1, 1, 0], [1, 0, 1], [1, 0, 0]])
  np.testing.assert_array_equal(accuracy.rank(scores, several), [1, 0, 1, 2])


@pytest.mark.parametrize("shape", MESHES)
def test_linear_probe(shape):
  from sklearn.linear_model import LogisticRegression

  config = cfg(source_train="digits(split='train')", C=0.1)
  found = linear_probe.Evaluator(config, PREDICT, make_mesh(**shape)).run(STATE)
  expected = {}
  for key, fn in (("accuracy", lambda x: x @ W), ("pixels", lambda x: x)):
    (x, y), (z, label) = ((fn(x), y) for x, y in map(pixels, ("train", "test")))
    mean, std = x.mean(0), x.std(0)
    std[std == 0] = 1
    model = LogisticRegression(C=0.1, max_iter=1000).fit((x - mean) / std, y)
    expected[key] = model.score((z - mean) / std, label)
  assert found == pytest.approx(expected, abs=3e-3)  # features in float32
  assert found["pixels"] > 0.9


def test_probe_of_nan_scores_zero():
  x, y = np.full((4, 2), np.nan), np.array([0, 1, 0, 1])
  assert linear_probe.best_probe(x, y, x, y, [{"C": 1.0}], linear_probe.lbfgs)["accuracy"] == 0.0


@pytest.mark.parametrize(
  "module, kwargs, message",
  [
    (accuracy, dict(heads="a"), "heads = 'a'; expected a tuple of names"),
    (accuracy, dict(pp="keep(image)"), "needs label"),
    (linear_probe, dict(), "source_train is missing"),
    (linear_probe, dict(source_train="digits()", C=0), "C = 0; expected a number > 0"),
  ],
)
def test_mistakes(module, kwargs, message):
  with pytest.raises(UserError, match=message):
    module.Evaluator(cfg(**kwargs), PREDICT, make_mesh(replica=1, fsdp=1))


def test_labels_beyond_the_classes():
  few = {"logits": lambda p, a, b, rng=None: logits(p, a, b)[:, :7]}
  evaluator = accuracy.Evaluator(cfg(), few, make_mesh(replica=1, fsdp=1))
  with pytest.raises(UserError, match="has 7 classes, but labels of the split go from 0 to 9"):
    evaluator.run(STATE)
