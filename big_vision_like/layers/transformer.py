"""The pre-norm transformer encoder that image and text towers share, and attention pooling."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_vision_like import axes
from big_vision_like.config import UserError, unknown
from big_vision_like.layers import fused
from big_vision_like.layers.attention import MultiHeadAttention, xavier
from big_vision_like.layers.drop_path import DropPath
from big_vision_like.layers.mlp import GELU, Mlp
from big_vision_like.layers.probe_attention import ProbeAttention
from big_vision_like.layers.sequence import cut_tokens, pad_tokens
from big_vision_like.layers.stack import REMAT, stacked

DTYPES = ("float32", "bfloat16", "float16")


def check(model: nn.Module, where: str, **choices: tuple[str, ...]) -> None:
  """What every transformer of `models/` can get wrong, before anything is traced.

  Args:
    model: has width, num_heads, remat, gelu and dtype.
    where: begins the message, e.g. "config.model: ViT".
    **choices: further attributes and the names they may have.

  Raises:
    UserError: the attribute, the value found, and the known or nearest ones.
  """
  choices |= dict(remat=tuple(REMAT), gelu=tuple(GELU), dtype=DTYPES)
  for key, known in choices.items():
    if getattr(model, key) not in known:
      raise unknown(f"{where} {key}", getattr(model, key), known)
  if model.width % model.num_heads:
    raise UserError(f"{where} width {model.width} is not a multiple of {model.num_heads} heads")


class Block(nn.Module):
  """x + ls1 MHA(LN(x)), then x + ls2 MLP(LN(x)), statistics in float32.

  Parameters ln1, attn, ln2, mlp, and with `layer_scale`, their initial value, the vectors ls1 and
  ls2 [D] (Touvron et al. 2021, arXiv:2103.17239); without, they are 1. Returns (x, None): the form
  `nn.scan` wants.
  """

  num_heads: int
  mlp_dim: int
  gelu: str = "tanh"
  dropout: float = 0.0
  dtype: jnp.dtype = jnp.float32
  eps: float = 1e-6
  layer_scale: float | None = None
  gated: bool = False
  qkv_bias: bool = True
  key_bias: bool = True

  @nn.compact
  def __call__(self, x, drop_path, mask, rope, causal: bool, train: bool):
    norm = lambda name: fused.LayerNorm(epsilon=self.eps, dtype=self.dtype, name=name)
    drop = nn.Dropout(self.dropout, deterministic=not train)
    path = (lambda y: y) if drop_path is None else lambda y: DropPath()(y, drop_path, train=train)

    def branch(y, name):
      y = drop(y)
      if self.layer_scale is not None:
        init = nn.initializers.constant(self.layer_scale)
        y *= self.param(name, init, (y.shape[-1],)).astype(y.dtype)[None, None]
      return path(y)

    x = axes.constrain_batch(x)
    y = MultiHeadAttention(self.num_heads, self.dtype, self.qkv_bias, self.key_bias, name="attn")(
      norm("ln1")(x), mask=mask, rope=rope, causal=causal
    )
    x = axes.constrain_batch(x + branch(y, "ls1"))
    y = Mlp(self.mlp_dim, self.gelu, self.dropout, self.dtype, self.gated, name="mlp")(
      norm("ln2")(x), train=train
    )
    return axes.constrain_batch(x + branch(y, "ls2")), None


class Encoder(nn.Module):
  """`depth` blocks and a final LayerNorm.

  `scan` compiles one block and stacks its parameters on a leading axis (`blocks/...`); otherwise
  they are `block_0`, `block_1`, ... Stochastic depth grows linearly to `drop_path`. Without
  `final_norm` the last LayerNorm is the caller's.

  Where the mesh splits tokens over `sequence` and they do not divide, they are padded once around
  all blocks and the padding is hidden from attention. Dropout then draws other numbers than on one
  device.
  """

  depth: int
  num_heads: int
  mlp_dim: int
  gelu: str = "tanh"
  dropout: float = 0.0
  drop_path: float = 0.0
  scan: bool = True
  remat: str = "none"
  dtype: jnp.dtype = jnp.float32
  eps: float = 1e-6
  layer_scale: float | None = None
  gated: bool = False
  qkv_bias: bool = True
  key_bias: bool = True
  final_norm: bool = True

  @nn.compact
  def __call__(self, x, *, mask=None, rope=None, causal: bool = False, train: bool = False):
    """[B, N, D] -> [B, N, D]; mask [B, 1, N, N] is True where a token may look."""
    length = x.shape[1]
    x, mask = pad_tokens(x, mask)
    if self.gelu not in GELU:
      raise unknown("gelu", self.gelu, list(GELU))
    args = (self.num_heads, self.mlp_dim, self.gelu, self.dropout, self.dtype, self.eps)
    args += (self.layer_scale, self.gated, self.qkv_bias, self.key_bias)
    how = dict(depth=self.depth, scan=self.scan, remat=self.remat, drop_path=self.drop_path)
    rest = (mask, rope, causal)
    x = stacked(Block, args, x, *rest, static=(1, 2), train=train, **how)
    if self.final_norm:
      x = fused.LayerNorm(epsilon=self.eps, dtype=self.dtype, name="norm")(x)
    return cut_tokens(x, length)


class MapPool(nn.Module):
  """Multi-head attention pooling (Set Transformer's PMA; the MAP head of Zhai et al. 2022).

  A learned probe [1, 1, D] looks at all tokens; then a residual MLP.
  """

  num_heads: int
  mlp_dim: int
  gelu: str = "tanh"
  dtype: jnp.dtype = jnp.float32
  eps: float = 1e-6

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """[B, N, D] -> [B, D]; mask [B, 1, 1, N] is True where a token counts."""
    x, mask = pad_tokens(x, mask)
    probe = self.param("probe", xavier, (1, 1, x.shape[-1]))[0].astype(self.dtype)
    y = ProbeAttention(self.num_heads, self.dtype, name="attn")(probe, x, mask)
    y = axes.constrain(y, axes.BATCH)
    z = fused.LayerNorm(epsilon=self.eps, dtype=self.dtype, name="norm")(y)
    mlp = Mlp(self.mlp_dim, self.gelu, 0.0, self.dtype, name="mlp")
    return y + mlp(z[:, None])[:, 0]
