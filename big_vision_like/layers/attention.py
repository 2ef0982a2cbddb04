"""Attention: the one function that picks a kernel, and the multi-head module around it."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

xavier = nn.initializers.xavier_uniform()


def attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  *,
  mask: jax.Array | None = None,
  causal: bool = False,
) -> jax.Array:
  """softmax(q k^T / sqrt(d)) v. q [B, N, H, d], k and v [B, M, H, d] -> [B, N, H, d].

  `mask` [B, 1 or H, N, M] is True where a query may look. On a GPU, bf16 heads whose size is a
  multiple of 8 go to cuDNN's flash attention; everything else to XLA, softmax in float32.
  """
  flash = (
    jax.default_backend() == "gpu"
    and q.dtype in (jnp.bfloat16, jnp.float16)
    and q.shape[-1] % 8 == 0
  )
  return jax.nn.dot_product_attention(
    q, k, v, mask=mask, is_causal=causal, implementation="cudnn" if flash else "xla"
  )


class MultiHeadAttention(nn.Module):
  """Vaswani et al. 2017, Sec. 3.2. Parameters query, key, value, out: kernel [D, D], bias [D].

  Kernels are flat so that tensor parallelism is one rule: the last axis of query, key and value,
  the first of out. `rope(q or k) -> q or k` rotates [B, N, H, d] before the product.
  """

  num_heads: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    context: jax.Array | None = None,
    *,
    mask: jax.Array | None = None,
    causal: bool = False,
    rope: Callable[[jax.Array], jax.Array] | None = None,
  ) -> jax.Array:
    """x [B, N, D]; keys and values come from context [B, M, D'], or from x. -> [B, N, D]."""
    width = x.shape[-1]
    context = x if context is None else context

    def heads(name: str, y: jax.Array) -> jax.Array:
      y = nn.Dense(width, kernel_init=xavier, dtype=self.dtype, name=name)(y)
      return rearrange(y, "B N (H d) -> B N H d", H=self.num_heads)

    q, k, v = heads("query", x), heads("key", context), heads("value", context)
    if rope is not None:
      q, k = rope(q), rope(k)
    y = attention(q, k, v, mask=mask, causal=causal)
    y = rearrange(y, "B N H d -> B N (H d)")
    return nn.Dense(width, kernel_init=xavier, dtype=self.dtype, name="out")(y)
