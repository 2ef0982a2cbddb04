"""Backbones by name: one way to make, initialise and apply them, with statistics or without."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_like import models
from big_vision_like.config import UserError


class Counter(nn.Module):
  """Counts its training calls in a collection that is not parameters."""

  @nn.compact
  def __call__(self, x, *, train=False):
    n = self.variable("counts", "n", lambda: jnp.zeros(()))
    if train and not self.is_initializing():
      n.value += 1
    return nn.Dense(2)(x) + n.value, {"x": x}


def test_statistics_move_in_training_only():
  x = np.ones((3, 4), np.float32)
  params, stats = models.init(Counter(), jax.random.key(0), x)
  assert params.keys() == {"Dense_0"} and stats == {"counts": {"n": 0}}
  (trained, out), moved = models.apply(Counter(), params, stats, x, train=True)
  (plain, _), kept = models.apply(Counter(), params, stats, x)
  assert moved["counts"]["n"] == 1 and kept is stats and "x" in out
  np.testing.assert_allclose(trained, plain + 1, rtol=1e-6)


def test_a_transformer_has_none():
  cfg = dict(variant="mu/4", image_size=8, num_classes=3, drop_path=0.5, scan=False)
  model = models.make(cfg)
  x = np.ones((2, 8, 8, 1), np.float32)
  params, stats = models.init(model, jax.random.key(0), x)
  assert stats == {}
  apply = lambda rng: models.apply(model, params, stats, x, train=True, rng=rng)
  (a, _), same = apply(jax.random.key(1))
  (b, _), _ = apply(jax.random.key(2))
  assert same == {} and a.shape == (2, 3) and not np.allclose(a, b)


def test_unknown_backbone():
  with pytest.raises(UserError, match=r"config.model.name 'vitt' is unknown; did you mean vit"):
    models.make(dict(name="vitt"))
