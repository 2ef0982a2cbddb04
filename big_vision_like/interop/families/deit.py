"""DeiT: a ViT with a distillation token."""

from typing import Any

from big_vision_like.interop.families import (
  HF,
  PATCH,
  Family,
  architecture,
  image,
  num_labels,
  patch_sizes,
)
from big_vision_like.interop.families.vit import VIT, vit_blocks
from big_vision_like.interop.tables import Rule, dense, norm

TEACHER = "DeiTForImageClassificationWithTeacher"


def _deit(hf: HF) -> list[Rule]:
  at, pos = "deit.embeddings", ("cls_pos", "dist_pos", "pos_embed")
  teacher = architecture(hf, TEACHER) == TEACHER
  return [
    Rule(f"{at}.cls_token", "cls", "1 1 D -> 1 D"),
    Rule(f"{at}.distillation_token", "dist", "1 1 D -> 1 D"),
    Rule(f"{at}.patch_embeddings.projection.weight", "patch_embed/proj/kernel", PATCH),
    Rule(f"{at}.patch_embeddings.projection.bias", "patch_embed/proj/bias"),
    Rule(f"{at}.position_embeddings", pos, "1 N D -> N D", axis=1),
    *vit_blocks("deit.encoder.layer.{i}", "encoder/block_{i}"),
    *norm("deit.layernorm", "encoder/norm"),
    *dense("cls_classifier" if teacher else "classifier", "head"),
    *dense("distillation_classifier", "head_dist"),
  ]


def _deit_model(hf: HF) -> dict[str, Any]:
  return image(hf, **VIT) | dict(
    pool="cls",
    cls_pos=True,
    dist_token=True,
    dist_head=architecture(hf, TEACHER) == TEACHER,
    qkv_bias=hf.get("qkv_bias", True),
    num_classes=num_labels(hf),
  )


FAMILIES = {"deit": Family(_deit_model, _deit, patch_sizes)}
