"""Zero-shot classification by captions, with prompt ensembles (Radford et al. 2021, Sec. 3.1.4)."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from big_vision_like.config import Config, UserError
from big_vision_like.evaluators import (
  Mistake,
  Split,
  enlarged,
  hardest,
  intervals,
  need,
  ranks,
)
from big_vision_like.evaluators.prompts import Prompts, label_map

SCORES = 1 << 24  # compared at a time


class Evaluator:
  """Keys: source, pp (yields image and label), pp_txt (ops on `text`), classes, batch_size;
  templates (None), mean_per_class (False), bootstrap (0).

  A class is the normalised mean of the normalised embeddings of its texts. `classes` is a list in
  `evaluators/data/` ("imagenet" has OpenAI's 80 templates, "imagenet_7" the best 7; "imagenet_a"
  and "imagenet_r" are subsets of it; "cifar10", "food101", "pets", ...), a path to .json or .txt,
  or "source": the names the data set itself has. `templates` replaces the list's own: a list's
  name, a path, or strings with `{}`. Where the names (or the ids) in the list are those of the data
  set in another order, labels are matched by name, else by number. `mean_per_class` adds the mean
  of the classes' accuracies, the metric of Pets, Flowers, Caltech and Aircraft; `bootstrap=1000`
  95 % intervals of the means.
  """

  def __init__(self, config: Config, predict: Mapping[str, Callable], mesh: jax.sharding.Mesh):
    self.where = f"{config.path}.classes"
    self.image = need(predict, "image_embed", config)
    self.bootstrap = intervals.resamples(config)
    self.mean_per_class = config.get("mean_per_class", False)
    self.split = Split(config, mesh, needs=("image", "label"))
    own = self.split.classes
    self.prompts = Prompts(config, predict, mesh, own)
    self.classes, self.tokens = self.prompts.classes.names, self.prompts.tokens
    self.class_of = label_map(own, self.prompts.classes)

  def class_embeddings(self, state: Any) -> np.ndarray:
    """[K, E], of length 1."""
    return self.prompts.embed(state, self.split.batch_size)

  def _embeddings(self, state: Any) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Of the images [n, E], of the classes [K, E], and the rows, where `label` is the class."""
    rows = self.split.map(lambda b: {"z": self.image(state.params, state.aux, b)})
    low, high = rows["label"].min(), rows["label"].max()
    if self.class_of is not None and 0 <= low <= high < len(self.class_of):
      rows["label"] = self.class_of[rows["label"]]
    elif low < 0 or high >= len(self.classes):
      raise UserError(
        f"{self.where} holds {len(self.classes)} classes, but labels of the split go from {low} "
        f"to {high}"
      )
    return rows["z"].astype(np.float64), self.class_embeddings(state), rows

  def _scores(self, state: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    z, classes, rows = self._embeddings(state)
    return z @ classes.T, rows

  def run(self, state: Any) -> dict[str, float]:
    """`accuracy`: top 1; `top5`: with more than 5 classes; `mean_per_class`: of top 1."""
    z, classes, rows = self._embeddings(state)
    label = rows["label"]
    size = max(1, SCORES // len(classes))
    parts = (slice(start, start + size) for start in range(0, len(z), size))
    right = lambda part: label[part, None] == np.arange(len(classes))[None, :]
    rank = np.concatenate([ranks(z[part] @ classes.T, right(part)) for part in parts])
    values = {"accuracy": rank < 1} | ({"top5": rank < 5} if len(self.classes) > 5 else {})
    out = intervals.scores(values, self.bootstrap)
    each = {"mean_per_class": mean_per_class(rank < 1, label)}
    return out | (each if self.mean_per_class else {})

  def examples(self, state: Any, count: int = 12) -> list[dict[str, Any]]:
    """The first mistakes, then right answers: image (uint8), label, predictions [(name, score)]."""
    scores, rows = self._scores(state)
    wrong = scores.argmax(axis=1) != rows["label"]
    chosen = [*np.flatnonzero(wrong)[: count // 2], *np.flatnonzero(~wrong)[:count]][:count]
    images = self.split.images(chosen)
    out = []
    for i, image in zip(chosen, images):
      top = np.argsort(-scores[i])[:3]
      predictions = [(self.classes[k], float(scores[i, k])) for k in top]
      label = self.classes[rows["label"][i]]
      out.append({"image": image, "label": label, "predictions": predictions})
    return out

  def pictures(self, state: Any) -> dict[str, np.ndarray]:
    """`similarity`: mean score of the images of each class (rows) with each class (columns)."""
    scores, rows = self._scores(state)
    present = np.unique(rows["label"])
    means = np.stack([scores[rows["label"] == k].mean(axis=0) for k in present])[:, present]
    return {"similarity": heatmap(means)}

  def mistakes(self, state: Any, n: int) -> list[Mistake]:
    """The largest margins of a wrong class over the right one, in cosines."""
    scores, rows = self._scores(state)
    at, label = np.arange(len(scores)), rows["label"]
    wrong = scores.copy()
    wrong[at, label] = -np.inf
    said = wrong.argmax(axis=1)
    margin = wrong[at, said] - scores[at, label]
    worst = hardest(margin, n)
    return [
      Mistake(i, image, self.classes[said[i]], self.classes[label[i]], float(margin[i]))
      for i, image in zip(worst, self.split.images(worst))
    ]


def heatmap(values: np.ndarray) -> np.ndarray:
  """[H, W] -> uint8 [H', W', 3], low blue to high yellow, at least 400 pixels wide."""
  from matplotlib import colormaps

  span = np.ptp(values) or 1.0
  colours = colormaps["viridis"]((values - values.min()) / span)[..., :3]
  return enlarged(np.round(colours * 255).astype(np.uint8))


def mean_per_class(right: np.ndarray, labels: np.ndarray) -> float:
  """Mean over the classes that occur of the share that is right: bool [n], int [n]."""
  _, labels = np.unique(labels, return_inverse=True)
  return float((np.bincount(labels, right) / np.bincount(labels)).mean())
