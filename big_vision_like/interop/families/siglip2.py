"""SigLIP 2 of images of any aspect ratio (NaFlex). At a fixed size it is of the type `siglip`."""

import math
from typing import Any

from big_vision_like.config import UserError
from big_vision_like.interop.families import HF, Family, transformer, two_towers
from big_vision_like.interop.tables import Rule

PATCH = "vision_model.embeddings.patch_embedding"


def _rules(hf: HF) -> list[Rule]:
  """SigLIP's, with patches that come cut: a matrix in place of a convolution."""
  rules = [r for r in two_towers.siglip(hf) if r.theirs != f"{PATCH}.weight"]
  return [*rules, Rule(f"{PATCH}.weight", "image/patch_embed/proj/kernel", "D P -> P D")]


def _model(hf: HF) -> dict[str, Any]:
  vision = {**two_towers.SIGLIP, "num_patches": 256, **hf["vision_config"]}
  side = math.isqrt(vision["num_patches"])
  if side**2 != vision["num_patches"]:
    raise UserError(f"config.json: num_patches = {vision['num_patches']} is not a square")
  return dict(
    image=transformer(vision) | dict(name="naflex", pool="map", pos_side=side),
    text=two_towers.siglip_text(hf),
  )


FAMILIES = {"siglip2": Family(_model, _rules, kind="two_towers")}
