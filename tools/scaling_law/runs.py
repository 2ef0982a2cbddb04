"""Finished runs as columns: a run is a folder with `summary.json` and `metrics.jsonl`."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from big_vision_like.config import UserError, unknown

NUMBERS = ("params", "examples", "flops")


class Run(NamedTuple):
  """One run.

  Attributes:
    name: its folder.
    summary: of summary.json: params, examples, flops, and what else is there.
    steps, values: of the metric, [t] each.
  """

  name: str
  summary: dict[str, Any]
  steps: np.ndarray
  values: np.ndarray


Columns = dict[str, np.ndarray]


def read(folder: str | pathlib.Path, metric: str) -> list[Run]:
  """All runs in folders below, by name.

  Raises:
    UserError: no runs, a summary that lacks a number, or a run that never logged the metric.
  """
  root = pathlib.Path(folder)
  files = sorted(root.rglob("summary.json")) if root.is_dir() else []
  if not files:
    raise UserError(f"--runs {root}: no folder in it has a summary.json")
  return [_run(file, root, metric) for file in files]


def _run(file: pathlib.Path, root: pathlib.Path, metric: str) -> Run:
  try:
    summary = json.loads(file.read_text())
  except ValueError as e:
    raise UserError(f"{file} is not JSON: {e}") from None
  for key in NUMBERS:
    value = summary.get(key) if isinstance(summary, dict) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
      raise UserError(f"{file}: {key} = {value!r}; expected a positive number")
  log = file.with_name("metrics.jsonl")
  try:
    rows = [json.loads(line) for line in log.read_text().splitlines() if line.strip()]
  except (OSError, ValueError) as e:
    raise UserError(f"{log} cannot be read: {e}") from None
  found = {row["step"]: row[metric] for row in rows if metric in row and "step" in row}
  if not found:
    known = {key for row in rows for key in row if key != "step"}
    raise unknown(f"--metric: {log}: metric", metric, sorted(known))
  steps = np.array(sorted(found), float)
  name = str(file.parent.relative_to(root))
  return Run(name, summary, steps, np.array([found[s] for s in steps], float))


def columns(runs: Sequence[Run]) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """Every number that all summaries have, [n] each, and the last value of the metric, [n]."""
  is_number = lambda v: isinstance(v, (int, float)) and not isinstance(v, bool)
  keys = [k for k in runs[0].summary if all(is_number(r.summary.get(k)) for r in runs)]
  out = {k: np.array([r.summary[k] for r in runs], float) for k in keys}
  return out, np.array([r.values[-1] for r in runs])


def curves(runs: Sequence[Run]) -> list[tuple[float, np.ndarray, np.ndarray]]:
  """(params, flops [t], values [t]) of each run; compute grows with the steps."""
  out = []
  for run in runs:
    later = run.steps > 0
    if later.sum() > 1:
      share = run.steps[later] / run.steps[-1]
      out.append((run.summary["params"], run.summary["flops"] * share, run.values[later]))
  return out
