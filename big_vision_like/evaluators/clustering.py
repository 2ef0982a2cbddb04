"""k-means on features, its clusters against the labels: what falls apart without any label.

`accuracy` is that of the best one-to-one assignment of clusters to classes (the Hungarian method;
Xie et al., arXiv:1511.06335, Eq. 10); `ari`, `nmi` and `fmi` are scikit-learn's adjusted Rand
index, normalised mutual information (arithmetic mean) and Fowlkes-Mallows index.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from big_vision_like.config import Config, whole_number
from big_vision_like.evaluators import Split, need
from big_vision_like.evaluators.knn import normalized


class Evaluator:
  """Keys: source, pp (yields image and label), batch_size, clusters (default: as many as labels
  occur), normalize (True: features of length 1, so that k-means goes by cosine), restarts (10, of
  which the one of least inertia counts), max_iter (300), seed (0).

  Examples whose features are not finite are in no cluster: they count as wrong.
  """

  def __init__(self, config: Config, predict: Mapping[str, Callable], mesh: jax.sharding.Mesh):
    self.embed = need(predict, "image_embed", config)
    self.split = Split(config, mesh, needs=("image", "label"))
    positive = lambda key, default: whole_number(config.get(key, default), f"{config.path}.{key}")
    self.clusters = positive("clusters", 1) if "clusters" in config else None
    self.restarts, self.max_iter = positive("restarts", 10), positive("max_iter", 300)
    self.seed, self.normalize = config.get("seed", 0), config.get("normalize", True)

  def run(self, state: Any) -> dict[str, float]:
    """`accuracy`, `ari`, `nmi`, `fmi`."""
    from sklearn.cluster import KMeans

    rows = self.split.map(lambda b: {"x": self.embed(state.params, state.aux, b)})
    x, label = rows["x"].astype(np.float32), rows["label"]
    finite = np.isfinite(x).all(axis=1)
    found = np.full(len(x), -1)
    if finite.any():
      count = min(self.clusters or len(np.unique(label)), finite.sum())
      kmeans = KMeans(count, n_init=self.restarts, max_iter=self.max_iter, random_state=self.seed)
      x = x[finite]
      found[finite] = kmeans.fit_predict(normalized(x) if self.normalize else x)
    return agreement(label, found)


def agreement(label: np.ndarray, cluster: np.ndarray) -> dict[str, float]:
  """[N], [N] -> the four scores; cluster -1 is no cluster, and wrong in `accuracy`."""
  from scipy.optimize import linear_sum_assignment
  from sklearn import metrics

  table = metrics.cluster.contingency_matrix(label, cluster)
  clusters = np.unique(cluster) >= 0
  rows, columns = linear_sum_assignment(table[:, clusters], maximize=True)
  return {
    "accuracy": float(table[:, clusters][rows, columns].sum() / len(label)),
    "ari": float(metrics.adjusted_rand_score(label, cluster)),
    "nmi": float(metrics.normalized_mutual_info_score(label, cluster)),
    "fmi": float(metrics.fowlkes_mallows_score(label, cluster)),
  }
