"""Agreement of clusters and classes by hand and by scikit-learn; the walk over uneven batches."""

import numpy as np
import pytest
from conftest import make_mesh

from big_vision_like.config import UserError, wrap
from big_vision_like.evaluators import clustering
from big_vision_like.evaluators.knn import normalized
from big_vision_like.state import State

STATE = State({}, {}, {}, 0)
MESHES = [dict(replica=1, fsdp=1), dict(replica=2, fsdp=2, tensor=2)]


def evaluator(shape=MESHES[1], embed=None, **kwargs):
  base = dict(source="digits(split='test')", pp="drop(text)", batch_size=100, restarts=2)
  cfg = wrap({"evals": {"x": base | kwargs}}).evals.x
  flat = lambda p, a, b, rng=None: b["image"].reshape(len(b["image"]), -1)
  return clustering.Evaluator(cfg, {"image_embed": embed or flat}, make_mesh(**shape))


def test_by_hand():
  """Cluster 5 -> class 0 (3 of 4), 7 -> class 1 (2 of 2); greedy from class 1 would do worse."""
  found = clustering.agreement(np.array([0, 0, 0, 1, 1, 1]), np.array([5, 5, 5, 5, 7, 7]))
  assert found["accuracy"] == pytest.approx(5 / 6)
  # Pairs together: 3 + 3 in classes, 6 + 1 in clusters, 3 + 1 in both, of 15.
  assert found["fmi"] == pytest.approx(4 / np.sqrt(6 * 7))
  expected = 6 * 7 / 15
  assert found["ari"] == pytest.approx((4 - expected) / ((6 + 7) / 2 - expected))
  entropy = lambda *p: -sum(x * np.log(x) for x in p)
  shared = entropy(1 / 2, 1 / 2) + entropy(4 / 6, 2 / 6) - entropy(3 / 6, 1 / 6, 2 / 6)
  mean = (entropy(1 / 2, 1 / 2) + entropy(4 / 6, 2 / 6)) / 2
  assert found["nmi"] == pytest.approx(shared / mean)


def test_assignment_is_the_best_of_all():
  """More clusters than classes, and fewer: the best of all one-to-one maps."""
  import itertools

  rng = np.random.default_rng(0)
  for classes, clusters in ((3, 5), (5, 3)):
    label, cluster = rng.integers(0, classes, 40), rng.integers(0, clusters, 40)
    few, many = sorted((classes, clusters))
    a, b = (label, cluster) if classes == few else (cluster, label)
    best = max((np.array(p)[a] == b).mean() for p in itertools.permutations(range(many), few))
    assert clustering.agreement(label, cluster)["accuracy"] == pytest.approx(best)


def test_examples_without_a_cluster_are_wrong():
  found = clustering.agreement(np.array([0, 0, 1, 1]), np.array([3, 3, -1, -1]))
  assert found["accuracy"] == 0.5


@pytest.mark.parametrize("shape", MESHES)
def test_equals_scikit_learn(shape):
  from sklearn import metrics
  from sklearn.cluster import KMeans

  found = evaluator(shape)
  rows = found.split.map(lambda b: {"x": b["image"].reshape(len(b["image"]), -1)})
  assert len(rows["x"]) == 364
  cluster = KMeans(10, n_init=2, random_state=0).fit_predict(normalized(rows["x"]))
  scores = found.run(STATE)
  assert scores["ari"] == pytest.approx(metrics.adjusted_rand_score(rows["label"], cluster))
  assert 0.5 < scores["accuracy"] < 0.95


def test_not_finite_and_mistakes():
  nan = lambda p, a, b, rng=None: np.full((len(b["image"]), 2), np.nan)
  assert evaluator(embed=nan).run(STATE)["accuracy"] == 0.0
  same = lambda p, a, b, rng=None: np.ones((len(b["image"]), 2))
  with pytest.warns(Warning, match="distinct clusters"):
    assert evaluator(embed=same).run(STATE)["accuracy"] < 0.15
  with pytest.raises(UserError, match="clusters = 0; expected a positive whole number"):
    evaluator(clusters=0)
