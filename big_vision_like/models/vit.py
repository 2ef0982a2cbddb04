"""Vision Transformer (Dosovitskiy et al. 2021; larger sizes: Zhai 2022, Alabdulmohsin 2023).

image -> patches -> (+ positions) -> (class token, registers) -> encoder -> pool -> head
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_vision_like import axes, models
from big_vision_like.config import UserError, call
from big_vision_like.layers import fused
from big_vision_like.layers import pos_embed as pos
from big_vision_like.layers.patch_embed import PatchEmbed, grid_of
from big_vision_like.layers.transformer import Encoder, MapPool, check

SIZES = {  # width, depth, mlp_dim, num_heads
  "mu": (32, 2, 64, 2),  # for tests
  "Ti": (192, 12, 768, 3),
  "S": (384, 12, 1536, 6),
  "B": (768, 12, 3072, 12),
  "L": (1024, 24, 4096, 16),
  "So400m": (1152, 27, 4304, 16),
  "H": (1280, 32, 5120, 16),
  "g": (1408, 40, 6144, 16),
  "G": (1664, 48, 8192, 16),
}
POOLS = ("cls", "gap", "cls_gap", "map", "none")
POSITIONS = ("learn", "sincos2d", "sincos2d_moco", "rope", "rope_centred", "none")


class ViT(nn.Module):
  """Parameters: patch_embed, pos_embed [H*W, D], cls [1, D], registers [R, D], encoder, pool, head.

      patch_embed/proj/{kernel [p*q*C, D], bias}          rows ordered (p, q, C)
      encoder/blocks/{ln1, ln2}/{scale, bias}
      encoder/blocks/attn/{query, key, value, out}/{kernel [D, D], bias}
      encoder/blocks/mlp/{up, down}/{kernel [D, F] and [F, D], bias}, gate like up
      encoder/blocks/{ls1, ls2} [D]
      encoder/norm/{scale, bias}
      pool/{probe [1, 1, D], attn/..., norm/..., mlp/...}  attention pooling only
      head/{kernel [D, K], bias}

  `blocks` has a leading depth axis; with scan=False it is `block_0`, `block_1`, ... without one.

  Attributes:
    image_size: (H, W) the learned table is made for; another input size resamples the table.
    pool: class token, mean over patches, both side by side [B, 2 D] (DINOv2's classifiers),
      attention pooling, or none (the output is all tokens).
    pos_embed: learned table, fixed sin-cos (sincos2d as in big_vision, sincos2d_moco as in MoCo v3
      and MAE), axial rotary (rope_centred as in DINOv3), or none; patches only.
    pos_resample: how, see `layers.pos_embed.resample_pos_embed`.
    cls_pos: a position of the class token too, parameter `cls_pos` [1, D], as in ViT's paper, DeiT,
      DINO and CLIP; big_vision has none.
    cls_token: a class token that another pooling than `cls` leaves out.
    dist_token: DeiT's distillation token (Touvron et al. 2020, arXiv:2012.12877) after the class
      token, parameter `dist` [1, D], with `cls_pos` also `dist_pos`; `dist_head`: a head of its own
      over it, `logits_dist`, and logits are the mean of both heads.
    mask_token: parameter `mask_token` [1, D], for the argument `mask`.
    registers: extra learned tokens (Darcet et al. 2023), left out of pooling.
    num_classes: size of the linear head, or None.
    pre_norm, patch_bias, head_bias: CLIP's towers have a LayerNorm before the encoder, parameter
      `pre_norm`, and no biases in the patch embedding and the head.
    norm_pooled: the last LayerNorm, parameter `norm`, comes after pooling, not before: timm's
      `fc_norm` (MAE's fine-tuning, mean pooling) and CLIPA. Tokens are then not normalised.
    eps: of every LayerNorm.
    layer_scale, gated, qkv_bias, key_bias: see `layers.transformer.Block`, `layers.mlp.Mlp` and
      `layers.attention.MultiHeadAttention`.
    scan, remat, dtype: see `layers.transformer.Encoder`; parameters are always float32.
  """

  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  patch_size: tuple[int, int] = (16, 16)
  image_size: tuple[int, int] = (224, 224)
  pool: str = "gap"
  pos_embed: str = "learn"
  pos_resample: str = "antialias"
  cls_pos: bool = False
  cls_token: bool = False
  dist_token: bool = False
  dist_head: bool = False
  mask_token: bool = False
  registers: int = 0
  num_classes: int | None = None
  pre_norm: bool = False
  patch_bias: bool = True
  head_bias: bool = True
  norm_pooled: bool = False
  gelu: str = "tanh"
  eps: float = 1e-6
  dropout: float = 0.0
  drop_path: float = 0.0
  layer_scale: float | None = None
  gated: bool = False
  qkv_bias: bool = True
  key_bias: bool = True
  scan: bool = True
  remat: str = "none"
  dtype: str = "float32"

  @nn.compact
  def __call__(
    self,
    image: jax.Array,
    *,
    train: bool = False,
    keep: jax.Array | None = None,
    mask: jax.Array | None = None,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """[B, H, W, C] -> ([B, D], or [B, K] with a head, or [B, N, D] without pooling; intermediates).

    Intermediates: `tokens` [B, N, D] (patches, after the final norm), `prefix` (class token and
    registers), `pooled` [B, D], `logits` [B, K].

    With `keep` int32 [B, n], only those of the N patches (counted row by row), in that order, and
    the class token and registers go through the encoder: masked autoencoders, FLIP, I-JEPA. Where
    `mask` bool [B, N] is True the mask token is in the patch's place: BEiT, SimMIM, iBOT, DINOv2.

    Raises:
      UserError: the image is not a multiple of the patch; `keep` with rotary positions; `mask`
        without a mask token.
    """
    dtype = jnp.dtype(self.dtype)
    grid = grid_of(image.shape[1], image.shape[2], self.patch_size)
    rotary = self.pos_embed in ("rope", "rope_centred")
    if keep is not None and rotary:
      raise UserError("config.model: ViT pos_embed 'rope' cannot leave patches out; use sincos2d")
    if mask is not None and not self.mask_token:
      raise UserError("config.model: ViT has no mask token; write mask_token = True")
    embed = PatchEmbed(self.width, self.patch_size, dtype, self.patch_bias, name="patch_embed")
    x = axes.constrain_batch(embed(image, keep))
    if self.mask_token:
      token = self.param("mask_token", nn.initializers.normal(0.02), (1, self.width)).astype(dtype)
      x = x if mask is None else jnp.where(mask[:, :, None], token[None], x)

    table = None
    if self.pos_embed == "learn":
      table_grid = grid_of(*self.image_size, self.patch_size)
      init = nn.initializers.normal(self.width**-0.5)
      table = self.param("pos_embed", init, (table_grid[0] * table_grid[1], self.width))
      table = pos.resample_pos_embed(table, table_grid, grid, self.pos_resample).astype(dtype)
    elif self.pos_embed in ("sincos2d", "sincos2d_moco"):
      table = pos.sincos_2d(grid, self.width, endpoint=self.pos_embed == "sincos2d")
      table = jnp.asarray(table, dtype)
    if table is not None:
      x = x + (table[None] if keep is None else axes.constrain_batch(table[keep]))

    prefix = []
    has_cls = self.pool in ("cls", "cls_gap") or self.cls_token
    for name, wanted in (("cls", has_cls), ("dist", self.dist_token)):
      if wanted:
        token = self.param(name, nn.initializers.zeros, (1, self.width))
        if self.cls_pos:
          init = nn.initializers.normal(self.width**-0.5)
          token += self.param(f"{name}_pos", init, (1, self.width))
        prefix.append(token)
    if self.registers:
      prefix.append(
        self.param("registers", nn.initializers.normal(0.02), (self.registers, self.width))
      )
    count = sum(p.shape[0] for p in prefix)
    if prefix:
      first = jnp.concatenate(prefix).astype(dtype)[None]
      x = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], *first.shape[1:])), x], axis=1)

    rope = None
    if rotary:
      centred = self.pos_embed == "rope_centred"
      rope = pos.rope_2d(grid, self.width // self.num_heads, prefix=count, centred=centred)
    if self.pre_norm:
      x = fused.LayerNorm(epsilon=self.eps, dtype=dtype, name="pre_norm")(x)
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    x = Encoder(
      self.depth,
      self.num_heads,
      self.mlp_dim,
      self.gelu,
      self.dropout,
      self.drop_path,
      self.scan,
      self.remat,
      dtype,
      self.eps,
      self.layer_scale,
      self.gated,
      self.qkv_bias,
      self.key_bias,
      final_norm=not self.norm_pooled,
      name="encoder",
    )(x, rope=rope, train=train)
    first, x = x[:, :count], x[:, count:]
    out = {"tokens": x, "prefix": first}

    if self.pool == "cls":
      x = first[:, 0]
    elif self.pool == "gap":
      x = jnp.mean(x, axis=1)
    elif self.pool == "cls_gap":
      x = jnp.concatenate([first[:, 0], jnp.mean(x, axis=1)], axis=-1)
    elif self.pool == "map":
      x = MapPool(self.num_heads, self.mlp_dim, self.gelu, dtype, self.eps, name="pool")(x)
    if self.norm_pooled:
      x = fused.LayerNorm(epsilon=self.eps, dtype=dtype, name="norm")(x)
    if self.pool != "none":
      x = out["pooled"] = axes.constrain_batch(x)
    if self.num_classes is not None:
      head = lambda name: fused.Dense(self.num_classes, self.head_bias, dtype=dtype, name=name)
      x = head("head")(x)
      if self.dist_head:
        out["logits_dist"] = axes.constrain_batch(head("head_dist")(first[:, 1]))
        x = (x + out["logits_dist"]) / 2
      x = out["logits"] = axes.constrain_batch(x)
    return x, out


def make(variant: str | None = None, **kwargs: Any) -> ViT:
  """A ViT from a name such as "B/16", "So400m/14" or "B", other attributes by keyword.

  `patch_size` and `image_size` may be one number for both directions; a `patch_size` and any other
  attribute given beside a variant win over it.

  Raises:
    UserError: an unknown size, attribute, pooling, position, remat policy, gelu or dtype; a patch
      that is not a number; a width that the heads, or an image that the patch, does not divide.
  """
  where = "config.model: ViT"
  model = call(ViT, models.of_image(variant, kwargs, SIZES, where), where)
  check(model, where, pool=POOLS, pos_embed=POSITIONS, pos_resample=pos.RESAMPLE)
  for key in ("cls_pos", "dist_token"):
    if getattr(model, key) and not (model.pool.startswith("cls") or model.cls_token):
      raise UserError(f"{where} {key} needs a class token; pool = {model.pool!r}, expected 'cls'")
  if model.dist_head and not model.dist_token:
    raise UserError(f"{where} dist_head needs dist_token = True")
  if model.pos_embed == "learn":
    grid_of(*model.image_size, model.patch_size)
  return model


def attention(model: ViT, params: Any, image: jax.Array) -> jax.Array:
  """Where the last look over the image goes: [B, H, W, C] -> float32 [B, heads, h, w].

  Softmax weights of the class token in the last block (as DINO shows them), of the probe where the
  model pools by attention, else the mean over the patches of the last block. A head's weights sum
  to 1 together with those on class token and registers, which are left out.

  Computed from the queries and keys of an ordinary forward pass.
  """
  grid = grid_of(image.shape[1], image.shape[2], model.patch_size)
  variables = {"params": params}
  (_, out), seen = model.apply(variables, image, mutable=["intermediates"])
  count, seen = out["prefix"].shape[1], seen["intermediates"]
  if model.pool == "map":
    weights = seen["pool"]["attn"]["weights"][0][:, :, : grid[0] * grid[1]]
    return weights.reshape(*weights.shape[:2], *grid)
  block = seen["encoder"]["blocks" if model.scan else f"block_{model.depth - 1}"]["attn"]
  q, k = (block[name][0].astype(jnp.float32) for name in ("queries", "keys"))
  q, k = (q[-1], k[-1]) if model.scan else (q, k)
  length = count + grid[0] * grid[1]  # what is beyond is padding
  q = q[:, :1] if model.pool == "cls" else q[:, count:length]
  scores = jnp.einsum("BQHd,BKHd->BHQK", q, k[:, :length]) * q.shape[-1] ** -0.5
  weights = jnp.mean(jax.nn.softmax(scores), axis=2)[:, :, count:]
  return weights.reshape(*weights.shape[:2], *grid)


def image_tokens(model: ViT, params: Any, image: jax.Array) -> jax.Array:
  """[B, H, W, C] -> [B, h, w, D], the patches' tokens after the final norm."""
  grid = grid_of(image.shape[1], image.shape[2], model.patch_size)
  tokens = model.apply({"params": params}, image)[1]["tokens"]
  return tokens.reshape(tokens.shape[0], *grid, -1)


def predict(
  model: nn.Module, params_of: Callable[[Any, Any], Any]
) -> dict[str, Callable[..., jax.Array]]:
  """`attention` and `image_tokens` of a method, `(params, aux, batch, rng)` each.

  Args:
    model: the method's backbone; where it is no ViT there are none.
    params_of: (params, aux) -> the backbone's parameters.
  """
  if not isinstance(model, ViT):
    return {}

  def of_batch(fn: Callable) -> Callable:
    def call(params: Any, aux: Any, batch: Any, rng: jax.Array | None = None) -> jax.Array:
      image = batch["image"] if "image" in batch else batch["global"][:, 0]
      return fn(model, params_of(params, aux), image)

    return call

  return {"attention": of_batch(attention), "image_tokens": of_batch(image_tokens)}
