"""I-JEPA: a ViT without a class token; features are means over patches."""

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


def _classifies(hf: HF) -> bool:
  return architecture(hf, "IJepaModel") == "IJepaForImageClassification"


def _ijepa(hf: HF) -> list[Rule]:
  at = "ijepa." if _classifies(hf) else ""
  patch = f"{at}embeddings.patch_embeddings.projection"
  return [
    Rule(f"{patch}.weight", "patch_embed/proj/kernel", PATCH),
    Rule(f"{patch}.bias", "patch_embed/proj/bias"),
    Rule(f"{at}embeddings.position_embeddings", "pos_embed", "1 N D -> N D"),
    *vit_blocks(f"{at}encoder.layer.{{i}}", "encoder/block_{i}"),
    *norm(f"{at}layernorm", "encoder/norm"),
    *dense("classifier", "head"),
  ]


def _ijepa_model(hf: HF) -> dict[str, Any]:
  return image(hf, **VIT) | dict(
    pool="gap",
    qkv_bias=hf.get("qkv_bias", True),
    num_classes=num_labels(hf) if _classifies(hf) else None,
  )


def _ijepa_config(model: Any, channels: int) -> dict[str, Any]:
  name = "IJepaForImageClassification" if model.num_classes else "IJepaModel"
  own = dict(model_type="ijepa", architectures=[name], qkv_bias=model.qkv_bias)
  return own | image_config(model, channels) | labels(model)


FAMILIES = {"ijepa": Family(_ijepa_model, _ijepa, patch_sizes, config=_ijepa_config)}
