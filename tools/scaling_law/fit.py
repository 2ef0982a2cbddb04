"""Fits of laws to runs: Huber loss on logarithms, many starts, L-BFGS; intervals by bootstrap."""

from typing import Any, NamedTuple

import numpy as np

from big_vision_like.config import UserError
from tools.scaling_law.laws import Law, Runs

DELTA = 1e-3
"""Of the Huber loss, in logarithms of the loss (Hoffmann et al. 2022)."""
BEST = 8
"""Starts with the lowest loss that are followed to their end."""


class Fit(NamedTuple):
  """A law at its best variables.

  Attributes:
    law: the law.
    variables: [v].
    draws: [b, v] of bootstrap resamples; empty without.
    loss: mean Huber loss.
    residuals: log of the loss of the runs less the prediction's, [n].
  """

  law: Law
  variables: np.ndarray
  draws: np.ndarray
  loss: float
  residuals: np.ndarray

  def predict(self, runs: Runs) -> np.ndarray:
    """The law's loss of other runs, [n]."""
    return np.exp(self.law.predict(self.variables, runs)[0])

  def intervals(self, level: float = 0.95) -> dict[str, dict[str, float]]:
    """`{"alpha": {"value", "low", "high"}}`: percentiles of the bootstrap; none without draws."""
    values, tail = self.law.shown(self.variables), 100 * (1 - level) / 2
    draws = self.law.shown(self.draws) if len(self.draws) else {}
    out = {}
    for name, value in values.items():
      out[name] = {"value": float(value)}
      if name in draws:
        low, high = np.percentile(draws[name], [tail, 100 - tail])
        out[name] |= {"low": float(low), "high": float(high)}
    return out

  def to_json(self) -> dict[str, Any]:
    """For fit.json."""
    return {
      "law": self.law.name,
      "formula": self.law.formula,
      "runs": len(self.residuals),
      "rmse_log": float(np.sqrt(np.mean(self.residuals**2))),
      **self.intervals(),
    }


def huber(residual: np.ndarray, delta: float) -> tuple[np.ndarray, np.ndarray]:
  """r^2 / 2 within delta, delta (|r| - delta / 2) beyond; and its derivative."""
  inside = np.clip(residual, -delta, delta)
  return inside * (residual - inside / 2), inside


def fit(
  law: Law,
  runs: Runs,
  loss: np.ndarray,
  *,
  bootstrap: int = 200,
  seed: int = 0,
  delta: float = DELTA,
) -> Fit:
  """The variables of least mean Huber loss between the logarithms.

  Args:
    law: which law.
    runs: its columns, [n].
    loss: [n], positive.
    bootstrap: resamples of the runs, with replacement; each is fitted from the best variables.
    seed: of the resamples.
    delta: of the Huber loss.

  Raises:
    UserError: fewer runs than variables, a column or a loss that is not positive.
  """
  target = _checked(law, runs, loss)
  n = len(target)
  weight = np.full(n, 1 / n)
  objective = lambda v, w: _objective(law, runs, target, v, w, delta)
  starts = law.grid()
  first = np.array([objective(v, weight)[0] for v in starts])
  found = [_minimise(objective, starts[i], weight) for i in np.argsort(first)[:BEST]]
  best, value = min(found, key=lambda f: f[1])
  rng = np.random.default_rng(seed)
  draws = [_minimise(objective, best, rng.multinomial(n, weight) / n)[0] for _ in range(bootstrap)]
  residuals = target - law.predict(best, runs)[0]
  return Fit(law, best, np.array(draws).reshape(-1, len(best)), value, residuals)


def _checked(law: Law, runs: Runs, loss: np.ndarray) -> np.ndarray:
  """Logarithm of the loss."""
  for name in law.needs:
    if name not in runs:
      raise UserError(f"law {law.name}: runs have no {name!r}; they have {', '.join(runs)}")
    if not (np.isfinite(runs[name]) & (runs[name] > 0)).all():
      raise UserError(f"law {law.name}: {name} of some runs is not a positive number")
  if not (np.isfinite(loss) & (loss > 0)).all():
    raise UserError(f"law {law.name}: the loss of some runs is not a positive number")
  if len(loss) < len(law.variables):
    raise UserError(
      f"law {law.name}: {len(loss)} runs cannot fix {len(law.variables)} variables; "
      "run more, or fit a smaller law"
    )
  return np.log(loss)


def _objective(
  law: Law, runs: Runs, target: np.ndarray, v: np.ndarray, weight: np.ndarray, delta: float
) -> tuple[float, np.ndarray]:
  """Mean Huber loss and its gradient, over delta: numbers near 1 for the optimiser."""
  predicted, gradient = law.predict(v, runs)
  value, slope = huber(predicted - target, delta)
  return float(weight @ value) / delta, (weight * slope) @ gradient / delta


def _minimise(objective: Any, start: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, float]:
  from scipy.optimize import minimize

  options = {"maxiter": 2000, "ftol": 1e-13, "gtol": 1e-9}
  with np.errstate(over="ignore", invalid="ignore"):  # far starts; the line search comes back
    found = minimize(objective, start, args=(weight,), jac=True, method="L-BFGS-B", options=options)
  return found.x, float(found.fun) if np.isfinite(found.fun) else np.inf
