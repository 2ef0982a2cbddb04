"""Batch normalisation (Ioffe and Szegedy, arXiv:1502.03167) over the global batch."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_vision_like.config import UserError


class BatchNorm(nn.Module):
  """scale * (x - mean) / sqrt(var + eps) + bias, mean and var over all axes but the last.

  Statistics are those of the global batch, whatever the mesh, or of `groups` groups of B / groups
  consecutive examples: what MoCo (arXiv:1911.05722, Sec. 3.3) shuffles between is then defined
  without devices. They are float32 in any `dtype`.

  Parameters scale, bias [C]. Collection `batch_stats` holds mean and var [C] for `train=False`:
  after each training call `momentum * old + (1 - momentum) * new`, new being the mean over groups;
  var is unbiased there (n / (n - 1), as in PyTorch), biased where it normalises.

  Attributes:
    affine: without it there are no parameters.
    zero_scale: scale starts at 0, so that a residual branch starts as nothing (arXiv:1706.02677).
    dtype: of the output.
  """

  momentum: float = 0.9
  eps: float = 1e-5
  groups: int = 1
  affine: bool = True
  zero_scale: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """[B, ..., C] -> [B, ..., C].

    Raises:
      UserError: in training, a batch that the groups do not divide.
    """
    shape, channels = x.shape, x.shape[-1:]
    old_mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
    old_var = self.variable("batch_stats", "var", jnp.ones, channels)
    x = x.astype(jnp.float32)
    if train:
      if shape[0] % self.groups:
        raise UserError(
          f"batch norm: a batch of {shape[0]} does not divide by {self.groups} groups"
        )
      x = x.reshape(self.groups, -1, *channels)
      mean = jnp.mean(x, axis=1, keepdims=True)
      var = jnp.mean(jnp.square(x - mean), axis=1, keepdims=True)
      if not self.is_initializing():
        unbiased = x.shape[1] / max(x.shape[1] - 1, 1)
        move = lambda old, new: self.momentum * old + (1 - self.momentum) * new
        old_mean.value = move(old_mean.value, jnp.mean(mean, axis=(0, 1)))
        old_var.value = move(old_var.value, jnp.mean(var, axis=(0, 1)) * unbiased)
    else:
      x = x.reshape(1, -1, *channels)
      mean, var = old_mean.value[None, None, :], old_var.value[None, None, :]
    x = (x - mean) * jax.lax.rsqrt(var + self.eps)
    if self.affine:
      start = nn.initializers.zeros if self.zero_scale else nn.initializers.ones
      scale = self.param("scale", start, channels)
      bias = self.param("bias", nn.initializers.zeros, channels)
      x = x * scale[None, None, :] + bias[None, None, :]
    return x.reshape(shape).astype(self.dtype)
