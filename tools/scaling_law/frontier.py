"""Compute-optimal training: IsoFLOP parabolas, the envelope of learning curves, optima of a law."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from big_vision_like.config import UserError
from tools.scaling_law.fit import Fit


class Line(NamedTuple):
  """y = coefficient * x^exponent, with bootstrap draws of both, [b, 2]."""

  coefficient: float
  exponent: float
  draws: np.ndarray

  def at(self, x: np.ndarray) -> np.ndarray:
    """y of x."""
    return self.coefficient * np.asarray(x) ** self.exponent

  def to_json(self) -> dict[str, Any]:
    """Value and 95 % interval of both."""
    out = {}
    for i, (name, value) in enumerate(
      (("coefficient", self.coefficient), ("exponent", self.exponent))
    ):
      out[name] = {"value": float(value)}
      if len(self.draws):
        low, high = np.percentile(self.draws[:, i], [2.5, 97.5])
        out[name] |= {"low": float(low), "high": float(high)}
    return out


def line(x: np.ndarray, y: np.ndarray, *, bootstrap: int = 1000, seed: int = 0) -> Line:
  """Least squares in logarithms; intervals from resampled points.

  Raises:
    UserError: fewer than two different x.
  """
  x, y = np.log(x), np.log(y)
  if len(np.unique(x)) < 2:
    raise UserError(
      f"a power law needs two different compute budgets; there are {len(np.unique(x))}"
    )
  slope, start = np.polyfit(x, y, 1)
  rng, draws = np.random.default_rng(seed), []
  while len(draws) < bootstrap:
    rows = rng.integers(len(x), size=len(x))
    if len(np.unique(x[rows])) > 1:  # a resample of one budget has no slope
      b, a = np.polyfit(x[rows], y[rows], 1)
      draws.append((np.exp(a), b))
  return Line(float(np.exp(start)), float(slope), np.array(draws).reshape(-1, 2))


class Parabola(NamedTuple):
  """log L = a (log N - log N_opt)^2 + log L_opt at one compute budget."""

  flops: float
  params: float
  loss: float
  curvature: float
  runs: int


def budgets(flops: np.ndarray, tolerance: float = 0.1) -> np.ndarray:
  """Number of the compute budget of each run; sorted ones within `tolerance` are one budget."""
  order = np.argsort(flops)
  steps = np.diff(np.log(flops[order])) > np.log1p(tolerance)
  out = np.empty(len(flops), int)
  out[order] = np.concatenate([[0], np.cumsum(steps)])
  return out


def parabolas(
  params: np.ndarray, flops: np.ndarray, loss: np.ndarray, tolerance: float = 0.1
) -> list[Parabola]:
  """Approach 2 of Hoffmann et al. 2022: a parabola for each budget with three sizes or more.

  Budgets whose parabola opens downwards, or whose minimum lies outside of the sizes that were
  trained, say nothing of the optimum and are left out.
  """
  out, group = [], budgets(flops, tolerance)
  for g in range(group.max() + 1):
    mine = group == g
    x, y = np.log(params[mine]), np.log(loss[mine])
    if len(np.unique(x)) < 3:
      continue
    a, b, c = np.polyfit(x, y, 2)
    best = -b / (2 * a) if a > 0 else np.inf
    if x.min() <= best <= x.max():
      budget = float(np.exp(np.log(flops[mine]).mean()))
      lowest = float(np.exp(c - b * b / (4 * a)))
      out.append(Parabola(budget, float(np.exp(best)), lowest, float(a), int(mine.sum())))
  return out


def envelope(
  curves: Sequence[tuple[float, np.ndarray, np.ndarray]], bins: int = 50
) -> dict[str, np.ndarray]:
  """Approach 1: of all learning curves the lowest loss at each compute, and whose it is.

  Args:
    curves: (parameters, flops [t] rising, loss [t]) of each run.
    bins: compute values, evenly spread in logarithms; where only one curve is there is no choice,
      so that those are left out.

  Returns:
    flops, loss and params [m].
  """
  starts, ends = [c[1][0] for c in curves], [c[1][-1] for c in curves]
  at = np.geomspace(min(starts), max(ends), bins)
  losses = np.stack(
    [np.interp(np.log(at), np.log(x), y, left=np.inf, right=np.inf) for _, x, y in curves]
  )
  there = np.isfinite(losses).sum(0) > 1
  winner = losses[:, there].argmin(0)
  sizes = np.array([c[0] for c in curves])
  return {"flops": at[there], "loss": losses[:, there].min(0), "params": sizes[winner]}


def optimal(fit: Fit, flops: np.ndarray, per: float = 6.0) -> dict[str, np.ndarray]:
  """Parameters and examples of least loss for compute C = per N D, by the parametric law.

  N_opt = G (C / per)^(beta / (alpha + beta)), G = (alpha A / (beta B))^(1 / (alpha + beta)):
  Hoffmann et al. 2022, Eq. 4.
  """
  v = fit.law.shown(fit.variables)
  g = (v["alpha"] * v["A"] / (v["beta"] * v["B"])) ** (1 / (v["alpha"] + v["beta"]))
  product = np.asarray(flops) / per
  params = g * product ** (v["beta"] / (v["alpha"] + v["beta"]))
  examples = product / params
  return {
    "flops": np.asarray(flops),
    "params": params,
    "examples": examples,
    "loss": fit.predict({"params": params, "examples": examples}),
  }
