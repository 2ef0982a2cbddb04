"""The kNN protocol against scikit-learn, and the two numbers that show a collapse, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_mesh

from big_vision_like.config import UserError, wrap
from big_vision_like.evaluators import knn
from big_vision_like.state import State

STATE = State({}, {}, {}, 0)
MESHES = [dict(replica=1, fsdp=1), dict(replica=2, fsdp=2, tensor=2)]


def halves(params, aux, batch, rng=None):
  """A poor embedding: sums over rows of pixels, so that many neighbours are wrong."""
  return jnp.sum(batch["image"].astype(jnp.float32), axis=(2, 3)) - 300.0


def evaluator(shape, **kwargs):
  base = dict(source_train="digits(split='train')", source="digits(split='test')")
  base |= dict(pp="drop(text)", batch_size=100)
  cfg = wrap({"evals": {"x": base | kwargs}}).evals.x
  return knn.Evaluator(cfg, {"image_embed": jax.jit(halves)}, make_mesh(**shape))


def reference(train, test, k, temperature):
  """scikit-learn's accuracy with votes exp(cosine / temperature)."""
  from sklearn.neighbors import KNeighborsClassifier

  weights = lambda distance: np.exp((1 - distance) / temperature)
  model = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=weights)
  return model.fit(train["z"], train["label"]).score(test["z"], test["label"])


@pytest.mark.parametrize("shape", MESHES)
@pytest.mark.parametrize("k, temperature", [(20, 0.07), (5, 0.5)])
def test_equals_scikit_learn(shape, k, temperature):
  found = evaluator(shape, k=k, temperature=temperature)
  rows = lambda b: {"z": halves(None, None, b)}
  pixels = lambda b: {"z": b["image"].reshape(b["image"].shape[0], -1)}
  scores = found.run(STATE)
  z = [s.map(rows) for s in (found.train, found.test)]
  assert scores["accuracy"] == pytest.approx(reference(*z, k, temperature), abs=1e-12)
  assert 0.2 < scores["accuracy"] < 0.9  # neither trivial nor perfect, so that votes matter
  p = [
    {n: v.astype(np.float64) for n, v in s.map(pixels).items()} for s in (found.train, found.test)
  ]
  assert scores["pixels"] == pytest.approx(reference(*p, k, temperature), abs=1e-12)
  assert scores["pixels"] > 0.95


def numpy_vote(train, labels, test, k, temperature):
  """The protocol in NumPy, one query after the other."""
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  found = []
  for scores in unit(test) @ unit(train).T:
    near = np.argsort(-scores)[:k]
    weight = np.exp(scores[near] / temperature)
    found.append(max(set(labels), key=lambda c: weight[labels[near] == c].sum()))
  return found


def test_several_k_are_exact_on_8_devices(monkeypatch):
  """1,003 items do not divide by the devices, 37 queries not by the chunk."""
  monkeypatch.setattr(knn, "CHUNK", 16)
  rng = np.random.default_rng(0)
  train, test = rng.normal(size=(1003, 6)), rng.normal(size=(37, 6))
  labels, ks = rng.integers(3, 8, size=1003), (1, 10, 200, 2000)
  for shape in MESHES:
    found = knn.vote(train, labels, test, ks, 0.07, make_mesh(**shape))
    for k, y in zip(ks, found):
      assert list(y) == numpy_vote(train, labels, test, k, 0.07), k
    value, row = knn.most_similar(train, test, 300, make_mesh(**shape))
    scores = knn.normalized(test) @ knn.normalized(train).T
    assert (row == np.argsort(-scores, axis=1)[:, :300]).mean() > 0.999
    np.testing.assert_allclose(value, -np.sort(-scores, axis=1)[:, :300], atol=1e-6)


def test_metric_names_of_several_k():
  scores = evaluator(MESHES[1], k=(5, 20), pixels=False).run(STATE)
  one = evaluator(MESHES[1], k=20, pixels=False).run(STATE)
  assert scores["accuracy@20"] == one["accuracy"]
  assert scores["accuracy"] == max(scores["accuracy@5"], scores["accuracy@20"])
  assert set(scores) == {"accuracy", "accuracy@5", "accuracy@20", "rank", "std"}
  assert set(one) == {"accuracy", "rank", "std"}


def test_features_that_are_not_finite_score_zero():
  found = evaluator(MESHES[1], pixels=False)
  found.embed = lambda p, a, b, rng=None: jnp.full((len(b["image"]), 2), jnp.nan)
  scores = found.run(STATE)
  assert scores["accuracy"] == scores["rank"] == 0.0
  train = {"x": np.ones((3, 2)), "label": np.ones(3, int)}
  test = {"x": np.array([[1, 1], [np.nan, 1]]), "label": np.ones(2, int)}
  assert found._accuracy(train, test) == {20: 0.5}


def test_near_neighbours_outvote_many_far_ones():
  """One neighbour at 0 degrees against two at 60: e^(1/T) > 2 e^(0.5/T) only where T is low."""
  at = lambda *degrees: np.stack([(np.cos(a), np.sin(a)) for a in np.deg2rad(degrees)])
  train, labels, test = at(0, 60, 60.001, 180), np.array([7, 3, 3, 5]), at(0)
  mesh = make_mesh(**MESHES[0])
  vote = lambda test, k, t: knn.vote(train, labels, test, (k,), t, mesh)[0]
  assert vote(test, 3, 0.07) == [7]
  assert vote(test, 3, 5.0) == [3]
  assert vote(test, 1, 5.0) == [7]
  assert vote(10 * test, 100, 5.0) == [3]  # length and a large k do not matter
  assert vote(test, 3, 0.71) == [7]  # they tie at T = 0.5 / log 2 = 0.721
  assert vote(test, 3, 0.73) == [3]


def test_effective_rank():
  rng = np.random.default_rng(0)
  q = rng.normal(size=(50, 4))
  q, _ = np.linalg.qr(q - q.mean(axis=0))
  assert knn.effective_rank(q + 3.0) == pytest.approx(4)  # the mean does not count
  assert knn.effective_rank(q[:, :1] @ np.ones((1, 5))) == pytest.approx(1, abs=1e-5)
  assert knn.effective_rank(np.ones((50, 4))) == 0.0
  # Singular values 3 : 1.
  expected = np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25))
  assert knn.effective_rank(q[:, :2] * [3.0, 1.0]) == pytest.approx(expected)
  wide = rng.normal(size=(6, 40))
  s = np.linalg.svd(wide - wide.mean(0), compute_uv=False)
  p = s[:-1] / s.sum()
  assert knn.effective_rank(wide) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-6)


def test_spread():
  z = np.random.default_rng(0).normal(size=(4000, 64))
  assert knn.spread(z) == pytest.approx(1, abs=0.02)
  assert knn.spread(np.ones((10, 3))) == pytest.approx(0, abs=1e-6)
  assert np.isfinite(knn.spread(np.zeros((10, 3))))


def test_mistakes_are_one_line():
  mesh = MESHES[0]
  with pytest.raises(UserError, match=r"evals\.x\.k = 0; expected a positive whole number"):
    evaluator(mesh, k=0)
  with pytest.raises(UserError, match="temperature = 0; expected a number > 0"):
    evaluator(mesh, temperature=0)
  with pytest.raises(UserError, match="type needs label"):
    evaluator(mesh, pp="keep(image)")
  assert "pixels" not in evaluator(mesh, pixels=False).run(STATE)
