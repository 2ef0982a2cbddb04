"""Ops on the keys of an example."""

import numpy as np


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
  return lambda example, rng: {**example, key: np.eye(classes, dtype=np.float32)[example[key]]}
