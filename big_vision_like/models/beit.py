"""BEiT (Bao et al. 2021, arXiv:2106.08254), and the vision tower of data2vec (arXiv:2202.03555).

image -> patches, some replaced by the mask token -> class token -> blocks whose attention knows
relative positions -> the class of the image, or a visual token for each patch
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_vision_like import axes, models
from big_vision_like.config import UserError, call
from big_vision_like.layers import fused
from big_vision_like.layers import pos_embed as pos
from big_vision_like.layers.attention import MultiHeadAttention
from big_vision_like.layers.drop_path import DropPath
from big_vision_like.layers.mlp import Mlp
from big_vision_like.layers.patch_embed import PatchEmbed, grid_of
from big_vision_like.layers.rel_pos_bias import RelPosBias
from big_vision_like.layers.sequence import cut_tokens, pad_tokens
from big_vision_like.layers.stack import Stack
from big_vision_like.layers.transformer import check
from big_vision_like.models.vit import SIZES

POOLS = ("gap", "cls", "none")
POSITIONS = ("learn", "none")


class Block(nn.Module):
  """x + ls1 MHA(LN(x)), then x + ls2 MLP(LN(x)); keys have no bias.

  Parameters ln1, attn, rel_pos_bias, ls1 [D], ln2, mlp, ls2 [D].
  """

  num_heads: int
  mlp_dim: int
  rel_pos: tuple[pos.Grid, pos.Grid] | None
  layer_scale: float | None
  gelu: str
  dropout: float
  dtype: jnp.dtype
  eps: float

  @nn.compact
  def __call__(self, x, drop_path, mask, bias, train: bool):
    norm = lambda name: fused.LayerNorm(epsilon=self.eps, dtype=self.dtype, name=name)
    drop = nn.Dropout(self.dropout, deterministic=not train)

    def add(x: jax.Array, y: jax.Array, name: str) -> jax.Array:
      y = drop(y)
      if self.layer_scale is not None:
        init = nn.initializers.constant(self.layer_scale)
        y = y * self.param(name, init, (x.shape[-1],)).astype(self.dtype)[None, None]
      return axes.constrain_batch(
        x + (y if drop_path is None else DropPath()(y, drop_path, train=train))
      )

    if self.rel_pos is not None:
      own = RelPosBias(self.num_heads, *self.rel_pos, name="rel_pos_bias")(x.shape[1])
      bias = own if bias is None else own + bias
    x = axes.constrain_batch(x)
    attn = MultiHeadAttention(self.num_heads, self.dtype, key_bias=False, name="attn")
    x = add(x, attn(norm("ln1")(x), mask=mask, bias=bias), "ls1")
    mlp = Mlp(self.mlp_dim, self.gelu, self.dropout, self.dtype, name="mlp")
    return add(x, mlp(norm("ln2")(x), train=train), "ls2"), None


class BEiT(nn.Module):
  """Parameters as of a `vit.ViT`, but for the norm and what concerns relative positions and masks.

      patch_embed/proj, cls [1, D], cls_pos [1, D], pos_embed [H*W, D], mask_token [1, D]
      rel_pos_bias/table [(2H-1)(2W-1)+3, heads]                   shared by all layers
      encoder/blocks/{ln1, attn, ls1, ln2, mlp, ls2}
      encoder/blocks/rel_pos_bias/table [(2H-1)(2W-1)+3, heads]    of each layer
      norm, head

  Attributes:
    image_size: (H, W) that the tables are made for; another input size resamples them.
    pool: mean over patches and then the norm; the norm and then the class token; or none: all
      patches, without a norm unless there is a head of visual tokens.
    pos_embed: learned absolute positions, of the class token too, or none.
    rel_pos_bias, shared_rel_pos_bias: relative positions of each layer, and of all layers.
    layer_scale: what the scale of each residual branch starts from, or None for no scale.
    mask_token: whether patches can be masked.
    num_classes: size of the linear head, or None; with pool "none" the number of visual tokens.
    scan, remat, dtype: see `layers.transformer.Encoder`; parameters are always float32.
  """

  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  patch_size: tuple[int, int] = (16, 16)
  image_size: tuple[int, int] = (224, 224)
  pool: str = "gap"
  pos_embed: str = "none"
  rel_pos_bias: bool = True
  shared_rel_pos_bias: bool = False
  layer_scale: float | None = 0.1
  mask_token: bool = False
  num_classes: int | None = None
  gelu: str = "exact"
  eps: float = 1e-12
  dropout: float = 0.0
  drop_path: float = 0.0
  scan: bool = True
  remat: str = "none"
  dtype: str = "float32"

  @nn.compact
  def __call__(
    self, image: jax.Array, *, train: bool = False, mask: jax.Array | None = None
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """[B, H, W, C] -> ([B, D] or [B, K] with a head; [B, N, D or K] without pooling; out).

    `mask` [B, N] is 1, or True, for patches that the mask token replaces. `out` has `tokens`
    [B, N, D] and `prefix` [B, 1, D], with the final norm where that comes before pooling, and
    `pooled` and `logits` where there are any.

    Raises:
      UserError: the image is not a multiple of the patch; a mask without `mask_token`.
    """
    dtype = jnp.dtype(self.dtype)
    grid = grid_of(image.shape[1], image.shape[2], self.patch_size)
    table_grid = grid_of(*self.image_size, self.patch_size)
    normal = nn.initializers.normal(0.02)
    x = axes.constrain_batch(
      PatchEmbed(self.width, self.patch_size, dtype, name="patch_embed")(image)
    )
    if self.mask_token:
      token = self.param("mask_token", normal, (1, self.width)).astype(dtype)
      x = x if mask is None else jnp.where(mask[:, :, None] > 0, token[None], x)
    elif mask is not None:
      raise UserError("config.model: BEiT has no mask token; set mask_token = true")

    cls = self.param("cls", normal, (1, self.width))
    if self.pos_embed == "learn":
      cls += self.param("cls_pos", normal, (1, self.width))
      table = self.param("pos_embed", normal, (table_grid[0] * table_grid[1], self.width))
      x = x + pos.resample_pos_embed(table, table_grid, grid).astype(dtype)[None]
    cls = jnp.broadcast_to(cls.astype(dtype)[None], (x.shape[0], 1, self.width))
    x = jnp.concatenate([cls, x], axis=1)
    x = nn.Dropout(self.dropout, deterministic=not train)(x)

    length = x.shape[1]
    x, visible = pad_tokens(x)
    bias = None
    if self.shared_rel_pos_bias:
      bias = RelPosBias(self.num_heads, table_grid, grid, name="rel_pos_bias")(x.shape[1])
    rel_pos = (table_grid, grid) if self.rel_pos_bias else None
    block = (self.num_heads, self.mlp_dim, rel_pos, self.layer_scale, self.gelu, self.dropout)
    stack = (self.depth, self.scan, self.remat, self.drop_path)
    x = Stack(Block, (*block, dtype, self.eps), *stack, name="encoder")(
      x, visible, bias, train=train
    )
    x = cut_tokens(x, length)

    norm = lambda y: fused.LayerNorm(epsilon=self.eps, dtype=dtype, name="norm")(y)
    if self.pool == "cls" or (self.pool == "none" and self.num_classes is not None):
      x = norm(x)
    out = {"tokens": x[:, 1:], "prefix": x[:, :1]}
    if self.pool == "cls":
      x = out["pooled"] = axes.constrain_batch(x[:, 0])
    elif self.pool == "gap":
      x = out["pooled"] = axes.constrain_batch(norm(jnp.mean(x[:, 1:], axis=1)))
    else:
      x = x[:, 1:]
    if self.num_classes is not None:
      x = fused.Dense(self.num_classes, dtype=dtype, name="head")(x)
      x = out["logits"] = axes.constrain_batch(x)
    return x, out


def make(variant: str | None = None, **kwargs: Any) -> BEiT:
  """A BEiT from a name such as "B/16" or "L/16", other attributes by keyword, as in `vit.make`.

  Raises:
    UserError: an unknown size, attribute, pooling, position, remat policy, gelu or dtype; a width
      that the heads, or an image that the patch, does not divide.
  """
  where = "config.model: BEiT"
  model = call(BEiT, models.of_image(variant, kwargs, SIZES, where), where)
  check(model, where, pool=POOLS, pos_embed=POSITIONS)
  grid_of(*model.image_size, model.patch_size)
  return model
