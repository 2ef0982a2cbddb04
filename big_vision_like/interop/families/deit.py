"""DeiT: a ViT with a distillation token."""

from typing import Any

from big_vision_like.interop.families import (
  HF,
  PATCH,
  Family,
  architecture,
  image,
  image_config,
  labels,
  num_labels,
  patch_sizes,
)
from big_vision_like.interop.families.vit import VIT, vit_blocks
from big_vision_like.interop.tables import Rule, dense, norm

PLAIN, TEACHER = "DeiTForImageClassification", "DeiTForImageClassificationWithTeacher"


def _deit(hf: HF) -> list[Rule]:
  name, pos = architecture(hf, TEACHER), ("cls_pos", "dist_pos", "pos_embed")
  bare = "" if name == "DeiTModel" else "deit."
  at = f"{bare}embeddings"
  return [
    Rule(f"{at}.cls_token", "cls", "1 1 D -> 1 D"),
    Rule(f"{at}.distillation_token", "dist", "1 1 D -> 1 D"),
    Rule(f"{at}.patch_embeddings.projection.weight", "patch_embed/proj/kernel", PATCH),
    Rule(f"{at}.patch_embeddings.projection.bias", "patch_embed/proj/bias"),
    Rule(f"{at}.position_embeddings", pos, "1 N D -> N D", axis=1),
    *vit_blocks(f"{bare}encoder.layer.{{i}}", "encoder/block_{i}"),
    *norm(f"{bare}layernorm", "encoder/norm"),
    *dense("cls_classifier" if name == TEACHER else "classifier", "head"),
    *dense("distillation_classifier", "head_dist"),
  ]


def _deit_model(hf: HF) -> dict[str, Any]:
  name = architecture(hf, TEACHER)
  return image(hf, **VIT) | dict(
    pool="cls",
    cls_pos=True,
    dist_token=True,
    dist_head=name == TEACHER,
    qkv_bias=hf.get("qkv_bias", True),
    num_classes=None if name == "DeiTModel" else num_labels(hf),
  )


def _deit_config(model: Any, channels: int) -> dict[str, Any]:
  name = "DeiTModel" if not model.num_classes else TEACHER if model.dist_head else PLAIN
  own = dict(model_type="deit", architectures=[name], qkv_bias=model.qkv_bias)
  return own | image_config(model, channels) | labels(model)


FAMILIES = {
  "deit": Family(
    _deit_model,
    _deit,
    patch_sizes,
    ignore=r"(deit\.)?pooler\..*",  # of bare encoders, behind the output
    config=_deit_config,
  )
}
