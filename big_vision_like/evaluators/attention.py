"""Do attention maps of the last block show the object? Jaccard index with its mask.

Each head's map, thresholded to the fewest patches that hold 60 % of its mass, is a mask; its
overlap with the foreground, |A and B| / |A or B|, is averaged over images (DINO, arXiv:2104.14294,
Sec. 4.2.2 and Fig. 4).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from big_vision_like.config import Config, UserError, number, whole_number
from big_vision_like.evaluators import Split, need


class Evaluator:
  """Keys: source, pp (yields image and segmentation), batch_size, mass (0.6), background (0),
  ignore (255).

  Foreground are the pixels of all other ids; pixels with the ignore label do not count, nor images
  without foreground. `predict["attention"]` gives [B, heads, h, w]: how the class token of the last
  block attends to the patches, or the mean over patches where there is no class token.
  """

  def __init__(self, config: Config, predict: Mapping[str, Callable], mesh: jax.sharding.Mesh):
    self.where = config.path
    self.attention = need(predict, "attention", config)
    self.split = Split(config, mesh, needs=("image", "segmentation"))
    self.mass = number(config, "mass", 0.6, above=0)
    if self.mass > 1:
      raise UserError(f"{config.path}.mass = {self.mass!r}; expected a share, at most 1")
    whole = lambda key, default: whole_number(config.get(key, default), f"{config.path}.{key}", -1)
    self.background, self.ignore = whole("background", 0), whole("ignore", 255)

  def run(self, state: Any) -> dict[str, float]:
    """`jaccard` of the best head, `best_per_image` where each image takes its best head, `mean` of
    all heads, and `all`, that of a mask which is the whole image.

    Raises:
      UserError: no image has any foreground.
    """

    def overlaps(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
      maps = self.attention(state.params, state.aux, batch)
      return _overlaps(maps, batch["segmentation"], self.mass, self.background, self.ignore)

    rows = self.split.map(overlaps)
    some = rows["foreground"] > 0
    if not some.any():
      raise UserError(
        f"{self.where}: no image of source has a foreground, ids other than 0 and 255"
      )
    heads = rows["jaccard"][some].astype(np.float64)  # [n, heads]
    return {
      "jaccard": float(heads.mean(axis=0).max()),
      "best_per_image": float(heads.max(axis=1).mean()),
      "mean": float(heads.mean()),
      "all": float(rows["all"][some].mean(dtype=np.float64)),
    }


def top_mass(maps: jax.Array, mass: float) -> jax.Array:
  """[..., h, w] -> bool: the fewest patches that hold `mass` of each map; none where it is NaN."""
  flat = maps.astype(jnp.float32).reshape(*maps.shape[:-2], -1)
  order = jnp.argsort(-flat, axis=-1)
  sorted_ = jnp.take_along_axis(flat, order, axis=-1)
  share = sorted_ / jnp.sum(flat, axis=-1, keepdims=True)
  before = jnp.cumsum(share, axis=-1) - share  # the mass of all larger ones
  keep = jnp.take_along_axis(before < mass - 1e-6, jnp.argsort(order, axis=-1), axis=-1)
  return keep.reshape(maps.shape)


@jax.jit(static_argnums=(2, 3, 4))
def _overlaps(
  maps: jax.Array, label: jax.Array, mass: float, background: int, ignore: int
) -> dict[str, jax.Array]:
  """[B, heads, h, w], ids [B, H, W, 1] -> jaccard [B, heads], all [B], pixels of foreground [B]."""
  label = label[..., 0]
  keep = label != ignore
  foreground = keep & (label != background)
  mask = top_mass(maps, mass)
  mask = jax.image.resize(mask, (*mask.shape[:2], *label.shape[1:]), "nearest") & keep[:, None]
  total = lambda x: jnp.sum(x, axis=(-2, -1)).astype(jnp.float32)
  union = total(mask | foreground[:, None])
  count = total(foreground)
  return {
    "jaccard": total(mask & foreground[:, None]) / jnp.maximum(union, 1),
    "all": count / jnp.maximum(total(keep), 1),
    "foreground": count,
  }
