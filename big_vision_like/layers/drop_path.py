"""Stochastic depth."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class DropPath(nn.Module):
  """Drops a residual branch per example, rescaled to keep its mean (Huang et al. 2016).

  `rate` may be traced: under a scan over depth it is a slice of the schedule.
  """

  @nn.compact
  def __call__(self, x: jax.Array, rate: jax.Array | float, *, train: bool) -> jax.Array:
    """x [B, ...], rate in [0, 1)."""
    if not train:
      return x
    keep = 1.0 - rate
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    alive = jax.random.bernoulli(self.make_rng("dropout"), keep, shape)
    return jnp.where(alive, x / jnp.asarray(keep, x.dtype), jnp.zeros_like(x))
