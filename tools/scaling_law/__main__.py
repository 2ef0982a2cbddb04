"""Scaling laws from runs: python -m tools.scaling_law --runs DIR --out DIR [--metric eval/val/loss]

A run is any folder below DIR with `summary.json` {"params", "examples", "flops", ...} and
`metrics.jsonl`. Fits L(N, D) = E + A / N^alpha + B / D^beta, saturating and pure power laws in
compute and, where `unique_examples` or `batch_size` differ, laws with terms for them; IsoFLOP
parabolas, the envelope of the learning curves, the compute-optimal table, and how well the largest
runs are foretold by the others. `--compare KEY` pairs runs that differ in KEY alone.

Writes `fit.json` (alpha, beta, E, A, B with 95 % intervals, and all else), plots and `index.html`.
"""

import argparse
import json
import pathlib
from typing import Any

import numpy as np

from big_vision_like.config import UserError, run_main
from big_vision_like.interop import files
from tools.scaling_law import compare, frontier, laws, page, runs
from tools.scaling_law.fit import Fit, fit

SIX = 6.0
"""FLOPs for each parameter and example, the rule C = 6 N D for tokens (Kaplan et al. 2020)."""


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--runs", required=True)
  parser.add_argument("--out", required=True, type=pathlib.Path)
  parser.add_argument("--metric", default="eval/val/loss")
  parser.add_argument("--bootstrap", type=int, default=500, help="resamples of the runs")
  parser.add_argument("--holdout", type=float, default=0.2, help="share of the largest runs")
  parser.add_argument("--budgets", default="", help="FLOPs of the optimal table, by comma")
  parser.add_argument("--compare", default="", help="key of summary.json")
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args(argv)
  if not 0 <= args.holdout < 1:
    raise UserError(f"--holdout = {args.holdout}; expected 0 to below 1")
  found = runs.read(args.runs, args.metric)
  result = analyse(found, args)
  files.write(args.out / "fit.json", (json.dumps(result, indent=1) + "\n").encode())
  page.write(args.out, found, result, args.metric)
  for name in ("E", "A", "B", "alpha", "beta"):
    if name in result:
      print(f"{name:6} {_shown(result[name])}")
  print(args.out / "index.html")
  return 0


def _shown(value: dict[str, float]) -> str:
  interval = f"  [{value['low']:.4g}, {value['high']:.4g}]" if "low" in value else ""
  return f"{value['value']:.4g}{interval}"


def analyse(found: list[runs.Run], args: argparse.Namespace) -> dict[str, Any]:
  """Everything that fit.json holds."""
  columns, loss = runs.columns(found)
  per = float(np.median(columns["flops"] / (columns["params"] * columns["examples"])))
  out: dict[str, Any] = {"metric": args.metric, "runs": len(found)}
  out["flops_per_param_and_example"] = {"counted": per, "rule": SIX}
  fits: dict[str, Fit] = {}
  out["laws"] = {}
  for key, law in _chosen(columns).items():
    try:
      fits[key] = fit(law, columns, loss, bootstrap=args.bootstrap, seed=args.seed)
      out["laws"][key] = fits[key].to_json() | _foretold(law, columns, loss, args.holdout)
    except UserError as e:
      out["laws"][key] = {"law": law.name, "formula": law.formula, "not_fitted": str(e)}
  if "parametric" in fits:
    out |= fits["parametric"].intervals()
    out["optimal"] = _table(fits["parametric"], columns["flops"], args.budgets, per)
  out["isoflop"] = _isoflop(columns, loss, args)
  out["envelope"] = _envelope(runs.curves(found), args)
  if args.compare:
    out["compare"] = compare.paired(found, args.compare, seed=args.seed)
  return out


def _chosen(columns: runs.Columns) -> dict[str, laws.Law]:
  """The laws that these runs can tell something of."""
  out = {"parametric": laws.CHINCHILLA, "saturating": laws.saturating(), "power": laws.power()}
  if "unique_examples" in columns and (columns["unique_examples"] < columns["examples"]).any():
    out["repeated"] = laws.REPEATED
  if "batch_size" in columns and len(np.unique(columns["batch_size"])) > 1:
    out["batch"] = laws.BATCH
  return out


def _foretold(
  law: laws.Law, columns: runs.Columns, loss: np.ndarray, share: float
) -> dict[str, Any]:
  """How far the law of the smaller runs is off for the largest ones, as shares of their loss."""
  count = round(share * len(loss))
  order = np.argsort(columns["flops"], kind="stable")
  small, large = order[: len(loss) - count], order[len(loss) - count :]
  if count < 1 or len(small) < len(law.variables) + 1:
    return {}
  take = lambda rows: {k: v[rows] for k, v in columns.items()}
  predicted = fit(law, take(small), loss[small], bootstrap=0).predict(take(large))
  error = predicted / loss[large] - 1
  return {
    "holdout": {
      "runs": count,
      "mean_error": float(error.mean()),
      "largest_error": float(error[np.abs(error).argmax()]),
    }
  }


def _table(law: Fit, flops: np.ndarray, asked: str, per: float) -> list[dict[str, float]]:
  """Optima for the budgets asked for, else from the smallest run's to 100 times the largest's."""
  try:
    at = np.array([float(x) for x in asked.split(",")]) if asked else None
  except ValueError:
    raise UserError(f"--budgets {asked}: expected numbers such as 1e18,1e19") from None
  at = np.geomspace(flops.min(), 100 * flops.max(), 8) if at is None else at
  best = frontier.optimal(law, at, per)
  return [dict(zip(best, map(float, row))) for row in zip(*best.values())]


def _isoflop(columns: runs.Columns, loss: np.ndarray, args: argparse.Namespace) -> dict[str, Any]:
  found = frontier.parabolas(columns["params"], columns["flops"], loss)
  out: dict[str, Any] = {"budgets": [p._asdict() for p in found]}
  if len({p.flops for p in found}) > 1:
    line = frontier.line(*_points(found), bootstrap=args.bootstrap, seed=args.seed)
    out["params"] = line.to_json()
  return out


def _points(found: list[frontier.Parabola]) -> tuple[np.ndarray, np.ndarray]:
  return np.array([p.flops for p in found]), np.array([p.params for p in found])


def _envelope(curves: list[Any], args: argparse.Namespace) -> dict[str, Any]:
  if len(curves) < 2:
    return {}
  found = frontier.envelope(curves)
  out: dict[str, Any] = {k: v.tolist() for k, v in found.items()}
  if len(np.unique(found["flops"])) > 1:
    line = frontier.line(found["flops"], found["params"], bootstrap=args.bootstrap, seed=args.seed)
    out["optimal_params"] = line.to_json()
  return out


if __name__ == "__main__":
  run_main(main)
