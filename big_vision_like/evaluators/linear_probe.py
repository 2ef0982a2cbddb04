"""Linear probe: logistic regression on frozen features (CLIP, arXiv:2103.00020, Sec. 3.2)."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from big_vision_like.config import Config, number
from big_vision_like.evaluators import Split, need


class Evaluator:
  """Keys: source_train (fitted), source (scored), pp (yields image and label), batch_size, C (1),
  max_iter (1000), pixels (True).

  Features are `predict["image_embed"]`, standardised by the training split's mean and deviation; C
  is scikit-learn's inverse L2 strength. `pixels` is the same probe on the image itself: what a
  representation has to beat. It does not depend on the state and is fitted once.
  """

  def __init__(self, config: Config, predict: Mapping[str, Callable], mesh: jax.sharding.Mesh):
    self.embed = need(predict, "image_embed", config)
    needs = ("image", "label")
    self.train = Split(config, mesh, needs=needs, source="source_train")
    self.test = Split(config, mesh, needs=needs)
    self.strength = number(config, "C", 1.0, above=0)
    self.max_iter = int(number(config, "max_iter", 1000, above=0))
    self.has_pixels, self.pixels = config.get("pixels", True), None

  def _accuracy(self, rows: Callable[[Split], dict[str, np.ndarray]]) -> float:
    fit, score = rows(self.train), rows(self.test)
    return probe(fit["x"], fit["label"], score["x"], score["label"], self.strength, self.max_iter)

  def run(self, state: Any) -> dict[str, float]:
    """`{"accuracy": of the features, "pixels": of the raw image}`."""
    embed = lambda batch: {"x": self.embed(state.params, state.aux, batch)}
    out = {"accuracy": self._accuracy(lambda split: split.map(embed))}
    if self.has_pixels and self.pixels is None:
      self.pixels = self._accuracy(Split.pixels)
    return out | ({"pixels": self.pixels} if self.has_pixels else {})


def probe(
  x_train: np.ndarray,
  y_train: np.ndarray,
  x_test: np.ndarray,
  y_test: np.ndarray,
  strength: float = 1.0,
  max_iter: int = 1000,
) -> float:
  """Test accuracy of L2-regularised logistic regression on standardised features [n, ...].

  Features that are not finite score zero.
  """
  from sklearn.linear_model import LogisticRegression
  from sklearn.preprocessing import StandardScaler

  x_train, x_test = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (x_train, x_test))
  if not (np.isfinite(x_train).all() and np.isfinite(x_test).all()):
    return 0.0
  scale = StandardScaler().fit(x_train)
  model = LogisticRegression(C=strength, max_iter=max_iter)
  model.fit(scale.transform(x_train), y_train)
  return float(model.score(scale.transform(x_test), y_test))
