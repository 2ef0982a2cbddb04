"""The encoder of T5 (Raffel et al. 2019, arXiv:1910.10683), also of T5 1.1 and Flan-T5."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name

from big_vision_like import axes, models
from big_vision_like.config import call, unknown
from big_vision_like.layers import fused
from big_vision_like.layers.attention import attention, xavier
from big_vision_like.layers.mlp import GELU
from big_vision_like.layers.rel_pos_bias import buckets
from big_vision_like.layers.sequence import cut_tokens, pad_tokens
from big_vision_like.layers.stack import REMAT, Stack
from big_vision_like.layers.transformer import DTYPES
from big_vision_like.models.bert import masked_mean

SIZES = {  # width, depth, mlp_dim, num_heads, head_dim of the first release
  "small": (512, 6, 2048, 8, 64),
  "base": (768, 12, 3072, 12, 64),
  "large": (1024, 24, 4096, 16, 64),
  "3b": (1024, 24, 16_384, 32, 128),
  "11b": (1024, 24, 65_536, 128, 128),
}
POOLS = ("first", "gap", "none")
ACTIVATIONS = {**GELU, "relu": nn.relu, "silu": nn.silu}


class Block(nn.Module):
  """x + MHA(RMS(x)), then x + MLP(RMS(x)), no biases, scores not divided by sqrt(d).

  Parameters ln1, attn/{query, key, value [D, H*d], out [H*d, D]}, ln2, mlp/{up, down}, and
  mlp/gate where the MLP is down(activation(gate(x)) * up(x)).
  """

  num_heads: int
  head_dim: int
  mlp_dim: int
  activation: str
  gated: bool
  dropout: float
  dtype: jnp.dtype
  eps: float

  @nn.compact
  def __call__(self, x, drop_path, mask, bias, train: bool):
    norm = lambda name: nn.RMSNorm(epsilon=self.eps, dtype=self.dtype, name=name)
    drop = nn.Dropout(self.dropout, deterministic=not train)
    x = axes.constrain_batch(x)
    attn = _Attention(self.num_heads, self.head_dim, self.dtype, name="attn")
    x = axes.constrain_batch(x + drop(attn(norm("ln1")(x), mask, bias)))
    mlp = _Mlp(self.mlp_dim, self.activation, self.gated, self.dropout, self.dtype, name="mlp")
    return axes.constrain_batch(x + drop(mlp(norm("ln2")(x), train))), None


def _dense(size: int, dtype: jnp.dtype, name: str) -> fused.Dense:
  return fused.Dense(size, use_bias=False, kernel_init=xavier, dtype=dtype, name=name)


class _Attention(nn.Module):
  num_heads: int
  head_dim: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, mask, bias):
    size = self.num_heads * self.head_dim
    project = lambda name: checkpoint_name(_dense(size, self.dtype, name)(x), name)
    q, k, v = (
      rearrange(project(name), "B N (H d) -> B N H d", H=self.num_heads)
      for name in ("query", "key", "value")
    )
    y = attention(q, k, v, mask=mask, bias=bias, scale=1.0)
    y = checkpoint_name(rearrange(y, "B N H d -> B N (H d)"), "attention")
    return _dense(x.shape[-1], self.dtype, "out")(y)


class _Mlp(nn.Module):
  mlp_dim: int
  activation: str
  gated: bool
  dropout: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, train: bool):
    def hidden(name: str) -> jax.Array:
      y = checkpoint_name(_dense(self.mlp_dim, self.dtype, name)(x), "up")
      return axes.constrain(y, axes.BATCH, axes.SEQUENCE, axes.TENSOR)

    act, up = ACTIVATIONS[self.activation], hidden("up")
    y = act(hidden("gate")) * up if self.gated else act(up)
    y = nn.Dropout(self.dropout, deterministic=not train)(y)
    return _dense(x.shape[-1], self.dtype, "down")(y)


class T5Encoder(nn.Module):
  """Parameters: embed/embedding [V, D], rel_pos_bias [buckets, heads], encoder/blocks, norm/scale.

  Attributes:
    head_dim: of queries and keys; heads times it need not be the width.
    activation, gated: "relu" and False in T5, "tanh" (gelu) and True in T5 1.1 and Flan-T5.
    num_buckets, max_distance: see `layers.rel_pos_bias.buckets`; all layers share their table.
    pool: the first token, the mean of the tokens that count, or none.
    pad_id: the token that is padding where no mask is given, or None: every token counts.
    num_classes: size of the output projection, or None; `head_bias`: whether it has a bias.
    eps: of every RMSNorm.
    scan, remat, dtype: see `layers.transformer.Encoder`; parameters are always float32.
  """

  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  head_dim: int = 64
  vocab_size: int = 32_128
  activation: str = "relu"
  gated: bool = False
  num_buckets: int = 32
  max_distance: int = 128
  pool: str = "gap"
  pad_id: int | None = None
  num_classes: int | None = None
  head_bias: bool = True
  eps: float = 1e-6
  dropout: float = 0.0
  scan: bool = True
  remat: str = "none"
  dtype: str = "float32"

  @nn.compact
  def __call__(
    self, tokens: jax.Array, mask: jax.Array | None = None, *, train: bool = False
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """[B, L] int32 -> ([B, D], or [B, K] with a head, or [B, L, D] without pooling; intermediates).

    `mask` [B, L] is 1, or True, where a token counts.
    """
    dtype, length = jnp.dtype(self.dtype), tokens.shape[1]
    if mask is None and self.pad_id is not None:
      mask = tokens != self.pad_id
    drop = nn.Dropout(self.dropout, deterministic=not train)
    init = nn.initializers.normal(1.0)
    embed = nn.Embed(self.vocab_size, self.width, embedding_init=init, dtype=dtype, name="embed")
    x = drop(axes.constrain_batch(embed(tokens)))
    x, see = pad_tokens(x, None if mask is None else mask[:, None, None, :] > 0)
    init = nn.initializers.normal(self.width**-0.5)
    table = self.param("rel_pos_bias", init, (self.num_buckets, self.num_heads))
    index = buckets(x.shape[1], self.num_buckets, self.max_distance)
    bias = jnp.moveaxis(table[index], -1, 0)[None]

    block = (self.num_heads, self.head_dim, self.mlp_dim, self.activation, self.gated)
    block += (self.dropout, dtype, self.eps)
    stack = Stack(Block, block, self.depth, self.scan, self.remat, name="encoder")
    x = cut_tokens(stack(x, see, bias, train=train), length)
    x = drop(nn.RMSNorm(epsilon=self.eps, dtype=dtype, name="norm")(x))
    out = {"tokens": x}

    if self.pool == "first":
      x = x[:, 0]
    elif self.pool == "gap":
      x = masked_mean(x, mask)
    if self.pool != "none":
      x = out["pooled"] = axes.constrain_batch(x)
    if self.num_classes is not None:
      x = fused.Dense(self.num_classes, self.head_bias, dtype=dtype, name="head")(x)
      x = out["logits"] = axes.constrain_batch(x)
    return x, out


def make(variant: str | None = None, **kwargs: Any) -> T5Encoder:
  """An encoder from a size name such as "small" or "base", other attributes by keyword.

  Raises:
    UserError: an unknown size, attribute, pooling, activation, remat policy or dtype.
  """
  where = "config.model: T5"
  names = ("width", "depth", "mlp_dim", "num_heads", "head_dim")
  model = call(T5Encoder, models.of_size(variant, kwargs, SIZES, where, names), where)
  choices = dict(pool=POOLS, activation=tuple(ACTIVATIONS), remat=tuple(REMAT), dtype=DTYPES)
  for key, known in choices.items():
    if getattr(model, key) not in known:
      raise unknown(f"{where} {key}", getattr(model, key), known)
  return model
