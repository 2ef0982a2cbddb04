"""BERT (Devlin et al. 2018, arXiv:1810.04805): the encoder, for texts or with its MLM head."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_vision_like import axes, models
from big_vision_like.config import UserError, call
from big_vision_like.layers import fused
from big_vision_like.layers.attention import MultiHeadAttention, xavier
from big_vision_like.layers.mlp import GELU, Mlp
from big_vision_like.layers.sequence import cut_tokens, pad_tokens
from big_vision_like.layers.stack import Stack
from big_vision_like.layers.transformer import check
from big_vision_like.models.vit import SIZES

POOLS = ("pooler", "first", "gap", "none")


class Block(nn.Module):
  """LN(x + MHA(x)), then LN(x + MLP(x)). Parameters attn, ln1, mlp, ln2."""

  num_heads: int
  mlp_dim: int
  gelu: str
  dropout: float
  dtype: jnp.dtype
  eps: float

  @nn.compact
  def __call__(self, x, drop_path, mask, train: bool):
    norm = lambda name: fused.LayerNorm(epsilon=self.eps, dtype=self.dtype, name=name)
    drop = nn.Dropout(self.dropout, deterministic=not train)
    x = axes.constrain_batch(x)
    y = MultiHeadAttention(self.num_heads, self.dtype, name="attn")(x, mask=mask)
    x = axes.constrain_batch(norm("ln1")(x + drop(y)))
    y = Mlp(self.mlp_dim, self.gelu, self.dropout, self.dtype, name="mlp")(x, train=train)
    return axes.constrain_batch(norm("ln2")(x + drop(y))), None


class Bert(nn.Module):
  """Parameters: embeddings, blocks, and what pooling and heads need.

      embed/embedding [V, D], pos_embed [L, D], type_embed [T, D], embed_norm/{scale, bias}
      encoder/blocks/{attn, ln1, mlp, ln2}
      pooler/{kernel [D, D], bias}        pool "pooler"
      head/{kernel [D, K], bias}          num_classes
      mlm_dense, mlm_norm, mlm_bias [V]   mlm; the last layer is the word embedding

  Attributes:
    type_vocab_size: T, kinds of tokens, such as first and second sentence.
    pool: tanh of a dense layer of the first token, the first token, the mean of the tokens that
      count, or none.
    pad_id: the token that is padding where no mask is given, or None: every token counts.
    num_classes: size of the output projection, or None; `head_bias`: whether it has a bias.
    mlm: the head of masked language modelling; the output is then [B, L, V].
    eps: of every LayerNorm.
    scan, remat, dtype: see `layers.transformer.Encoder`; parameters are always float32.
  """

  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  vocab_size: int = 30_522
  max_len: int = 512
  type_vocab_size: int = 2
  pool: str = "pooler"
  pad_id: int | None = None
  num_classes: int | None = None
  head_bias: bool = True
  mlm: bool = False
  gelu: str = "exact"
  eps: float = 1e-12
  dropout: float = 0.0
  scan: bool = True
  remat: str = "none"
  dtype: str = "float32"

  @nn.compact
  def __call__(
    self,
    tokens: jax.Array,
    mask: jax.Array | None = None,
    types: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """[B, L] int32 -> ([B, D], or [B, K] with a head, or [B, L, D] without pooling; intermediates).

    `mask` [B, L] is 1, or True, where a token counts; `types` [B, L] int32, 0 by default.

    Raises:
      UserError: more tokens than `max_len`.
    """
    dtype, length = jnp.dtype(self.dtype), tokens.shape[1]
    if length > self.max_len:
      raise UserError(f"text of {length} tokens is longer than max_len = {self.max_len}")
    if mask is None and self.pad_id is not None:
      mask = tokens != self.pad_id
    init = nn.initializers.normal(0.02)
    norm = lambda name: fused.LayerNorm(epsilon=self.eps, dtype=dtype, name=name)
    dense = lambda size, name: fused.Dense(size, kernel_init=xavier, dtype=dtype, name=name)
    embed = nn.Embed(self.vocab_size, self.width, embedding_init=init, dtype=dtype, name="embed")
    places = self.param("pos_embed", init, (self.max_len, self.width))[:length].astype(dtype)
    kinds = self.param("type_embed", init, (self.type_vocab_size, self.width)).astype(dtype)
    x = embed(tokens) + places[None] + (kinds[:1][None] if types is None else kinds[types])
    x = nn.Dropout(self.dropout, deterministic=not train)(norm("embed_norm")(x))

    x, see = pad_tokens(x, None if mask is None else mask[:, None, None, :] > 0)
    block = (self.num_heads, self.mlp_dim, self.gelu, self.dropout, dtype, self.eps)
    stack = Stack(Block, block, self.depth, self.scan, self.remat, name="encoder")
    x = cut_tokens(stack(x, see, train=train), length)
    out = {"tokens": x}

    if self.mlm:
      x = norm("mlm_norm")(GELU[self.gelu](dense(self.width, "mlm_dense")(x)))
      bias = self.param("mlm_bias", nn.initializers.zeros, (self.vocab_size,)).astype(dtype)
      x = out["logits"] = embed.attend(x) + bias[None, None]
      return x, out
    if self.pool == "pooler":
      x = jnp.tanh(dense(self.width, "pooler")(x[:, 0]))
    elif self.pool == "first":
      x = x[:, 0]
    elif self.pool == "gap":
      x = masked_mean(x, mask)
    if self.pool != "none":
      x = out["pooled"] = axes.constrain_batch(x)
    if self.num_classes is not None:
      x = fused.Dense(self.num_classes, self.head_bias, dtype=dtype, name="head")(x)
      x = out["logits"] = axes.constrain_batch(x)
    return x, out


def masked_mean(x: jax.Array, mask: jax.Array | None) -> jax.Array:
  """[B, L, D] -> [B, D], over the tokens where mask [B, L] is 1, over all without a mask."""
  if mask is None:
    return jnp.mean(x, axis=1)
  weight = (mask > 0).astype(x.dtype)[:, :, None]
  return jnp.sum(x * weight, axis=1) / jnp.maximum(jnp.sum(weight, axis=1), 1)


def make(variant: str | None = None, **kwargs: Any) -> Bert:
  """A BERT from a size name such as "B" or "L", other attributes by keyword.

  Raises:
    UserError: an unknown size, attribute, pooling, remat policy, gelu or dtype; a width that the
      heads do not divide; an MLM head and classes at once.
  """
  where = "config.model: BERT"
  model = call(Bert, models.of_size(variant, kwargs, SIZES, where), where)
  check(model, where, pool=POOLS)
  if model.mlm and model.num_classes is not None:
    raise UserError(f"{where} mlm = true and num_classes = {model.num_classes}; choose one head")
  return model
