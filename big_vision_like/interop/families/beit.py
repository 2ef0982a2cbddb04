"""BEiT and data2vec-vision, which are one architecture under two names."""

from typing import Any

from big_vision_like.config import UserError
from big_vision_like.interop.families import (
  HF,
  PATCH,
  Family,
  architecture,
  image_config,
  labels,
  pair,
  patch_sizes,
  transformer,
)
from big_vision_like.interop.tables import Rule, dense, norm

_BASE = dict(
  hidden_size=768,
  num_hidden_layers=12,
  num_attention_heads=12,
  intermediate_size=3072,
  layer_norm_eps=1e-12,
)
_TABLE = "relative_position_bias.relative_position_bias_table"


def _masked(hf: HF) -> bool:
  """With the head of visual tokens; else with that of classes, or bare."""
  return architecture(hf, "").endswith("ForMaskedImageModeling")


def _model(hf: HF) -> dict[str, Any]:
  mean, name = hf.get("use_mean_pooling", True), architecture(hf, "")
  if _masked(hf) and not mean:
    raise UserError("config.json: two last norms (masked image modelling, use_mean_pooling false)")
  size, patch = pair(hf.get("image_size", 224)), pair(hf.get("patch_size", 16))
  relative = hf.get("use_relative_position_bias") or hf.get("use_shared_relative_position_bias")
  if relative and size[0] // patch[0] != size[1] // patch[1]:
    # transformers reads the table of such a grid with height and width exchanged.
    raise UserError(f"config.json: relative positions of a grid that is not square: {size}")
  bare = mean and name == "Data2VecVisionModel"  # saved without a pooler, and so without a norm
  own = dict(
    patch_size=patch,
    image_size=size,
    pos_embed="learn" if hf.get("use_absolute_position_embeddings") else "none",
    rel_pos_bias=bool(hf.get("use_relative_position_bias")),
    shared_rel_pos_bias=bool(hf.get("use_shared_relative_position_bias")),
    layer_scale=hf.get("layer_scale_init_value", 0.1) or None,
    mask_token=bool(hf.get("use_mask_token")),
    pool="none" if _masked(hf) or bare else "gap" if mean else "cls",
  )
  if _masked(hf):
    own["num_classes"] = hf.get("vocab_size", 8192)
  return transformer(hf, **_BASE) | own


def _blocks(theirs: str, ours: str) -> list[Rule]:
  return [
    *norm(f"{theirs}.layernorm_before", f"{ours}/ln1"),
    *dense(f"{theirs}.attention.attention.query", f"{ours}/attn/query"),
    *dense(f"{theirs}.attention.attention.key", f"{ours}/attn/key"),
    *dense(f"{theirs}.attention.attention.value", f"{ours}/attn/value"),
    *dense(f"{theirs}.attention.output.dense", f"{ours}/attn/out"),
    Rule(f"{theirs}.attention.attention.{_TABLE}", f"{ours}/rel_pos_bias/table"),
    Rule(f"{theirs}.lambda_1", f"{ours}/ls1"),
    *norm(f"{theirs}.layernorm_after", f"{ours}/ln2"),
    *dense(f"{theirs}.intermediate.dense", f"{ours}/mlp/up"),
    *dense(f"{theirs}.output.dense", f"{ours}/mlp/down"),
    Rule(f"{theirs}.lambda_2", f"{ours}/ls2"),
  ]


def _rules(hf: HF, prefix: str) -> list[Rule]:
  at = "" if architecture(hf, "").endswith("Model") else f"{prefix}."
  if _masked(hf):
    end, head = "layernorm", "lm_head"
  else:
    end = f"{at}pooler.layernorm" if hf.get("use_mean_pooling", True) else f"{at}layernorm"
    head = "classifier"
  return [
    Rule(f"{at}embeddings.cls_token", "cls", "1 1 D -> 1 D"),
    Rule(f"{at}embeddings.mask_token", "mask_token", "1 1 D -> 1 D"),
    Rule(f"{at}embeddings.patch_embeddings.projection.weight", "patch_embed/proj/kernel", PATCH),
    Rule(f"{at}embeddings.patch_embeddings.projection.bias", "patch_embed/proj/bias"),
    Rule(f"{at}embeddings.position_embeddings", ("cls_pos", "pos_embed"), "1 N D -> N D", axis=1),
    Rule(f"{at}encoder.{_TABLE}", "rel_pos_bias/table"),
    *_blocks(f"{at}encoder.layer.{{i}}", "encoder/block_{i}"),
    *norm(end, "norm"),
    *dense(head, "head"),
  ]


def _config(model: Any, channels: int, model_type: str, cls: str) -> dict[str, Any]:
  head = model.num_classes is not None
  hf = image_config(model, channels) | dict(
    model_type=model_type,
    architectures=[f"{cls}ForImageClassification" if head else f"{cls}Model"],
    use_absolute_position_embeddings=model.pos_embed == "learn",
    use_relative_position_bias=model.rel_pos_bias,
    use_shared_relative_position_bias=model.shared_rel_pos_bias,
    layer_scale_init_value=model.layer_scale or 0.0,
    use_mask_token=model.mask_token,
    use_mean_pooling=model.pool != "cls",
  )
  if head and model.pool == "none":
    hf |= dict(architectures=[f"{cls}ForMaskedImageModeling"], vocab_size=model.num_classes)
  elif head:
    hf |= labels(model)
  return hf


def _family(model_type: str, prefix: str, cls: str) -> Family:
  return Family(
    _model,
    lambda hf: _rules(hf, prefix),
    patch_sizes,
    ignore=r".*\.relative_position_index",
    kind="beit",
    config=lambda model, channels: _config(model, channels, model_type, cls),
  )


FAMILIES = {
  "beit": _family("beit", "beit", "Beit"),
  "data2vec-vision": _family("data2vec-vision", "data2vec_vision", "Data2VecVision"),
}
