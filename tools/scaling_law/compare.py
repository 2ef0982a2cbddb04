"""Two or more values of one setting, compared over runs that are alike in everything else."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from big_vision_like.config import UserError, unknown
from tools.scaling_law.runs import NUMBERS, Run


def paired(
  found: Sequence[Run], key: str, *, bootstrap: int = 1000, seed: int = 0
) -> dict[str, Any]:
  """Ratios of the losses of runs that differ in `key` alone, against its first value.

  Runs are alike when all other entries of their summaries are, but for the seed and for what
  follows from `key` (params and flops, of two losses, may differ by a few numbers). Several seeds
  are averaged in logarithms. Intervals are of the mean over the settings, by bootstrap.

  Raises:
    UserError: a key that the summaries lack, or fewer than two values of it in like runs.
  """
  for run in found:
    if key not in run.summary:
      raise unknown(f"--compare: {run.name}/summary.json: key", key, list(run.summary))
  values = sorted({str(run.summary[key]) for run in found})
  ignored = {key, "seed", "id", "params", "flops"}
  groups: dict[str, dict[str, list[float]]] = {}
  for run in found:
    rest = {k: v for k, v in sorted(run.summary.items()) if k not in ignored}
    group = groups.setdefault(str(rest), {"rest": rest})
    group.setdefault(str(run.summary[key]), []).append(np.log(run.values[-1]))
  whole = [g for g in groups.values() if all(v in g for v in values)]
  if len(values) < 2 or not whole:
    raise UserError(
      f"--compare {key}: {', '.join(values)}; no setting was run with two values of it"
    )
  logs = np.array([[np.mean(g[v]) for v in values] for g in whole])  # [settings, values]
  rng = np.random.default_rng(seed)
  rows = rng.integers(len(logs), size=(bootstrap, len(logs)))
  out: dict[str, Any] = {"key": key, "values": values, "settings": []}
  varying = [
    k for k in whole[0]["rest"] if k not in NUMBERS and len({str(g["rest"][k]) for g in whole}) > 1
  ]
  varying += [k for k in ("examples",) if len({g["rest"].get(k) for g in whole}) > 1]
  for group, row in zip(whole, logs):
    setting = {k: group["rest"][k] for k in varying}
    out["settings"].append(setting | {"loss": dict(zip(values, np.exp(row).tolist()))})
  for i, value in enumerate(values[1:], 1):
    difference = logs[:, i] - logs[:, 0]
    low, high = np.percentile(difference[rows].mean(1), [2.5, 97.5])
    out[f"{value} / {values[0]}"] = {
      "value": float(np.exp(difference.mean())),
      "low": float(np.exp(low)),
      "high": float(np.exp(high)),
    }
  return out
