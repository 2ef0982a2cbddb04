"""Tiny models of ours in the forms that other formats can hold, and random weights for them."""

import jax
import numpy as np

from big_vision_like import tree
from big_vision_like.config import wrap
from big_vision_like.interop import build
from big_vision_like.models import two_towers, vit
from tests.parity import weights

TOWER = dict(width=32, depth=2, mlp_dim=48, num_heads=4)
SIGLIP = dict(
  image=dict(**TOWER, patch_size=8, image_size=16, pool="map"),
  text=dict(**dict(TOWER, num_heads=2), vocab_size=50, max_len=8),
)


def siglip(**image):
  return two_towers.make(wrap(SIGLIP | {"image": SIGLIP["image"] | image}))


def plain(**kwargs):
  return vit.make(**{**TOWER, "patch_size": (4, 8), "image_size": (8, 24), **kwargs})


def random(model, channels=3):
  """Name-seeded variables of a model."""
  kind = "two_towers" if isinstance(model, two_towers.TwoTowers) else "vit"
  like = jax.eval_shape(lambda: build.kind(kind).init(model, channels))["params"]
  return tree.map_with_name(lambda name, x: np.asarray(weights.tensor(name, x.shape)), like)
