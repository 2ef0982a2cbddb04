"""Ops on the keys of an example."""

import numpy as np

from big_vision_like.config import whole_number


def keep(*names: str):
  """Only these keys."""
  return lambda example, rng: {k: example[k] for k in names}


def drop(*names: str):
  """All but these keys."""
  return lambda example, rng: {k: v for k, v in example.items() if k not in names}


def copy(source: str, target: str):
  """One key also under another name."""
  return lambda example, rng: {**example, target: example[source]}


def rename(source: str, target: str):
  """One key under another name instead."""

  def run(example, rng):
    example = dict(example)
    example[target] = example.pop(source)
    return example

  return run


def onehot(classes: int, key: str = "label"):
  """A label -> float32 [classes]."""
  whole_number(classes, "op onehot: classes")

  def run(example, rng):
    label = np.asarray(example[key])
    if label.size and not 0 <= label.min() <= label.max() < classes:
      raise ValueError(f"{key} {label} is not below {classes}")  # -1 would be the last class
    return {**example, key: np.eye(classes, dtype=np.float32)[label]}

  return run
