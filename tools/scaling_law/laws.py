"""Scaling laws as functions, each with its gradient, and where to start looking for its parameters.

A law predicts the logarithm of a loss or an error from what a run had: N parameters, D examples,
batch size, unique examples, or compute C. It is fitted in variables that are free of bounds: the
logarithms of its coefficients (`log_...`), which the report shows as coefficients again.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Runs = Mapping[str, np.ndarray]  # "params", "examples", "flops", ... -> float [n]


class Law(NamedTuple):
  """One law.

  Attributes:
    name: of the law in reports.
    formula: for people.
    variables: names of what is fitted, in order; `log_A` is shown as A.
    needs: the columns of the runs that it reads.
    predict: (variables [v], runs) -> (log of the prediction [n], its gradient [n, v]).
    starts: values of each variable; all combinations are tried.
  """

  name: str
  formula: str
  variables: tuple[str, ...]
  needs: tuple[str, ...]
  predict: Callable[[np.ndarray, Runs], tuple[np.ndarray, np.ndarray]]
  starts: tuple[Sequence[float], ...]

  def grid(self) -> np.ndarray:
    """All starts, [s, v]."""
    return np.array(list(itertools.product(*self.starts)), float)

  def shown(self, variables: np.ndarray) -> dict[str, Any]:
    """`{"alpha": ..., "A": exp(log_A), ...}` of variables [..., v]."""
    values = np.moveaxis(np.asarray(variables), -1, 0)
    return {
      n.removeprefix("log_"): np.exp(v) if n.startswith("log_") else v
      for n, v in zip(self.variables, values)
    }


def _log_sum(terms: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
  """log of the sum of exp(terms), and each term's share of the sum, [n, terms]."""
  stacked = np.stack(np.broadcast_arrays(*terms), -1)
  top = stacked.max(-1, keepdims=True)
  shares = np.exp(stacked - top)
  total = shares.sum(-1, keepdims=True)
  return (top + np.log(total))[..., 0], shares / total


def _three_terms(
  v: np.ndarray, log_n: np.ndarray, log_d: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
  """log(E + A / N^alpha + B / D^beta), its gradient by the five variables, and by log D."""
  log_e, log_a, log_b, alpha, beta = v
  total, share = _log_sum([log_e + 0 * log_n, log_a - alpha * log_n, log_b - beta * log_d])
  e, a, b = share[:, 0], share[:, 1], share[:, 2]
  return total, [e, a, b, -a * log_n, -b * log_d], -b * beta


def _chinchilla(v: np.ndarray, runs: Runs) -> tuple[np.ndarray, np.ndarray]:
  total, gradient, _ = _three_terms(v, np.log(runs["params"]), np.log(runs["examples"]))
  return total, np.stack(gradient, -1)


CHINCHILLA = Law(
  "parametric",
  "L(N, D) = E + A / N^alpha + B / D^beta",
  ("log_E", "log_A", "log_B", "alpha", "beta"),
  ("params", "examples"),
  _chinchilla,
  ((-1.0, 0.0, 1.0), (0.0, 5.0, 10.0), (0.0, 5.0, 10.0), (0.1, 0.4, 0.8), (0.1, 0.4, 0.8)),
)
"""Hoffmann et al. 2022 (arXiv:2203.15556), Eq. 2 and Approach 3."""


def _repeated(v: np.ndarray, runs: Runs) -> tuple[np.ndarray, np.ndarray]:
  unique, r = runs["unique_examples"], np.exp(v[5])
  repeats = np.maximum(runs["examples"] / unique - 1, 0)
  decay = np.exp(-repeats / r)
  d = np.log(np.minimum(runs["examples"], unique) + unique * r * (1 - decay))
  total, gradient, by_d = _three_terms(v[:5], np.log(runs["params"]), d)
  slope = unique * (r * (1 - decay) - repeats * decay) / np.exp(d)  # of d by log_R
  return total, np.stack([*gradient, by_d * slope], -1)


REPEATED = Law(
  "repeated data",
  "L = E + A / N^alpha + B / D'^beta, D' = U + U R (1 - exp(-(D / U - 1) / R))",
  (*CHINCHILLA.variables, "log_R"),
  ("params", "examples", "unique_examples"),
  _repeated,
  ((0.0,), (2.0, 8.0), (2.0, 8.0), (0.2, 0.5), (0.2, 0.5), (0.0, 2.5)),
)
"""Muennighoff et al. 2023 (arXiv:2305.16264), Eq. 5: U unique examples, seen D / U times."""


def _batch(v: np.ndarray, runs: Runs) -> tuple[np.ndarray, np.ndarray]:
  waste = runs["batch_size"] / np.exp(v[5])
  d = np.log(runs["examples"]) - np.log1p(waste)
  total, gradient, by_d = _three_terms(v[:5], np.log(runs["params"]), d)
  return total, np.stack([*gradient, by_d * waste / (1 + waste)], -1)


BATCH = Law(
  "batch size",
  "L = E + A / N^alpha + B / D'^beta, D' = D / (1 + batch / critical)",
  (*CHINCHILLA.variables, "log_critical"),
  ("params", "examples", "batch_size"),
  _batch,
  ((0.0,), (2.0, 8.0), (2.0, 8.0), (0.2, 0.5), (0.2, 0.5), (4.0, 8.0)),
)
"""McCandlish et al. 2018 (arXiv:1812.06162), Eq. 2.11: a batch of the critical size costs twice the
examples of a small one."""


def saturating(x: str = "flops") -> Law:
  """L(x) = c (x + d)^-b + e, of one quantity: Zhai et al. 2022 (arXiv:2106.04560), Eq. 1.

  d bends the curve at small x, e is what no scale removes.
  """

  def predict(v: np.ndarray, runs: Runs) -> tuple[np.ndarray, np.ndarray]:
    log_c, log_d, b, log_e = v
    scale = np.exp(np.log(runs[x]).mean())  # x in units of its own size: numbers near 1
    at = runs[x] / scale
    shifted = np.log(at + np.exp(log_d))
    total, share = _log_sum([log_c - b * shifted, log_e + 0 * at])
    by_d = -share[:, 0] * b * np.exp(log_d - shifted)
    return total, np.stack([share[:, 0], by_d, -share[:, 0] * shifted, share[:, 1]], -1)

  starts = ((-3.0, -1.0, 1.0), (-8.0, -2.0), (0.1, 0.3, 0.8), (-6.0, -2.0))
  name, formula = f"saturating in {x}", "L(x) = c (x + d)^-b + e, x over its geometric mean"
  return Law(name, formula, ("log_c", "log_d", "b", "log_e"), (x,), predict, starts)


def power(x: str = "flops") -> Law:
  """L(x) = c x^-b: a straight line in logarithms, as in Cherti et al. 2022 (arXiv:2212.07143)."""

  def predict(v: np.ndarray, runs: Runs) -> tuple[np.ndarray, np.ndarray]:
    log_c, b = v
    at = np.log(runs[x])
    return log_c - b * at, np.stack([np.ones_like(at), -at], -1)

  return Law(
    f"power in {x}", "L(x) = c x^-b", ("log_c", "b"), (x,), predict, ((0.0, 5.0), (0.05, 0.3))
  )
