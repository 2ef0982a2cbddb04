"""The text tower: token and position embeddings, encoder, pooling, projection.

SigLIP (arXiv:2303.15343) reads the last token of a text padded to full length, both ways; CLIP
(arXiv:2103.00020) looks back only and reads the token with the highest id (end of text).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_vision_like import axes, models
from big_vision_like.config import UserError, call
from big_vision_like.layers import fused
from big_vision_like.layers.transformer import Encoder, MapPool, check
from big_vision_like.models.vit import SIZES

POOLS = ("last", "first", "gap", "map", "argmax", "eos", "none")


class TextTransformer(nn.Module):
  """Parameters: embed/embedding [V, D], pos_embed [L, D]; encoder, pool, head as in `vit.ViT`.

  Attributes:
    pool: which token is the text (`argmax`: the highest id; `eos`: the first `eos_id`, or the first
      token where there is none), mean, attention pooling, or none.
    causal: tokens look back only.
    eos_id: for that pooling.
    pad_id: tokens with this id are hidden from all others; None hides none, as in SigLIP and CLIP.
    num_classes: size of the output projection, or None; `head_bias`: whether it has a bias.
    eps: of every LayerNorm.
  """

  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  vocab_size: int = 32_000
  max_len: int = 64
  pool: str = "last"
  causal: bool = False
  eos_id: int | None = None
  pad_id: int | None = None
  num_classes: int | None = None
  head_bias: bool = True
  gelu: str = "tanh"
  eps: float = 1e-6
  dropout: float = 0.0
  scan: bool = True
  remat: str = "none"
  dtype: str = "float32"

  @nn.compact
  def __call__(
    self, tokens: jax.Array, *, train: bool = False
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """[B, L] int32 -> ([B, D], or [B, K] with a head, or [B, L, D] without pooling; intermediates).

    Raises:
      UserError: more tokens than `max_len`.
    """
    dtype = jnp.dtype(self.dtype)
    length = tokens.shape[1]
    if length > self.max_len:
      raise UserError(f"text of {length} tokens is longer than max_len = {self.max_len}")
    init = nn.initializers.normal(self.width**-0.5)
    embed = nn.Embed(self.vocab_size, self.width, embedding_init=init, dtype=dtype, name="embed")
    table = self.param("pos_embed", init, (self.max_len, self.width))
    x = embed(tokens) + table[:length].astype(dtype)[None]
    x = nn.Dropout(self.dropout, deterministic=not train)(axes.constrain_batch(x))
    mask = None
    if self.pad_id is not None:
      mask = jnp.broadcast_to(
        (tokens != self.pad_id)[:, None, None, :], (len(x), 1, length, length)
      )
    x = Encoder(
      self.depth,
      self.num_heads,
      self.mlp_dim,
      self.gelu,
      self.dropout,
      0.0,
      self.scan,
      self.remat,
      dtype,
      self.eps,
      name="encoder",
    )(x, mask=mask, causal=self.causal, train=train)
    out = {"tokens": x}

    if self.pool == "last":
      x = x[:, -1]
    elif self.pool == "first":
      x = x[:, 0]
    elif self.pool == "gap":
      x = jnp.mean(x, axis=1)
    elif self.pool == "argmax":
      x = x[jnp.arange(x.shape[0]), jnp.argmax(tokens, axis=1)]
    elif self.pool == "eos":
      x = x[jnp.arange(x.shape[0]), jnp.argmax(tokens == self.eos_id, axis=1)]
    elif self.pool == "map":
      pool = MapPool(self.num_heads, self.mlp_dim, self.gelu, dtype, self.eps, name="pool")
      x = pool(x, None if mask is None else mask[:, :, :1])
    if self.pool != "none":
      x = out["pooled"] = axes.constrain_batch(x)
    if self.num_classes is not None:
      x = fused.Dense(self.num_classes, self.head_bias, dtype=dtype, name="head")(x)
      x = out["logits"] = axes.constrain_batch(x)
    return x, out


def make(variant: str | None = None, **kwargs: Any) -> TextTransformer:
  """A text tower from a size name such as "B", other attributes by keyword.

  Raises:
    UserError: an unknown size, attribute, pooling, remat policy, gelu or dtype, or a width that
      the heads do not divide.
  """
  where = "config.model: text transformer"
  model = call(TextTransformer, models.of_size(variant, kwargs, SIZES, where), where)
  check(model, where, pool=POOLS)
  if (model.pool == "eos") != (model.eos_id is not None):
    raise UserError(
      f"{where} pool {model.pool!r} with eos_id = {model.eos_id}; one needs the other"
    )
  return model
