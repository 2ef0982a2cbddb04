"""Weighted k-nearest-neighbour accuracy (Wu et al. 2018, Sec. 3.4, as in DINO), embedding health.

A query's class is the one with the most votes among its k most similar training images, by cosine;
each votes with exp(similarity / temperature). No parameter is fitted, so the score is the features'
own. Beside it: the same on raw pixels, and two numbers that show a collapse.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from big_vision_like.config import Config, number, whole_number
from big_vision_like.evaluators import Split, need

CHUNK = 1024  # queries compared at a time


class Evaluator:
  """Keys: source_train (the neighbours), source, pp (yields image and label), k, temperature.

  `pixels=False` leaves the baseline on raw pixels out: it holds all images of both splits in the
  host's memory.
  """

  def __init__(self, config: Config, predict: Mapping[str, Callable], mesh: jax.sharding.Mesh):
    self.embed = need(predict, "image_embed", config)
    self.k = whole_number(config.get("k", 20), f"{config.path}.k")
    self.temperature = number(config, "temperature", 0.07, above=0)
    self.with_pixels = config.get("pixels", True)
    needs = ("image", "label")
    self.train = Split(config, mesh, needs=needs, source="source_train")
    self.test = Split(config, mesh, needs=needs)

  def _vote(self, train: Mapping[str, np.ndarray], test: Mapping[str, np.ndarray]) -> float:
    found = vote(train["x"], train["label"], test["x"], self.k, self.temperature)
    return float((found == test["label"]).mean())

  @functools.cached_property
  def _pixels(self) -> float:
    return self._vote(self.train.pixels(), self.test.pixels())

  def run(self, state: Any) -> dict[str, float]:
    """`accuracy` and `pixels` of the neighbours; `rank` and `std` of the test split's features."""
    rows = lambda batch: {"x": self.embed(state.params, state.aux, batch)}
    train, test = self.train.map(rows), self.test.map(rows)
    out = {"accuracy": self._vote(train, test)}
    if self.with_pixels:
      out["pixels"] = self._pixels
    return out | {"rank": effective_rank(test["x"]), "std": spread(test["x"])}


def normalized(z: np.ndarray) -> np.ndarray:
  """Rows of length 1, float32; a row of zeros stays."""
  z = z.astype(np.float32)
  return z / np.maximum(np.linalg.norm(z, axis=-1, keepdims=True), 1e-12)


def vote(
  train: np.ndarray, labels: np.ndarray, test: np.ndarray, k: int, temperature: float
) -> np.ndarray:
  """train [N, D] with int labels [N], test [Q, D] -> classes [Q]; all neighbours where k > N."""
  train, test, k = normalized(train), normalized(test), min(k, len(train))
  classes, labels = np.unique(labels, return_inverse=True)
  found = []
  for start in range(0, len(test), CHUNK):
    similarity = test[start : start + CHUNK] @ train.T
    near = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
    weight = np.exp(np.take_along_axis(similarity, near, axis=1) / temperature)
    votes = np.zeros((len(near), len(classes)))
    np.add.at(votes, (np.arange(len(near))[:, None], labels[near]), weight)
    found.append(classes[votes.argmax(axis=1)])
  return np.concatenate(found)


def effective_rank(z: np.ndarray) -> float:
  """exp of the entropy of the normalised singular values of the centred features [N, D].

  Roy and Vetterli 2007: D where all directions carry the same, 1 where one carries all, 0 where the
  features are constant.
  """
  z = z.astype(np.float64)
  z = z - z.mean(axis=0)
  # The smaller of the two Gram matrices: a split of a million rows stays cheap.
  gram = z.T @ z if len(z) > z.shape[1] else z @ z.T
  s = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0.0))
  if s.sum() <= 1e-6 * np.sqrt(z.size):
    return 0.0
  p = s[s > 0] / s.sum()
  return float(np.exp(-(p * np.log(p)).sum()))


def spread(z: np.ndarray) -> float:
  """Mean over dimensions of the deviation of the normalised features, times sqrt(D).

  SimSiam (arXiv:2011.10566), Fig. 2: 1 for features spread over the sphere, 0 for one point.
  """
  return float(normalized(z).std(axis=0).mean() * z.shape[1] ** 0.5)
