"""Attention of one learned query, the same for every example, without keys or values of tokens."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from big_vision_like import axes
from big_vision_like.layers import fused
from big_vision_like.layers.attention import xavier


class _Weights(nn.Module):
  """The parameters of a Dense layer, kernel [D, F] and bias [F], as they are, in `dtype`."""

  features: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, width: int) -> tuple[jax.Array, jax.Array]:
    kernel = self.param("kernel", xavier, (width, self.features))
    bias = self.param("bias", nn.initializers.zeros, (self.features,))
    return kernel.astype(self.dtype), bias.astype(self.dtype)


class ProbeAttention(nn.Module):
  """`MultiHeadAttention` of one query that all examples share; its parameters, its numbers.

      q = W_q probe + b_q;   score_n = x_n . (W_k q) / sqrt(d);   y = W_v (sum_n p_n x_n) + b_v

  for each head: the key projection goes to the query and the value projection behind the pooling,
  so that of the 4 N D^2 multiply-accumulates of keys and values 2 N D H are left. q . b_k adds one
  number to all scores of a head, which softmax does not see: the bias of the keys has no gradient.
  """

  num_heads: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, probe: jax.Array, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """probe [1, D], x [B, N, D], mask [B, 1, 1, N] (True where a token counts) -> [B, D]."""
    width = x.shape[-1]
    split = lambda w: rearrange(w, "... (H d) -> ... H d", H=self.num_heads)
    q = fused.Dense(width, kernel_init=xavier, dtype=self.dtype, name="query")(probe)[0]
    key, _ = _Weights(width, self.dtype, name="key")(width)
    value, value_bias = _Weights(width, self.dtype, name="value")(width)
    q = q * (width // self.num_heads) ** -0.5
    query = jnp.einsum("DHd,Hd->DH", split(key), split(q))
    scores = jnp.einsum("BND,DH->BHN", x, query, preferred_element_type=jnp.float32)
    scores = axes.constrain(scores, axes.BATCH, axes.TENSOR)
    if mask is not None:
      scores = jnp.where(mask[:, :, 0], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores)
    self.sow("intermediates", "weights", weights)  # does nothing unless somebody asks for them
    weights = weights.astype(self.dtype)
    pooled = axes.constrain(jnp.einsum("BHN,BND->BHD", weights, x), axes.BATCH, axes.TENSOR)
    y = jnp.einsum("BHD,DHd->BHd", pooled, split(value))
    y = rearrange(y, "B H d -> B (H d)") + value_bias[None]
    return fused.Dense(width, kernel_init=xavier, dtype=self.dtype, name="out")(y)
