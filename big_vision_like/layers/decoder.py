"""The pre-norm transformer decoder: causal self-attention, cross-attention, MLP; and its cache.

Teacher forcing sees all tokens at once; decoding sees one token at a time and keeps keys and values
of the tokens before it, and of the context, in a cache. Both are the same parameters and numbers.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_vision_like import axes
from big_vision_like.layers import fused
from big_vision_like.layers.attention import MultiHeadAttention
from big_vision_like.layers.mlp import Mlp
from big_vision_like.layers.sequence import cut_tokens, pad_tokens
from big_vision_like.layers.stack import rematted

Cache = Mapping[str, Any]


class DecoderBlock(nn.Module):
  """x + SelfMHA(LN(x)), x + CrossMHA(LN(x), context) where `cross`, x + MLP(LN(x)).

  Parameters ln1, attn, [ln_cross, cross_attn], ln2, mlp. Returns (x, cache), as `nn.scan` wants.
  """

  num_heads: int
  mlp_dim: int
  cross: bool = True
  gelu: str = "tanh"
  dropout: float = 0.0
  dtype: jnp.dtype = jnp.float32
  eps: float = 1e-6

  @nn.compact
  def __call__(self, x, cache: Cache | None, context, masks, position, train: bool):
    norm = lambda name: fused.LayerNorm(epsilon=self.eps, dtype=self.dtype, name=name)
    drop = nn.Dropout(self.dropout, deterministic=not train)
    new = None if cache is None else dict(cache)

    def attend(name: str, x: jax.Array, context: jax.Array | None = None, **kwargs: Any):
      attn = MultiHeadAttention(self.num_heads, self.dtype, name=name)
      if cache is None:
        return drop(attn(x, context, **kwargs))
      y, new[name] = attn(x, context, cache=cache[name], **kwargs)
      return y

    x = axes.constrain_batch(x)
    mask, context_mask = masks
    here = dict(mask=mask, causal=True) if cache is None else dict(position=position)
    x = axes.constrain_batch(x + attend("attn", norm("ln1")(x), **here))
    if self.cross:
      y = attend("cross_attn", norm("ln_cross")(x), context, mask=context_mask)
      x = axes.constrain_batch(x + y)
    y = Mlp(self.mlp_dim, self.gelu, self.dropout, self.dtype, name="mlp")(
      norm("ln2")(x), train=train
    )
    return axes.constrain_batch(x + drop(y)), new


class Decoder(nn.Module):
  """`depth` blocks and a final LayerNorm; parameters `blocks/...` or `block_0/...`, and norm.

  `scan` and `remat` as in `layers.transformer.Encoder`.
  """

  depth: int
  num_heads: int
  mlp_dim: int
  cross: bool = True
  gelu: str = "tanh"
  dropout: float = 0.0
  scan: bool = True
  remat: str = "none"
  dtype: jnp.dtype = jnp.float32
  eps: float = 1e-6

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    context: jax.Array | None = None,
    *,
    mask: jax.Array | None = None,
    train: bool = False,
    cache: Cache | None = None,
    position: jax.Array | None = None,
  ) -> Any:
    """[B, N, D] -> [B, N, D]; every token sees itself and those before it, where mask is True.

    Args:
      x: all tokens, or with a cache the one at `position`: [B, 1, D].
      context: [B, M, D'] for the cross-attention; not needed once the cache holds it.
      mask: [B, 1, N, N].
      cache: from `new_cache`, or what the call before returned; then the result is (x, cache).
      position: int32 [] of x.
    """
    length, masks = x.shape[1], (mask, None)
    if cache is None:  # one token of a cache has nothing to split
      x, mask = pad_tokens(x, mask)
      context, context_mask = (None, None) if context is None else pad_tokens(context)
      masks = (mask, context_mask)
    block = rematted(DecoderBlock, self.remat, scan=self.scan, static=(5,))  # train
    args = (
      self.num_heads,
      self.mlp_dim,
      self.cross,
      self.gelu,
      self.dropout,
      self.dtype,
      self.eps,
    )
    if self.scan:
      stack = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, *[nn.broadcast] * 4),
        length=self.depth,
      )
      x, cache = stack(*args, name="blocks")(x, cache, context, masks, position, train)
    else:
      caches = []
      for i in range(self.depth):
        layer = jax.tree.map(lambda leaf: leaf[i], cache)  # noqa: B023
        x, layer = block(*args, name=f"block_{i}")(x, layer, context, masks, position, train)
        caches.append(layer)
      cache = jax.tree.map(lambda *leaves: jnp.stack(leaves), *caches)
    x = fused.LayerNorm(epsilon=self.eps, dtype=self.dtype, name="norm")(x)
    return cut_tokens(x, length) if cache is None else (x, cache)

  @nn.nowrap
  def new_cache(self, batch: int, length: int, width: int) -> Cache:
    """An empty cache for `length` tokens; leaves [depth, B, length, H, d], the batch on axis 1."""
    shape = (self.depth, batch, length, self.num_heads, width // self.num_heads)
    zeros = lambda: axes.constrain(jnp.zeros(shape, self.dtype), None, axes.BATCH)
    own = {"attn": {"key": zeros(), "value": zeros()}}
    return own | ({"cross_attn": {}} if self.cross else {})


class AttentionalPool(nn.Module):
  """Learned queries [n, D] attend once over all tokens, then a LayerNorm (CoCa, Sec. 3.2).

  Parameters queries [1, n, D], attn, norm.
  """

  width: int
  num_heads: int
  num_queries: int
  dtype: jnp.dtype = jnp.float32
  eps: float = 1e-6

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, N, D'] -> [B, n, D]."""
    init = nn.initializers.normal(self.width**-0.5)
    queries = self.param("queries", init, (1, self.num_queries, self.width)).astype(self.dtype)
    queries = jnp.broadcast_to(queries, (x.shape[0], *queries.shape[1:]))
    queries = axes.constrain_batch(queries)
    x, mask = pad_tokens(x)
    y = MultiHeadAttention(self.num_heads, self.dtype, name="attn")(queries, x, mask=mask)
    y = fused.LayerNorm(epsilon=self.eps, dtype=self.dtype, name="norm")(y)
    return axes.constrain_batch(y)
