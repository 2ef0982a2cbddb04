"""What a generator makes, judged by a classifier that has seen real images alone."""

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from big_vision_like import axes
from big_vision_like.config import Config, UserError
from big_vision_like.evaluators import Split, enlarged, nearest, need, whole_on_mesh


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
  """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^1/2) of two sets of features [n, D], [m, D].

  Heusel et al., arXiv:1706.08500, Eq. 6, in float64. The trace of the root is the sum of the roots
  of the eigenvalues of C_a^1/2 C_b C_a^1/2, which is symmetric.
  """
  a, b = a.astype(np.float64), b.astype(np.float64)
  cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
  values, vectors = np.linalg.eigh(cov_a)
  root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
  cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_b @ root), 0.0)).sum()
  gap = np.square(a.mean(axis=0) - b.mean(axis=0)).sum()
  return float(gap + np.trace(cov_a) + np.trace(cov_b) - 2.0 * cross)


def nearest_distance(a: np.ndarray, b: np.ndarray) -> float:
  """Mean over a [n, D] of the Euclidean distance to the nearest row of b [m, D]."""
  return float(nearest(a, b)[0].mean())


class Evaluator:
  """Keys: source_train, source, pp (yields image and label), batch_size, num_samples, options,
  hidden, seed.

  A multi-layer perceptron of `hidden` units (64) learns the real training split by pixels. It is
  asked about `predict["sample"]` for labels that go round those of `source`; `options` are that
  function's (sampler, steps, guidance, ...). `num_samples` is by default the size of `source`.
  """

  def __init__(self, config: Config, predict: Mapping[str, Callable], mesh: jax.sharding.Mesh):
    self.mesh = mesh
    self.sample = need(predict, "sample", config)
    self.options = dict(config.get("options", {}))
    self.seed, self.hidden = config.get("seed", 0), config.get("hidden", 64)
    self.count = config.get("num_samples")
    if self.count is not None and (not isinstance(self.count, int) or self.count < 2):
      raise UserError(f"{config.path}.num_samples = {self.count!r}; expected at least 2")
    needs = ("image", "label")
    self.train = Split(config, mesh, needs, source="source_train")
    self.test = Split(config, mesh, needs)

  @functools.cached_property
  def real(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images [n, D] and labels of the training split, then of the test split."""
    train, test = self.train.pixels(), self.test.pixels()
    return train["x"], train["label"], test["x"], test["label"]

  @functools.cached_property
  def classifier(self) -> Any:
    """scikit-learn's MLPClassifier, fitted to the real training split."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    images, labels, _, _ = self.real
    model = MLPClassifier((self.hidden,), alpha=1e-2, max_iter=200, random_state=self.seed)
    with warnings.catch_warnings():  # how well it is fitted is among the metrics
      warnings.simplefilter("ignore", ConvergenceWarning)
      return model.fit(images, labels)

  def features(self, images: np.ndarray) -> np.ndarray:
    """[n, D] -> [n, hidden], the classifier's layer before the last."""
    return np.maximum(images @ self.classifier.coefs_[0] + self.classifier.intercepts_[0], 0.0)

  def draw(self, state: Any, labels: np.ndarray) -> np.ndarray:
    """[n] -> images [n, H, W, C], each batch with random numbers of its own."""
    arrays, parts = {"label": labels.astype(np.int32)}, []
    with jax.set_mesh(self.mesh):
      for i, batch in enumerate(whole_on_mesh(arrays, self.test.batch_size, self.mesh)):
        rng = jax.random.fold_in(jax.random.key(self.seed), i)
        out = self.sample(state.params, state.aux, batch, rng, **self.options)
        parts.append(np.asarray(axes.to_host(out), np.float32))
    return np.concatenate(parts)[: len(labels)]

  def run(self, state: Any) -> dict[str, float]:
    """How real and how right the samples are, and what real images reach.

    `recognised`: share of samples of the asked class; `classifier`: share of the test split. Where
    the method is not conditional the first is about one in the number of classes.
    `frechet`: distance to the test split in the classifier's features; `frechet_train`: that of as
    many training images. `nearest`: mean distance in pixels to the nearest training image, small
    where training images are repeated; `nearest_test`: that of the test split.
    """
    train, _, test, test_labels = self.real
    count = self.count or len(test)
    labels = np.resize(test_labels, count)
    made = self.draw(state, labels).reshape(count, -1)
    some = np.random.default_rng(self.seed).permutation(len(train))[:count]
    of_test = self.features(test)
    return {
      "recognised": float((self.classifier.predict(made) == labels).mean()),
      "classifier": float((self.classifier.predict(test) == test_labels).mean()),
      "frechet": frechet_distance(self.features(made), of_test),
      "frechet_train": frechet_distance(self.features(train[some]), of_test),
      "nearest": nearest_distance(made, train),
      "nearest_test": nearest_distance(test, train),
    }

  def pictures(self, state: Any, columns: int = 10) -> dict[str, np.ndarray]:
    """`grid`: a row of samples for each class (the first twenty), between the data's extremes."""
    train, train_labels, _, _ = self.real
    classes = np.unique(train_labels)[:20]
    images = self.draw(state, np.repeat(classes, columns))
    low, high = train.min(), train.max()
    images = np.clip((images - low) / ((high - low) or 1.0), 0.0, 1.0)
    images = np.pad(images, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=0.5)  # between cells
    _, h, w, c = images.shape
    grid = images.reshape(len(classes), columns, h, w, c).transpose(0, 2, 1, 3, 4)
    grid = np.round(grid.reshape(len(classes) * h, columns * w, c) * 255).astype(np.uint8)
    return {"grid": enlarged(grid)}
