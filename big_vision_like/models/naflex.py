"""Vision Transformer for images of any aspect ratio (NaFlex of SigLIP 2, arXiv:2502.14786).

padded patches -> embedding -> + positions of the image's own grid -> encoder -> pool -> head
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_vision_like import axes, models
from big_vision_like.config import UserError, call
from big_vision_like.layers import fused
from big_vision_like.layers import pos_embed as pos
from big_vision_like.layers.transformer import Encoder, MapPool, check
from big_vision_like.models.vit import SIZES

POOLS = ("map", "gap", "none")
KEYS = ("patches", "patch_mask", "patch_positions", "patch_grid")


def inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
  """The keys that op `patchify_native` writes, of a batch. Raises `UserError` where one lacks."""
  if missing := [k for k in KEYS if k not in batch]:
    raise UserError(f"the batch has no {', '.join(missing)}; op patchify_native writes them")
  return {k: batch[k] for k in KEYS}


def example(model: "NaFlex", channels: int = 3) -> dict[str, jax.Array]:
  """One image of one patch, zeros: to make the parameters with."""
  p, q = model.patch_size
  return dict(
    patches=jnp.zeros((1, 1, p * q * channels)),
    patch_mask=jnp.ones((1, 1), bool),
    patch_positions=jnp.zeros((1, 1, 2), jnp.int32),
    patch_grid=jnp.ones((1, 2), jnp.int32),
  )


class NaFlex(nn.Module):
  """Parameters: patch_embed/proj, pos_embed [side*side, D], encoder, pool, head, as in `vit.ViT`.

  Attributes:
    patch_size: of the patches that come; `patchify_native` cuts them.
    pos_side: entries of the square table along each axis; it is resampled to each image's grid.
    pool: attention pooling, mean over the real patches, or none (the output is all tokens).
    num_classes: size of the linear head, or None; `head_bias`: whether it has a bias.
    eps: of every LayerNorm.
    scan, remat, dtype: see `layers.transformer.Encoder`; parameters are always float32.
  """

  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  patch_size: tuple[int, int] = (16, 16)
  pos_side: int = 16
  pool: str = "map"
  num_classes: int | None = None
  head_bias: bool = True
  gelu: str = "tanh"
  eps: float = 1e-6
  dropout: float = 0.0
  drop_path: float = 0.0
  scan: bool = True
  remat: str = "none"
  dtype: str = "float32"

  @nn.compact
  def __call__(
    self, image: Mapping[str, jax.Array], *, train: bool = False
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Patches -> ([B, D], or [B, K] with a head, or [B, N, D] without pooling; intermediates).

        patches           [B, N, p*p*C], of any float type; rows ordered (p, q, C)
        patch_mask        bool [B, N], True for a patch; no token sees padding
        patch_positions   int32 [B, N, 2], row and column of the patch
        patch_grid        int32 [B, 2], rows and columns of the image

    Intermediates: `tokens` [B, N, D] (after the final norm; those of padding mean nothing),
    `pooled` [B, D], `logits` [B, K].

    Raises:
      UserError: patches of another size.
    """
    dtype = jnp.dtype(self.dtype)
    (p, q), length = self.patch_size, image["patches"].shape[-1]
    if length % (p * q):
      raise UserError(f"patches of {length} numbers are not {p} x {q} pixels; set patch_size")
    patches, mask = image["patches"], image["patch_mask"].astype(bool)
    embed = PatchProjection(self.width, dtype, name="patch_embed")
    x = axes.constrain_batch(embed(patches.astype(dtype)))
    init = nn.initializers.normal(self.width**-0.5)
    table = self.param("pos_embed", init, (self.pos_side**2, self.width))
    where = (image["patch_positions"], image["patch_grid"])
    x = axes.constrain_batch(x + pos.native_pos_embed(table, self.pos_side, *where).astype(dtype))
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    batch, length = mask.shape
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
      name="encoder",
    )(x, mask=jnp.broadcast_to(mask[:, None, None], (batch, 1, length, length)), train=train)
    out = {"tokens": x}

    if self.pool == "map":
      pool = MapPool(self.num_heads, self.mlp_dim, self.gelu, dtype, self.eps, name="pool")
      x = pool(x, mask[:, None, None])
    elif self.pool == "gap":
      x = jnp.sum(jnp.where(mask[..., None], x, 0), 1) / jnp.sum(mask, 1, dtype=dtype)[:, None]
    if self.pool != "none":
      x = out["pooled"] = axes.constrain_batch(x)
    if self.num_classes is not None:
      x = fused.Dense(self.num_classes, self.head_bias, dtype=dtype, name="head")(x)
      x = out["logits"] = axes.constrain_batch(x)
    return x, out


class PatchProjection(nn.Module):
  """`layers.patch_embed.PatchEmbed` of patches that are cut already; its parameters."""

  width: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, patches: jax.Array) -> jax.Array:
    """[B, N, p*p*C] -> [B, N, D]."""
    return fused.Dense(self.width, dtype=self.dtype, name="proj")(patches)


def make(variant: str | None = None, **kwargs: Any) -> NaFlex:
  """A model from a name such as "B/16" or "B", other attributes by keyword, as `vit.make`.

  Raises:
    UserError: an unknown size, attribute, pooling, remat policy, gelu or dtype; a patch that is
      not a number; a width that the heads do not divide.
  """
  where = "config.model: NaFlex"
  model = call(NaFlex, models.of_image(variant, kwargs, SIZES, where), where)
  check(model, where, pool=POOLS)
  return model
