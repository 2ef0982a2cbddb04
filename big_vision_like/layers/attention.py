"""Attention: the one function that picks a kernel, and the multi-head module around it."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name

from big_vision_like import axes
from big_vision_like.config import unknown
from big_vision_like.layers import fused, sequence

xavier = nn.initializers.xavier_uniform()
IMPLS = ("xla", "cudnn", *sequence.IMPLS)
RING_FROM = 512  # keys


def pick(
  q: jax.Array, k: jax.Array, mask: jax.Array | None = None, backend: str | None = None
) -> str:
  """The kernel for these shapes on `backend` (None: the default one), one of `IMPLS`.

  cuDNN's flash attention takes half precision and heads of a multiple of 8 up to 128 (256 from
  Hopper on; 128 is what every card has), and a mask only over even lengths where a gradient may be
  taken. What it would refuse goes to XLA, so that a model never depends on the card.

  Where the mesh splits tokens over `sequence`:

      xla         too few queries to split, as a pooling probe: XLA splits the keys by itself
      all_gather  one collective, and cuDNN's kernel where that takes the shapes; keys that do not
                  divide; short sequences: below `RING_FROM` keys the float32 scores (D N / 16 bytes
                  a token with heads of 64) are less than twice the block's other products in half
                  precision (20 D), not worth the hops
      ring        the rest: as many bytes travel, but neither scores nor gathered keys are kept
  """
  shards, n, m = axes.sequence_shards(), q.shape[1], k.shape[1]
  if shards > 1 and n % shards:
    return "xla"
  n //= shards
  flash = (
    (backend or jax.default_backend()) == "gpu"
    and q.dtype in (jnp.bfloat16, jnp.float16)
    and q.shape[-1] % 8 == 0
    and q.shape[-1] <= 128
    and (mask is None or (n % 2 == 0 and m % 2 == 0))
  )
  if shards > 1:
    return "all_gather" if flash or m % shards or m < RING_FROM else "ring"
  return "cudnn" if flash else "xla"


def attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  *,
  mask: jax.Array | None = None,
  bias: jax.Array | None = None,
  scale: float | None = None,
  causal: bool = False,
  impl: str | None = None,
) -> jax.Array:
  """softmax(scale q k^T + bias) v. q [B, N, H, d], k and v [B, M, H, d] -> [B, N, H, d].

  `mask` [1 or B, 1 or H, 1 or N, M] is True where a query may look; `causal` lets query i see keys
  j <= i; `bias`, of the mask's shapes, is added to the scores, as relative positions are; `scale`
  is 1 / sqrt(d) by default. `impl` is one of `IMPLS`, or None: the one that `pick` finds, and XLA
  with a bias or another scale. "ring" and "all_gather" are for tokens that are split over the mesh
  axis `sequence`. Softmax in float32.

  Raises:
    UserError: an unknown `impl`; "ring" or "all_gather" with lengths that do not divide.
  """
  if bias is not None or scale is not None:
    return jax.nn.dot_product_attention(
      q, k, v, bias, mask, scale=scale, is_causal=causal, implementation="xla"
    )
  impl = pick(q, k, mask) if impl is None else impl
  if impl not in IMPLS:
    raise unknown("attention impl", impl, IMPLS)
  if impl in sequence.IMPLS:
    return sequence.attention(q, k, v, mask, causal, impl, local=attention)
  if impl == "cudnn" and mask is not None:
    mask = jnp.broadcast_to(mask, (*mask.shape[:2], q.shape[1], k.shape[1]))
  if impl == "xla" and mask is None and not causal and fused.usable(q, k, v):
    return fused.attention(q, k, v)
  return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal, implementation=impl)


class MultiHeadAttention(nn.Module):
  """Vaswani et al. 2017, Sec. 3.2. Parameters query, key, value, out: kernel [D, D], bias [D].

  Kernels are flat so that tensor parallelism is one rule: the last axis of query, key and value,
  the first of out. Without `qkv_bias` only out has a bias; without `key_bias` all but key (a key's
  bias adds the same to all scores of a query, which the softmax takes away). `rope(q or k) -> q or
  k` rotates [B, N, H, d] before the product. Remat policies know the intermediates query, key,
  value and attention, [B, N, D] each.

  With a `cache` of keys and values the result is (y, cache). Three uses, for decoding:

      cache = {}                 keys and values of `context` are projected once, into the cache
      cache = {key, value}       they are what there is to see; no context is projected
      cache and `position`       x [B, 1, D] is written at `position` and sees what is up to it
  """

  num_heads: int
  dtype: jnp.dtype = jnp.float32
  qkv_bias: bool = True
  key_bias: bool = True

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    context: jax.Array | None = None,
    *,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
    causal: bool = False,
    rope: Callable[[jax.Array], jax.Array] | None = None,
    cache: Mapping[str, jax.Array] | None = None,
    position: jax.Array | None = None,
  ) -> Any:
    """x [B, N, D]; keys and values come from context [B, M, D'], or from x. -> [B, N, D].

    `cache` holds `key` and `value`, [B, M, H, d]; `position` is the int32 row to write.
    """
    width = x.shape[-1]
    context = x if context is None else context

    def heads(name: str, y: jax.Array) -> jax.Array:
      bias = self.qkv_bias and (self.key_bias or name != "key")
      y = fused.Dense(width, bias, kernel_init=xavier, dtype=self.dtype, name=name)(y)
      y = checkpoint_name(y, name)
      return rearrange(y, "B N (H d) -> B N H d", H=self.num_heads)

    q = heads("query", x)
    if cache and position is None:
      k, v = cache["key"], cache["value"]
    else:
      k, v = heads("key", context), heads("value", context)
      if rope is not None:
        q, k = rope(q), rope(k)
      if position is not None:
        write = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, position, axis=1)
        k, v = write(cache["key"], k), write(cache["value"], v)
        mask = jnp.arange(k.shape[1])[None, None, None, :] <= position
    self.sow("intermediates", "queries", q)  # does nothing unless somebody asks for them
    self.sow("intermediates", "keys", k)
    y = attention(q, k, v, mask=mask, bias=bias, causal=causal)
    y = checkpoint_name(rearrange(y, "B N H d -> B N (H d)"), "attention")
    y = fused.Dense(width, kernel_init=xavier, dtype=self.dtype, name="out")(y)
    return y if cache is None else (y, {"key": k, "value": v})
