"""Sets of runs: what `experiments/NAME/sweep.py` is written with.

    from big_vision_like import sweeps

    CONFIG = "configs/siglip.py:smoke"

    def sweep():
      sizes = sweeps.zipped({"model.image.width": (32, 64), "model.text.width": (32, 64)})
      return sweeps.product(sizes, {"total_steps": (400, 800, 1600), "seed": (0, 1)})

A set is a list of overrides, `{key of the config: value}`. A mapping of key -> values, wherever a
set is expected, is the product of its values. The key `config` stands for another config file.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from big_vision_like.config import UserError

Overrides = dict[str, Any]
Set = Sequence[Overrides] | Mapping[str, Sequence[Any]]


def _listed(values: Set) -> list[Overrides]:
  if not isinstance(values, Mapping):
    return [dict(v) for v in values]
  return [dict(zip(values, row)) for row in itertools.product(*values.values())]


def product(*sets: Set) -> list[Overrides]:
  """Every combination of one element of each set; the last varies fastest.

  Raises:
    UserError: two sets give the same key.
  """
  out = []
  for row in itertools.product(*map(_listed, sets)):
    merged: Overrides = {}
    for part in row:
      if twice := merged.keys() & part.keys():
        raise UserError(f"sweep: two sets of a product give {', '.join(sorted(twice))}")
      merged |= part
    out.append(merged)
  return out


def zipped(values: Mapping[str, Sequence[Any]]) -> list[Overrides]:
  """The first values together, the second ones, and so on.

  Raises:
    UserError: the sequences are not of one length.
  """
  if len({len(v) for v in values.values()}) > 1:
    lengths = ", ".join(f"{k} {len(v)}" for k, v in values.items())
    raise UserError(f"sweep: zipped values are not equally many: {lengths}")
  return [dict(zip(values, row)) for row in zip(*values.values())]


def random(count: int, draw: Mapping[str, Callable[[np.random.Generator], Any]], seed: int = 0):
  """`count` overrides; each value is drawn by its function, e.g. `log_uniform(1e-4, 1e-2)`.

  Run i has the same values whatever the count.
  """
  rngs = [np.random.default_rng((seed, i)) for i in range(count)]
  return [{key: fn(rng) for key, fn in draw.items()} for rng in rngs]


def uniform(low: float, high: float) -> Callable[[np.random.Generator], float]:
  """For `random`."""
  return lambda rng: float(rng.uniform(low, high))


def log_uniform(low: float, high: float, digits: int = 3) -> Callable[[np.random.Generator], float]:
  """For `random`: even in the logarithm, rounded to so many digits."""
  return lambda rng: float(f"{math.exp(rng.uniform(math.log(low), math.log(high))):.{digits}g}")


def one_of(*values: Any) -> Callable[[np.random.Generator], Any]:
  """For `random`."""
  return lambda rng: values[int(rng.integers(len(values)))]


def isoflop(
  budgets: Sequence[float],
  shapes: Set,
  flops_per_example: Callable[[Overrides], float],
  *,
  examples: str = "total_examples",
  least: int = 1,
) -> list[Overrides]:
  """For each compute budget every shape, trained on as many examples as the budget pays.

  Args:
    budgets: training FLOPs.
    shapes: of the model, e.g. from `vit_series`.
    flops_per_example: of a training step, of one shape.
    examples: the key that says how many.
    least: examples below which a run is left out.
  """
  out = []
  for budget, shape in itertools.product(budgets, _listed(shapes)):
    count = int(budget / flops_per_example(shape))
    if count >= least:
      out.append({**shape, examples: count})
  return out


def vit_series(
  widths: Sequence[int],
  at: str = "model",
  *,
  depth_per_width: float = 1 / 64,
  mlp_ratio: float = 4.0,
  head_dim: int = 64,
) -> list[Overrides]:
  """Shapes of a ViT by one rule: depth and MLP grow with the width, heads keep their size.

  An MLP of 4 widths and heads of 64 are those of the published sizes from S to L; their depths (12,
  12 and 24 blocks at 384, 768 and 1,024) follow no rule.
  """
  return [
    {
      f"{at}.width": width,
      f"{at}.depth": max(1, round(width * depth_per_width)),
      f"{at}.mlp_dim": round(width * mlp_ratio),
      f"{at}.num_heads": max(1, width // head_dim),
    }
    for width in widths
  ]


def mup(
  shapes: Set, lr: float, base_width: int, width: str = "model.width", hidden: str = ".*kernel"
) -> list[Overrides]:
  """Learning rates that transfer over width, of Adam in the maximal update parametrisation.

  Kernels of hidden layers take lr * base_width / width, everything else lr: Yang et al. 2022
  (arXiv:2203.03466), Table 8 (initial deviations of 1 / sqrt(fan-in) are the layers' own). The
  readout's multiplier and the 1 / d scale of attention are left out.

  Args:
    shapes: with a key `width`.
    lr: tuned at `base_width`.
    base_width: where it was.
    width: the key.
    hidden: regex of the hidden kernels.
  """
  return [
    {**s, "optim.lr": lr, "optim.lr_mults": ((hidden, base_width / s[width]),)}
    for s in _listed(shapes)
  ]
