"""Effective robustness: accuracy under shift beyond what a testbed of models predicts.

Taori et al. 2020, arXiv:2007.00644, Sec. 3.1: over many models the logits of the accuracies on two
test sets of a task lie on a line; a robust model lies above it.
"""

import csv
import json
import pathlib
from typing import Any

import numpy as np

from big_vision_like.config import UserError


def load_testbed(file: str, where: str) -> dict[str, np.ndarray]:
  """Accuracies of other models: set -> float64 [models], NaN where a model has none.

  Raises:
    UserError: no such file, one of another form, an accuracy that is no share.
  """
  path = pathlib.Path(str(file)).expanduser()
  if not path.is_file():
    raise UserError(f"{where} = {file!r} is not a file")
  try:
    with path.open(encoding="utf-8", newline="") as f:
      rows = list(csv.DictReader(f)) if path.suffix == ".csv" else json.load(f)
    names = dict.fromkeys(key for row in rows for key in row)
    columns = {name: np.array([_number(row.get(name)) for row in rows]) for name in names}
  except (ValueError, TypeError, AttributeError) as e:
    raise UserError(f"{where}: {file!r} is not a list of {{set: accuracy}}: {e}") from None
  columns = {name: column for name, column in columns.items() if not np.isnan(column).all()}
  for name, column in columns.items():
    if np.nanmin(column) < 0 or np.nanmax(column) > 1:
      raise UserError(f"{where}: {name} has {np.nanmax(column):g}; accuracies are shares, 0 to 1")
  return columns


def _number(value: Any) -> float:
  """NaN for names of models and empty cells."""
  try:
    return float(value)
  except (ValueError, TypeError):
    return float("nan")


def fit(reference: np.ndarray, shifted: np.ndarray) -> tuple[float, float]:
  """Slope and intercept of logit(shifted) = slope * logit(reference) + intercept, least squares.

  Models that lack an accuracy or have 0 or 1, whose logit is infinite, are left out.
  """
  use = (reference > 0) & (reference < 1) & (shifted > 0) & (shifted < 1)
  slope, intercept = np.polyfit(_logit(reference[use]), _logit(shifted[use]), 1)
  return float(slope), float(intercept)


def effective_robustness(
  reference: float, shifted: float, xs: np.ndarray, ys: np.ndarray, where: str = "testbed"
) -> float:
  """`shifted` less what the testbed (xs, ys) predicts from `reference`; accuracies in [0, 1].

  Raises:
    UserError: a testbed of fewer than two models to fit.
  """
  inside = (xs > 0) & (xs < 1) & (ys > 0) & (ys < 1)
  if len(set(xs[inside])) < 2:
    raise UserError(f"{where}: the testbed has fewer than 2 models with accuracies between 0 and 1")
  slope, intercept = fit(xs, ys)
  expected = slope * _logit(np.clip(reference, 1e-9, 1 - 1e-9)) + intercept
  return float(shifted - 1 / (1 + np.exp(-expected)))


def _logit(p: Any) -> Any:
  return np.log(p / (1 - p))
