"""The decoder of masked autoencoders (He et al., arXiv:2111.06377, Sec. 3).

visible tokens -> narrow width -> mask tokens where patches are missing -> + positions -> blocks ->
pixels of every patch
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_vision_like import axes
from big_vision_like.config import call
from big_vision_like.layers import fused
from big_vision_like.layers.attention import xavier
from big_vision_like.layers.pos_embed import Grid, sincos_2d
from big_vision_like.layers.transformer import Encoder, check


class MaeDecoder(nn.Module):
  """Parameters: embed [D, d], mask_token [1, d], blocks (named as in ViT), pred [d, P].

  embed/{kernel, bias}
  decoder/blocks/...    as `encoder/blocks/...` of a ViT
  decoder/norm/{scale, bias}
  pred/{kernel, bias}
  """

  width: int = 512
  depth: int = 8
  num_heads: int = 16
  mlp_dim: int = 2048
  gelu: str = "exact"
  eps: float = 1e-6
  scan: bool = True
  remat: str = "none"
  dtype: str = "float32"

  @nn.compact
  def __call__(
    self,
    tokens: jax.Array,
    prefix: jax.Array,
    restore: jax.Array,
    *,
    grid: Grid,
    out_dim: int,
    train: bool = False,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Encoded visible patches -> (float32 [B, N, P] for all N patches, intermediates).

    Args:
      tokens: [B, n, D], the visible patches in their shuffled order.
      prefix: [B, R, D], class token and registers, which get no position.
      restore: int32 [B, N], the place of each patch among visible ones, then mask tokens.
      grid: patches down and across, N in all.
      out_dim: P, pixels times channels of a patch.
    """
    dtype, count = jnp.dtype(self.dtype), prefix.shape[1]
    dense = lambda size, name: fused.Dense(size, dtype=dtype, kernel_init=xavier, name=name)
    x = dense(self.width, "embed")(jnp.concatenate([prefix, tokens], axis=1))
    first, x = x[:, :count], x[:, count:]
    token = self.param("mask_token", nn.initializers.normal(0.02), (1, self.width))
    hidden = (x.shape[0], restore.shape[1] - x.shape[1], self.width)
    x = jnp.concatenate([x, jnp.broadcast_to(token.astype(dtype)[None], hidden)], axis=1)
    x = axes.constrain_batch(jnp.take_along_axis(x, restore[:, :, None], axis=1))
    x = x + jnp.asarray(sincos_2d(grid, self.width, endpoint=False), dtype)[None]
    x = Encoder(
      self.depth,
      self.num_heads,
      self.mlp_dim,
      self.gelu,
      scan=self.scan,
      remat=self.remat,
      dtype=dtype,
      eps=self.eps,
      name="decoder",
    )(jnp.concatenate([first, x], axis=1), train=train)[:, count:]
    return axes.constrain_batch(dense(out_dim, "pred")(x)).astype(jnp.float32), {"tokens": x}


def make(**kwargs: Any) -> MaeDecoder:
  """A decoder from its attributes; the defaults are the paper's.

  Raises:
    UserError: an unknown key or choice, a width that the heads do not divide.
  """
  model = call(MaeDecoder, kwargs, "config.decoder")
  check(model, "config.decoder:")
  return model
