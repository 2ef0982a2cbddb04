"""A radiance field without view dependence (NeRF, arXiv:2003.08934; DreamFusion, arXiv:2209.14988).

point -> positional encoding -> residual MLP -> density, albedo
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_vision_like import axes
from big_vision_like.config import UserError, call

MAX_LOG_DENSITY = 15.0  # e^15 is opaque at any step; exp of more would end in inf


def positional_encoding(x: jax.Array, frequencies: int) -> jax.Array:
  """[..., D] -> [..., D (1 + 2 L)]: x, sin(2^k pi x), cos(2^k pi x) for k < L (NeRF, Eq. 4)."""
  scales = math.pi * 2.0 ** jnp.arange(frequencies)
  angles = (x[..., None, :] * scales.reshape((1,) * (x.ndim - 1) + (-1, 1))).reshape(
    *x.shape[:-1], -1
  )
  return jnp.concatenate([x, jnp.sin(angles), jnp.cos(angles)], axis=-1)


class NeRF(nn.Module):
  """log density = MLP + density_bias + blob exp(-|x|^2 / (2 blob_std^2)), albedo = sigmoid(MLP).

      stem, block_<i>/{norm, up, down}, norm, head [width, 4]     density first, then the albedo

  A block is x + down(silu(up(silu(norm(x))))). The blob puts matter in the middle before anything
  is learned (DreamFusion, Appendix A.2); outside of a sphere of `radius` there is nothing.
  DreamFusion's mip-NeRF encodes the cone around a sample; this encodes its point.
  """

  width: int = 128
  depth: int = 5
  frequencies: int = 8
  blob: float = 5.0
  blob_std: float = 0.2
  density_bias: float = 0.0
  radius: float = 1.0
  dtype: str = "float32"

  @nn.compact
  def __call__(
    self, points: jax.Array, *, train: bool = False
  ) -> tuple[tuple[jax.Array, jax.Array], dict[str, jax.Array]]:
    """points [B, ..., 3] -> (density [B, ...], albedo [B, ..., 3] in 0..1), intermediates.

    Both are float32. Intermediates: `log_density` [B, ...], also outside of the sphere, and
    `encoded` [B, ..., width] after the last block.
    """
    del train
    dense = lambda size, name: nn.Dense(size, dtype=self.dtype, name=name)
    x = dense(self.width, "stem")(positional_encoding(points, self.frequencies))
    for i in range(self.depth):
      x = axes.constrain(_Block(self.dtype, name=f"block_{i}")(x), axes.BATCH)
    out = dense(4, "head")(nn.silu(nn.LayerNorm(dtype=self.dtype, name="norm")(x)))
    out = out.astype(jnp.float32)
    square = jnp.sum(jnp.square(points), axis=-1)
    log_density = out[..., 0] + self.density_bias
    log_density += self.blob * jnp.exp(-square / (2 * self.blob_std**2))
    log_density = jnp.minimum(log_density, MAX_LOG_DENSITY)
    density = jnp.where(square < self.radius**2, jnp.exp(log_density), 0.0)
    return (density, nn.sigmoid(out[..., 1:])), {"log_density": log_density, "encoded": x}


class _Block(nn.Module):
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = nn.silu(nn.LayerNorm(dtype=self.dtype, name="norm")(x))
    y = nn.silu(nn.Dense(x.shape[-1], dtype=self.dtype, name="up")(y))
    return x + nn.Dense(x.shape[-1], dtype=self.dtype, name="down")(y)


def normals(field: Callable[[jax.Array], Any], points: jax.Array) -> tuple[Any, jax.Array]:
  """What `field(points)` gives, and unit normals [..., 3]: against the gradient of the density.

  The gradient of the log density has the same direction and does not vanish with the density.
  """

  def log_density(points):
    out = field(points)
    return jnp.sum(out[1]["log_density"]), out

  gradient, out = jax.grad(log_density, has_aux=True)(points)
  square = jnp.sum(jnp.square(gradient), axis=-1, keepdims=True)
  return out, -gradient * jax.lax.rsqrt(square + 1e-10)


def make(**kwargs: Any) -> NeRF:
  """A field from its attributes.

  Raises:
    UserError: an unknown attribute, or a number out of range.
  """
  where = "config.model: NeRF"
  model = call(NeRF, kwargs, where)
  for key in ("width", "depth", "frequencies", "blob_std", "radius"):
    if getattr(model, key) <= 0:
      raise UserError(f"{where} {key} = {getattr(model, key)}; expected a number > 0")
  return model
