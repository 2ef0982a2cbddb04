"""Which patches of an image are hidden."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Masking(NamedTuple):
  """A random order of the patches of each example; the first n of it stay visible.

  Attributes:
    keep: int32 [B, n], the visible patches.
    restore: int32 [B, N], the place of each patch in that order: `restore < n` where visible.
    mask: float32 [B, N], 1 where hidden.
  """

  keep: jax.Array
  restore: jax.Array
  mask: jax.Array


def num_visible(num_patches: int, mask_ratio: float) -> int:
  """n = floor(N (1 - mask_ratio)), rounded as in the code of MAE."""
  return int(num_patches * (1 - mask_ratio))


def by_noise(noise: jax.Array, mask_ratio: float) -> Masking:
  """Hides the patches of the largest noise [B, N]: each example its own, all of them equally many.

  Shuffling by sorting needs no scatter and no loop (MAE, arXiv:2111.06377, "Simple
  implementation").
  """
  n = num_visible(noise.shape[1], mask_ratio)
  order = jnp.argsort(noise, axis=1).astype(jnp.int32)
  restore = jnp.argsort(order, axis=1).astype(jnp.int32)
  return Masking(order[:, :n], restore, (restore >= n).astype(jnp.float32))


def random_masking(rng: jax.Array, batch_size: int, num_patches: int, mask_ratio: float) -> Masking:
  """`by_noise` of uniform noise."""
  return by_noise(jax.random.uniform(rng, (batch_size, num_patches)), mask_ratio)
