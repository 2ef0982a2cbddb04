"""Bootstrap intervals: how much of a mean is the luck of the test set (Efron 1979).

The percentile interval of Efron and Tibshirani 1993, Sec. 13.3: the mean of n examples drawn with
replacement, many times; 95 % of these means lie between `low` and `high`.
"""

from collections.abc import Mapping

import numpy as np

from big_vision_like.config import Config, whole_number

LEVEL = 0.95
CHUNK = 1 << 22  # numbers drawn at a time


def resamples(config: Config) -> int:
  """`config.bootstrap`: resamples of each mean, 1000 for publication; 0, the default, is off."""
  return whole_number(config.get("bootstrap", 0), f"{config.path}.bootstrap", 0)


def scores(values: Mapping[str, np.ndarray], count: int) -> dict[str, float]:
  """The mean of each [n] as `name`; with a count of resamples also `name/low` and `name/high`."""
  out = {}
  for name, value in values.items():
    out[name] = float(np.mean(value, dtype=np.float64))
    if count:
      out[f"{name}/low"], out[f"{name}/high"] = interval(value, count)
  return out


def interval(
  values: np.ndarray, count: int = 1000, level: float = LEVEL, seed: int = 0
) -> tuple[float, float]:
  """Percentile interval of the mean of values [n], from `count` resamples; NaN where n is 0."""
  if not len(values):
    return float("nan"), float("nan")
  means = resampled_means(values, count, np.random.default_rng(seed))
  low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
  return float(low), float(high)


def resampled_means(values: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
  """Means of `count` samples with replacement of values [n]: float64 [count]."""
  values = np.asarray(values, np.float64)
  n = len(values)
  unique, times = np.unique(values, return_counts=True)
  if len(unique) <= 16:
    # How often each value is drawn is multinomial: hits and misses need no draw of an example.
    return rng.multinomial(n, times / n, size=count) @ unique / n
  rows = max(1, CHUNK // n)
  sizes = [min(rows, count - start) for start in range(0, count, rows)]
  return np.concatenate([values[rng.integers(n, size=(k, n))].mean(axis=1) for k in sizes])
