"""Schedules at their ends and corners (the learning rate's: tests/test_optim.py)."""

import jax
import numpy as np
import optax
import pytest

from big_vision_like import optim, schedules
from big_vision_like.config import Durations


@pytest.mark.parametrize("make", [schedules.linear, schedules.cosine])
def test_ends_and_clamps(make):
  fn = make(0.996, 1.0, 10)
  np.testing.assert_allclose([fn(0), fn(5), fn(10), fn(99)], [0.996, 0.998, 1, 1], rtol=1e-6)
  np.testing.assert_allclose(jax.jit(fn)(5), 0.998, rtol=1e-6)
  assert float(make(1.0, 2.0, 0)(1)) == 2.0


def test_weight_decay_goes_to_its_end():
  params = {"a": {"kernel": np.ones((2, 2), np.float32), "bias": np.ones(2, np.float32)}}
  cfg = dict(name="sgd", lr=1.0, weight_decay=0.1, weight_decay_end=0.5)
  tx, _ = optim.make(cfg, total_steps=4, durations=Durations(8, 8, 4), params=params)
  state = tx.init(params)
  zeros = jax.tree.map(np.zeros_like, params)
  seen = []
  for _ in range(5):
    updates, state = tx.update(zeros, state, params)
    seen.append(-float(updates["a"]["kernel"][0, 0]))
    assert not np.any(updates["a"]["bias"])
  want = [0.5 - 0.4 * 0.5 * (1 + np.cos(np.pi * t / 4)) for t in range(5)]
  np.testing.assert_allclose(seen, want, rtol=1e-5)
  assert isinstance(tx, optax.GradientTransformation)
