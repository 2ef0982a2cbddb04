"""The transformer's feed-forward block."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from big_vision_like import axes
from big_vision_like.layers import fused
from big_vision_like.layers.attention import xavier

GELU = {
  "tanh": lambda x: (fused.gelu_tanh if fused.usable(x) else nn.gelu)(x),
  "exact": lambda x: nn.gelu(x, approximate=False),
  "quick": lambda x: x * nn.sigmoid(1.702 * x),
}


class Mlp(nn.Module):
  """down(gelu(up(x))). Parameters up: [D, F], down: [F, D].

  `gelu` is "tanh" (big_vision, SigLIP, GPT-2), "exact" (timm, DINO, MAE, DeiT) or "quick" (OpenAI's
  CLIP: x sigmoid(1.702 x)). Remat policies know the intermediate up [B, N, F], before the gelu.
  """

  mlp_dim: int
  gelu: str = "tanh"
  dropout: float = 0.0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """[B, N, D] -> [B, N, D]."""
    init = dict(kernel_init=xavier, bias_init=nn.initializers.normal(1e-6), dtype=self.dtype)
    width = x.shape[-1]
    x = checkpoint_name(fused.Dense(self.mlp_dim, name="up", **init)(x), "up")
    x = axes.constrain(x, axes.BATCH, axes.SEQUENCE, axes.TENSOR)
    x = GELU[self.gelu](x)
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    return fused.Dense(width, name="down", **init)(x)
