"""Vision Transformer (Dosovitskiy et al. 2021; larger sizes: Zhai 2022, Alabdulmohsin 2023).

image -> patches -> (+ positions) -> (class token, registers) -> encoder -> pool -> head
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_vision_like import axes
from big_vision_like.config import UserError, call, unknown
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
POOLS = ("cls", "gap", "map", "none")
POSITIONS = ("learn", "sincos2d", "sincos2d_moco", "rope", "none")


class ViT(nn.Module):
  """Parameters: patch_embed, pos_embed [H*W, D], cls [1, D], registers [R, D], encoder, pool, head.

      patch_embed/proj/{kernel [p*q*C, D], bias}          rows ordered (p, q, C)
      encoder/blocks/{ln1, ln2}/{scale, bias}
      encoder/blocks/attn/{query, key, value, out}/{kernel [D, D], bias}
      encoder/blocks/mlp/{up, down}/{kernel [D, F] and [F, D], bias}
      encoder/norm/{scale, bias}
      pool/{probe [1, 1, D], attn/..., norm/..., mlp/...}  attention pooling only
      head/{kernel [D, K], bias}

  `blocks` has a leading depth axis; with scan=False it is `block_0`, `block_1`, ... without one.

  Attributes:
    image_size: (H, W) the learned table is made for; another input size resamples the table.
    pool: class token, mean over patches, attention pooling, or none (the output is all tokens).
    pos_embed: learned table, fixed sin-cos (sincos2d as in big_vision, sincos2d_moco as in MoCo v3
      and MAE), axial rotary, or none; patches only.
    pos_resample: how, see `layers.pos_embed.resample_pos_embed`.
    cls_pos: a position of the class token too, parameter `cls_pos` [1, D], as in ViT's paper, DeiT,
      DINO and CLIP; big_vision has none.
    cls_token: a class token that another pooling than `cls` leaves out.
    registers: extra learned tokens (Darcet et al. 2023), left out of pooling.
    num_classes: size of the linear head, or None.
    pre_norm, patch_bias, head_bias: CLIP's towers have a LayerNorm before the encoder, parameter
      `pre_norm`, and no biases in the patch embedding and the head.
    norm_pooled: the last LayerNorm, parameter `norm`, comes after pooling, not before: timm's
      `fc_norm` (MAE's fine-tuning, mean pooling) and CLIPA. Tokens are then not normalised.
    eps: of every LayerNorm.
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
  scan: bool = True
  remat: str = "none"
  dtype: str = "float32"

  @nn.compact
  def __call__(
    self, image: jax.Array, *, train: bool = False, keep: jax.Array | None = None
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """[B, H, W, C] -> ([B, D], or [B, K] with a head, or [B, N, D] without pooling; intermediates).

    Intermediates: `tokens` [B, N, D] (patches, after the final norm), `prefix` (class token and
    registers), `pooled` [B, D], `logits` [B, K].

    With `keep` int32 [B, n], only those of the N patches (counted row by row), in that order, and
    the class token and registers go through the encoder: masked autoencoders, FLIP, I-JEPA.

    Raises:
      UserError: the image is not a multiple of the patch; `keep` with rotary positions.
    """
    dtype = jnp.dtype(self.dtype)
    grid = grid_of(image.shape[1], image.shape[2], self.patch_size)
    if keep is not None and self.pos_embed == "rope":
      raise UserError("config.model: ViT pos_embed 'rope' cannot leave patches out; use sincos2d")
    embed = PatchEmbed(self.width, self.patch_size, dtype, self.patch_bias, name="patch_embed")
    x = axes.constrain_batch(embed(image, keep))

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
    if self.pool == "cls" or self.cls_token:
      cls = self.param("cls", nn.initializers.zeros, (1, self.width))
      if self.cls_pos:
        cls += self.param("cls_pos", nn.initializers.normal(self.width**-0.5), (1, self.width))
      prefix.append(cls)
    if self.registers:
      prefix.append(
        self.param("registers", nn.initializers.normal(0.02), (self.registers, self.width))
      )
    count = sum(p.shape[0] for p in prefix)
    if prefix:
      first = jnp.concatenate(prefix).astype(dtype)[None]
      x = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], *first.shape[1:])), x], axis=1)

    rope = None
    if self.pos_embed == "rope":
      rope = pos.rope_2d(grid, self.width // self.num_heads, prefix=count)
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
      final_norm=not self.norm_pooled,
      name="encoder",
    )(x, rope=rope, train=train)
    first, x = x[:, :count], x[:, count:]
    out = {"tokens": x, "prefix": first}

    if self.pool == "cls":
      x = first[:, 0]
    elif self.pool == "gap":
      x = jnp.mean(x, axis=1)
    elif self.pool == "map":
      x = MapPool(self.num_heads, self.mlp_dim, self.gelu, dtype, self.eps, name="pool")(x)
    if self.norm_pooled:
      x = fused.LayerNorm(epsilon=self.eps, dtype=dtype, name="norm")(x)
    if self.pool != "none":
      x = out["pooled"] = axes.constrain_batch(x)
    if self.num_classes is not None:
      x = fused.Dense(self.num_classes, self.head_bias, dtype=dtype, name="head")(x)
      x = out["logits"] = axes.constrain_batch(x)
    return x, out


def make(
  variant: str | None = None, *, patch_size: int | tuple[int, int] | None = None, **kwargs: Any
) -> ViT:
  """A ViT from a name such as "B/16", "So400m/14" or "B", other attributes by keyword.

  `patch_size` and `image_size` may be one number for both directions; a `patch_size` and any other
  attribute given beside a variant win over it.

  Raises:
    UserError: an unknown size, attribute, pooling, position, remat policy, gelu or dtype; a patch
      that is not a number; a width that the heads, or an image that the patch, does not divide.
  """
  where = "config.model: ViT"
  if variant is not None:
    size, _, patch = variant.partition("/")
    if size not in SIZES:
      raise unknown(f"{where} variant", size, list(SIZES))
    if patch and not patch.isdigit():
      raise UserError(f"{where} variant {variant!r}: the patch is not a number; write 'B/16'")
    names = ("width", "depth", "mlp_dim", "num_heads")
    kwargs = {**dict(zip(names, SIZES[size])), **kwargs}
    patch_size = patch_size or (int(patch) if patch else None)
  if patch_size is not None:
    kwargs["patch_size"] = (patch_size,) * 2 if isinstance(patch_size, int) else tuple(patch_size)
  if "image_size" in kwargs:
    size = kwargs["image_size"]
    kwargs["image_size"] = (size,) * 2 if isinstance(size, int) else tuple(size)
  model = call(ViT, kwargs, where)
  check(model, where, pool=POOLS, pos_embed=POSITIONS, pos_resample=pos.RESAMPLE)
  if model.cls_pos and model.pool != "cls" and not model.cls_token:
    raise UserError(f"{where} cls_pos needs a class token; pool = {model.pool!r}, expected 'cls'")
  if model.pos_embed == "learn":
    grid_of(*model.image_size, model.patch_size)
  return model
