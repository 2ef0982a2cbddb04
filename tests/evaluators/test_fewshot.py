"""Ridge regression against scikit-learn, the draws, and the few-shot protocol by hand."""

import numpy as np
import pytest
from conftest import make_mesh

from big_vision_like.config import UserError, wrap
from big_vision_like.evaluators import fewshot
from big_vision_like.state import State

STATE = State({}, {}, {}, 0)
MESHES = [dict(replica=1, fsdp=1), dict(replica=2, fsdp=2, tensor=2)]
DIGITS = dict(source_train="digits(split='train')", source="digits(split='test')")


def evaluator(shape=MESHES[1], **kwargs):
  cfg = wrap({"evals": {"x": DIGITS | dict(pp="drop(text)", batch_size=100) | kwargs}}).evals.x
  flat = lambda p, a, b, rng=None: b["image"].reshape(len(b["image"]), -1)
  return fewshot.Evaluator(cfg, {"image_embed": flat}, make_mesh(**shape))


@pytest.mark.parametrize("n", [12, 60])  # fewer examples than dimensions, and more
def test_ridge_is_scikit_learns(n):
  from sklearn.linear_model import Ridge

  rng = np.random.default_rng(0)
  x, z, y = rng.normal(size=(n, 20)), rng.normal(size=(300, 20)), np.arange(n) % 4 * 3
  for head, l2 in zip(fewshot.ridge(x, y, (0.01, 100.0)), (0.01, 100.0)):
    model = Ridge(alpha=l2).fit(x, 2.0 * (y[:, None] == np.arange(4) * 3) - 1)
    np.testing.assert_array_equal(head(z), model.predict(z).argmax(1) * 3)


def test_draws():
  labels = np.repeat([4, 1, 9], [7, 30, 20])
  few, rest = fewshot.draw(labels, 2, 5, "x")
  more, _ = fewshot.draw(labels, 6, 5, "x")
  assert np.unique(labels[few], return_counts=True)[1].tolist() == [2, 2, 2]
  assert set(few) < set(more) and set(few) | set(rest) == set(range(57)) and len(rest) == 51
  assert set(few) != set(fewshot.draw(labels, 2, 6, "x")[0])
  with pytest.raises(UserError, match="shots = 8, but class 4 has 7 examples"):
    fewshot.draw(labels, 8, 0, "x")


@pytest.mark.parametrize("shape", MESHES)
def test_mean_and_standard_error(shape):
  from sklearn.linear_model import RidgeClassifier

  found = evaluator(shape, shots=(1, 5), seeds=4, l2=10.0)
  scores = found.run(STATE)
  image = lambda b: {"x": b["image"].reshape(len(b["image"]), -1)}
  train, test = found.train.map(image), found.test.map(image)
  expected = []
  for seed in range(4):
    rows = fewshot.draw(train["label"], 5, seed, "x")[0]
    x, y = train["x"][rows].astype(np.float64), train["label"][rows]
    mean, std = x.mean(0), np.where(x.std(0) > 0, x.std(0), 1)
    model = RidgeClassifier(alpha=10.0).fit((x - mean) / std, y)
    expected.append(model.score((test["x"] - mean) / std, test["label"]))
  assert scores["5shot"] == pytest.approx(np.mean(expected), abs=1e-12)
  assert scores["5shot/stderr"] == pytest.approx(np.std(expected, ddof=1) / 2, abs=1e-12)
  assert set(scores) == {"1shot", "1shot/stderr", "5shot", "5shot/stderr"}
  assert 0.3 < scores["1shot"] < scores["5shot"] < 0.95


def test_l2_is_chosen_on_examples_left_over():
  """A strength that says nothing but the bias must lose."""
  scores = evaluator(shots=4, seeds=2, l2=(10.0, 1e15)).run(STATE)
  assert scores["4shot/l2"] == 10.0 and scores["4shot"] > 0.6
  logistic = evaluator(shots=4, seeds=1, l2=10.0, head="logistic").run(STATE)
  assert set(logistic) == {"4shot"} and logistic["4shot"] > 0.6


def test_not_finite_and_mistakes():
  found = evaluator(shots=1)
  found.embed = lambda p, a, b, rng=None: np.nan * b["image"].reshape(len(b["image"]), -1)
  assert found.run(STATE) == {"1shot": 0.0}
  with pytest.raises(UserError, match="head 'rigde' is unknown; did you mean ridge"):
    evaluator(head="rigde")
  with pytest.raises(UserError, match="shots = 0; expected a positive whole number"):
    evaluator(shots=(1, 0))
