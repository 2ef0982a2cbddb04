"""CoCa (Yu et al., arXiv:2205.01917): image encoder, attentional poolers, decoder in two halves.

    image -> ViT -> generative pooler (256 queries) -> contrastive pooler (1 query) -> embedding
    start, y_1 .. y_L, CLS -> unimodal decoder -> CLS -> embedding
                              unimodal decoder -> start, y_1 .. -> multimodal decoder -> y_1, y_2 ..

The multimodal decoder looks at the generative pooler's output. One pass over the text serves both
losses (Sec. 3.2, Figure 2).
"""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_vision_like import axes
from big_vision_like.config import UserError, call, unknown
from big_vision_like.layers.decoder import AttentionalPool, Cache, Decoder
from big_vision_like.layers.transformer import check
from big_vision_like.models import vit
from big_vision_like.models.two_towers import unit

SIZES = {  # Table 1: the image encoder; width, layers of each half, mlp_dim, num_heads of the text
  "B/18": ("B/18", 768, 12, 3072, 12),
  "L/18": ("L/18", 1024, 12, 4096, 16),
  "g/18": ("g/18", 1408, 18, 6144, 16),
}


class CoCa(nn.Module):
  """Parameters: image, generative_pool, contrastive_pool, embed/embedding [V, D], pos_embed
  [max_len + 1, D], cls [1, D], unimodal, multimodal, head (logits, not tied to embed), logit_scale.

  Attributes:
    image: the ViT, without pooling.
    width, mlp_dim, num_heads: of the text side; the poolers end in `width` too.
    unimodal_depth, multimodal_depth: blocks of both halves of the decoder.
    max_len: tokens of a text; the start token and CLS are not counted.
    num_queries: what the generative pooler leaves of the image.
    pad_id: padding; it is also the start token.
    eos_id: end of text, where a generated one stops.
    temperature_init: 1 / sigma at the start.
    dropout, scan, remat, gelu, dtype: as in `layers.transformer.Encoder`.
  """

  image: nn.Module
  width: int
  unimodal_depth: int
  multimodal_depth: int
  mlp_dim: int
  num_heads: int
  vocab_size: int
  max_len: int = 64
  num_queries: int = 256
  pad_id: int = 0
  eos_id: int = 1
  temperature_init: float = 1 / 0.07
  gelu: str = "tanh"
  dropout: float = 0.0
  scan: bool = True
  remat: str = "none"
  dtype: str = "float32"

  def setup(self):
    dtype = jnp.dtype(self.dtype)
    pool = lambda n: AttentionalPool(self.width, self.num_heads, n, dtype)
    self.generative_pool, self.contrastive_pool = pool(self.num_queries), pool(1)
    init = nn.initializers.normal(self.width**-0.5)
    self.embed = nn.Embed(self.vocab_size, self.width, embedding_init=init, dtype=dtype)
    self.pos_embed = self.param("pos_embed", init, (self.max_len + 1, self.width))
    self.cls = self.param("cls", init, (1, self.width))
    decoder = lambda depth, cross: Decoder(
      depth,
      self.num_heads,
      self.mlp_dim,
      cross,
      self.gelu,
      self.dropout,
      self.scan,
      self.remat,
      dtype,
    )
    self.unimodal = decoder(self.unimodal_depth, False)
    self.multimodal = decoder(self.multimodal_depth, True)
    self.head = nn.Dense(self.vocab_size, use_bias=False, dtype=dtype)
    log = math.log(self.temperature_init)
    self.logit_scale = self.param("logit_scale", nn.initializers.constant(log), ())

  def __call__(
    self, image: jax.Array, text: jax.Array, *, train: bool = False
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """image [B, H, W, C], text int32 [B, L] -> (logits [B, L, V] of the text, intermediates).

    Intermediates: those of `encode_image` (`image/...`) and `encode_text` (`text/...`),
    `logit_scale`.
    """
    visual = self.encode_image(image, train=train)
    textual = self.encode_text(text, train=train)
    x = self.multimodal(textual["tokens"][:, :-1], visual["tokens"], train=train)
    out = {f"image/{k}": v for k, v in visual.items()}
    out |= {f"text/{k}": v for k, v in textual.items()}
    out["logit_scale"] = self.logit_scale
    return axes.constrain_batch(self.head(x)), out

  def encode_image(self, image: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
    """`patches` [B, N, D'], `tokens` [B, num_queries, D], `embed` [B, D], of length 1."""
    patches, _ = self.image(image, train=train)
    tokens = self.generative_pool(patches)
    embed = unit(self.contrastive_pool(tokens)[:, 0])
    return {"patches": patches, "tokens": tokens, "embed": embed}

  def encode_text(self, text: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
    """int32 [B, L] -> `tokens` [B, 1 + L, D] (the start token first), `embed` [B, D], of length 1.

    CLS comes last and sees every token but the padding; no token sees CLS.

    Raises:
      UserError: more tokens than `max_len`.
    """
    batch, length = text.shape
    if length > self.max_len:
      raise UserError(f"text of {length} tokens is longer than model.max_len = {self.max_len}")
    start = jnp.full((batch, 1), self.pad_id, text.dtype)
    # Constrained before CLS joins: XLA's partitioner sums a wrong gradient of the table where it
    # splits 1 + L tokens unevenly over `sequence` beside `tensor` (seen with jax 0.10.2).
    x = axes.constrain_batch(self.embed(jnp.concatenate([start, text], axis=1)))
    x = x + self.pos_embed[: length + 1].astype(x.dtype)[None]
    cls = jnp.broadcast_to(self.cls.astype(x.dtype)[None], (batch, 1, self.width))
    x = axes.constrain_batch(jnp.concatenate([x, cls], axis=1))
    real = jnp.ones((batch, 1), bool)
    keys = jnp.concatenate([real, text != self.pad_id, real], axis=1)
    mask = jnp.broadcast_to(keys[:, None, None, :], (batch, 1, length + 2, length + 2))
    x = self.unimodal(x, mask=mask, train=train)
    return {"tokens": x[:, :-1], "embed": unit(x[:, -1])}

  def new_cache(self, image: jax.Array, length: int) -> Cache:
    """For `decode`: room for `length` tokens, and the image's keys and values; batch on axis 1."""
    batch = image.shape[0]
    size = (batch, length, self.width)
    tokens = self.encode_image(image)["tokens"]
    cache = {k: getattr(self, k).new_cache(*size) for k in ("unimodal", "multimodal")}
    # One token that nobody reads: what it leaves at position 0 is written again.
    x = jnp.zeros((batch, 1, self.width), tokens.dtype)
    _, cache["multimodal"] = self.multimodal(
      x, tokens, cache=cache["multimodal"], position=jnp.int32(0)
    )
    return cache

  def decode(self, tokens: jax.Array, cache: Cache, position: jax.Array) -> tuple[jax.Array, Cache]:
    """`generation.autoregressive`'s step: int32 [B] at `position` -> ([B, V], cache).

    Position 0 is the start token, `pad_id`.
    """
    x = self.embed(tokens[:, None])
    x = x + jax.lax.dynamic_slice_in_dim(self.pos_embed, position, 1).astype(x.dtype)[None]
    new = {}
    for name, half in (("unimodal", self.unimodal), ("multimodal", self.multimodal)):
      x, new[name] = half(x, cache=cache[name], position=position)
    return self.head(x)[:, 0], new


def make(cfg: Mapping[str, Any]) -> CoCa:
  """From `config.model`: `variant` (a row of `SIZES`) or all sizes, `image` (keywords of the ViT),
  and other attributes of `CoCa`. What is given beside a variant wins over it.

  Raises:
    UserError: an unknown key, variant, size, remat policy, gelu or dtype, or a width that the heads
      do not divide.
  """
  where, cfg = "config.model", dict(cfg)
  variant, image = cfg.pop("variant", None), dict(cfg.pop("image", {}))
  if variant is not None:
    if variant not in SIZES:
      raise unknown(f"{where}.variant", variant, list(SIZES))
    name, width, depth, mlp_dim, heads = SIZES[variant]
    image = {"variant": name, **image}
    sizes = dict(width=width, mlp_dim=mlp_dim, num_heads=heads)
    cfg = {**sizes, "unimodal_depth": depth, "multimodal_depth": depth, **cfg}
  tower = vit.make(**{"pool": "none", **image})
  if tower.pool != "none" or tower.num_classes is not None:
    raise UserError(f"{where}.image: pool = {tower.pool!r}; the poolers of CoCa want pool = 'none'")
  model = call(CoCa, cfg, where, tower)
  check(model, where)
  if model.temperature_init <= 0:
    raise UserError(f"{where}.temperature_init = {model.temperature_init}; expected a number > 0")
  return model
