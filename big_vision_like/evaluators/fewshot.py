"""Few-shot linear classification on frozen features: ridge regression in closed form.

For each number of shots s and each seed, s training examples of every class are drawn, and

    W = argmin sum_i |W^T [x_i, 1] - y_i|^2 + l2 |W|^2,   y = +1 for the class, -1 for the others

is solved exactly (ViT, arXiv:2010.11929, Sec. 4.1; the protocol of its authors' code), on features
standardised by the drawn examples alone. The strength `l2` is one for all seeds of s shots: the
best on training examples that the draw left. `head="logistic"` is scikit-learn's logistic
regression with C = 1 / l2 instead.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from big_vision_like.config import Config, UserError, unknown, whole_number
from big_vision_like.evaluators import Split, need
from big_vision_like.evaluators.linear_probe import numbers

HEADS = ("ridge", "logistic")


class Evaluator:
  """Keys: source_train (drawn from), source (scored), pp (yields image and label), batch_size,
  shots ((1, 2, 4, 8, 16)), seeds (3), head (ridge), l2 (2^-10 to 2^18 in steps of 16; one or
  several), max_held_out (10,000 examples that choose l2)."""

  def __init__(self, config: Config, predict: Mapping[str, Callable], mesh: jax.sharding.Mesh):
    self.where = config.path
    self.embed = need(predict, "image_embed", config)
    needs = ("image", "label")
    self.train = Split(config, mesh, needs=needs, source="source_train")
    self.test = Split(config, mesh, needs=needs)
    shots = config.get("shots", (1, 2, 4, 8, 16))
    shots = shots if isinstance(shots, (tuple, list)) else (shots,)
    self.shots = [whole_number(s, f"{config.path}.shots") for s in shots]
    self.seeds = whole_number(config.get("seeds", 3), f"{config.path}.seeds")
    self.l2 = numbers(config, "l2", tuple(2.0**i for i in range(-10, 19, 4)), above=0)
    self.max_held_out = whole_number(
      config.get("max_held_out", 10_000), f"{config.path}.max_held_out"
    )
    head = config.get("head", "ridge")
    if head not in HEADS:
      raise unknown(f"{config.path}.head", head, HEADS)
    self.solve = ridge if head == "ridge" else logistic

  def _draw(self, train: Any, test: Any, shots: int, seed: int) -> tuple[list[float], list[float]]:
    """Accuracy with each l2 on held-out training examples, and on the test split."""
    x, y = train
    drawn, rest = draw(y, shots, seed, self.where)
    rest = rest[: self.max_held_out]
    mean, std = x[drawn].mean(axis=0), x[drawn].std(axis=0)
    std = np.where(std > 1e-9 * (1 + np.abs(mean)), std, 1.0)
    heads = self.solve((x[drawn] - mean) / std, y[drawn], self.l2)

    def accuracy(x: np.ndarray, y: np.ndarray) -> list[float]:
      x = (x - mean) / std
      return [float((head(x) == y).mean()) if len(y) else 0.0 for head in heads]

    return accuracy(x[rest], y[rest]), accuracy(*test)

  def run(self, state: Any) -> dict[str, float]:
    """`5shot` the mean over seeds, `5shot/stderr` its standard error, `5shot/l2`; for each shots.

    Raises:
      UserError: a class of the training split with fewer examples than shots.
    """
    rows = lambda batch: {"x": self.embed(state.params, state.aux, batch)}
    train, test = self.train.map(rows), self.test.map(rows)
    x, z = train["x"].astype(np.float64), test["x"].astype(np.float64)
    out = {}
    for shots in self.shots:
      if not (np.isfinite(x).all() and np.isfinite(z).all()):
        out[f"{shots}shot"] = 0.0
        continue
      pair = (x, train["label"]), (z, test["label"])
      draws = [self._draw(*pair, shots, seed) for seed in range(self.seeds)]
      held_out, scores = np.array(draws).swapaxes(0, 1)  # [seeds, l2] each
      best = int(held_out.mean(axis=0).argmax())
      found = scores[:, best]
      out[f"{shots}shot"] = float(found.mean())
      if self.seeds > 1:
        out[f"{shots}shot/stderr"] = float(found.std(ddof=1) / self.seeds**0.5)
      if len(self.l2) > 1:
        out[f"{shots}shot/l2"] = float(self.l2[best])
    return out


def draw(labels: np.ndarray, shots: int, seed: int, where: str) -> tuple[np.ndarray, np.ndarray]:
  """Rows of `shots` examples of every class, and the other rows, both in a random order.

  The draw of few shots is part of that of more, for the same seed.
  """
  order = np.random.default_rng(seed).permutation(len(labels))
  rank = np.zeros(len(labels), int)  # of a row among those of its class
  for c in np.unique(labels):
    own = order[labels[order] == c]
    if len(own) < shots:
      raise UserError(
        f"{where}.shots = {shots}, but class {c} has {len(own)} examples in source_train"
      )
    rank[own] = np.arange(len(own))
  taken = rank[order] < shots
  return order[taken], order[~taken]


def ridge(x: np.ndarray, y: np.ndarray, l2: Sequence[float]) -> list[Callable]:
  """float64 [n, D], classes [n] -> for each l2 a function from features to classes.

  One eigendecomposition serves all l2, of the smaller of X^T X and X X^T. The bias is not decayed.
  """
  classes = np.unique(y)
  target = 2.0 * (y[:, None] == classes) - 1.0
  centre, bias = x.mean(axis=0), target.mean(axis=0)
  x, target = x - centre, target - bias
  wide = x.shape[1] > x.shape[0]
  s, v = np.linalg.eigh(x @ x.T if wide else x.T @ x)
  right = v.T @ (target if wide else x.T @ target)
  heads = []
  for strength in l2:
    w = v @ (right / (np.maximum(s, 0) + strength)[:, None])
    w = x.T @ w if wide else w
    heads.append(lambda z, w=w: classes[((z - centre) @ w + bias).argmax(axis=1)])
  return heads


def logistic(x: np.ndarray, y: np.ndarray, l2: Sequence[float]) -> list[Callable]:
  """As `ridge`, by logistic regression with C = 1 / l2."""
  from sklearn.linear_model import LogisticRegression

  return [LogisticRegression(C=1 / s, max_iter=1000).fit(x, y).predict for s in l2]
