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
  "silu": nn.silu,
}


class Mlp(nn.Module):
  """down(gelu(up(x))), or down(gelu(gate(x)) * up(x)). Parameters up, gate: [D, F], down: [F, D].

  `gelu` is "tanh" (big_vision, SigLIP, GPT-2), "exact" (timm, DINO, MAE, DeiT), "quick" (OpenAI's
  CLIP: x sigmoid(1.702 x)) or "silu" (x sigmoid(x); with `gated` this is SwiGLU, arXiv:2002.05202,
  of DINOv2's and DINOv3's largest models). Remat policies know the intermediates up [B, N, F]:
  up and gate before the gelu.
  """

  mlp_dim: int
  gelu: str = "tanh"
  dropout: float = 0.0
  dtype: jnp.dtype = jnp.float32
  gated: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """[B, N, D] -> [B, N, D]."""
    init = dict(kernel_init=xavier, bias_init=nn.initializers.normal(1e-6), dtype=self.dtype)
    width = x.shape[-1]

    def hidden(name: str) -> jax.Array:
      y = checkpoint_name(fused.Dense(self.mlp_dim, name=name, **init)(x), "up")
      return axes.constrain(y, axes.BATCH, axes.SEQUENCE, axes.TENSOR)

    up = hidden("up")
    x = GELU[self.gelu](hidden("gate")) * up if self.gated else GELU[self.gelu](up)
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    return fused.Dense(width, name="down", **init)(x)
