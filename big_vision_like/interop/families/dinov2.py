"""DINOv2, with and without registers."""

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
from big_vision_like.interop.tables import Rule, dense, norm

_DINOV2 = dict(
  hidden_size=768,
  num_hidden_layers=12,
  num_attention_heads=12,
  mlp_ratio=4,
  layer_norm_eps=1e-6,
  image_size=224,
)


def _classifies(hf: HF) -> bool:
  return architecture(hf, "Dinov2Model").endswith("ForImageClassification")


def _mlp(hf: HF, theirs: str, ours: str) -> list[Rule]:
  if not hf.get("use_swiglu_ffn"):
    return [*dense(f"{theirs}.fc1", f"{ours}/up"), *dense(f"{theirs}.fc2", f"{ours}/down")]
  hidden = lambda leaf: (f"{ours}/gate/{leaf}", f"{ours}/up/{leaf}")
  return [
    Rule(f"{theirs}.weights_in.weight", hidden("kernel"), "o i -> i o"),
    Rule(f"{theirs}.weights_in.bias", hidden("bias")),
    *dense(f"{theirs}.weights_out", f"{ours}/down"),
  ]


def _dinov2(hf: HF) -> list[Rule]:
  at = f"{hf['model_type']}." if _classifies(hf) else ""
  stem, block, ours = f"{at}embeddings", f"{at}encoder.layer.{{i}}", "encoder/block_{i}"
  return [
    Rule(f"{stem}.cls_token", "cls", "1 1 D -> 1 D"),
    Rule(f"{stem}.mask_token", "mask_token"),
    Rule(f"{stem}.register_tokens", "registers", "1 R D -> R D"),
    Rule(f"{stem}.patch_embeddings.projection.weight", "patch_embed/proj/kernel", PATCH),
    Rule(f"{stem}.patch_embeddings.projection.bias", "patch_embed/proj/bias"),
    Rule(f"{stem}.position_embeddings", ("cls_pos", "pos_embed"), "1 N D -> N D", axis=1),
    *norm(f"{block}.norm1", f"{ours}/ln1"),
    *dense(f"{block}.attention.attention.query", f"{ours}/attn/query"),
    *dense(f"{block}.attention.attention.key", f"{ours}/attn/key"),
    *dense(f"{block}.attention.attention.value", f"{ours}/attn/value"),
    *dense(f"{block}.attention.output.dense", f"{ours}/attn/out"),
    Rule(f"{block}.layer_scale1.lambda1", f"{ours}/ls1"),
    *norm(f"{block}.norm2", f"{ours}/ln2"),
    *_mlp(hf, f"{block}.mlp", f"{ours}/mlp"),
    Rule(f"{block}.layer_scale2.lambda1", f"{ours}/ls2"),
    *norm(f"{at}layernorm", "encoder/norm"),
    *dense("classifier", "head"),
  ]


def _dinov2_model(hf: HF) -> dict[str, Any]:
  """Both families; the one with registers has other defaults and antialiases its positions."""
  with_registers = hf["model_type"] == "dinov2_with_registers"
  hf = {**_DINOV2, "patch_size": 16 if with_registers else 14, **hf}
  gated = hf.get("use_swiglu_ffn", False)
  mlp_dim = int(hf["hidden_size"] * hf["mlp_ratio"])
  if gated:  # as many parameters as without the gate, in whole eights
    mlp_dim = (int(mlp_dim * 2 / 3) + 7) // 8 * 8
  model = image({**hf, "intermediate_size": mlp_dim}) | dict(
    pool="cls_gap" if _classifies(hf) else "cls",
    cls_pos=True,
    mask_token=with_registers or hf.get("use_mask_token", True),
    layer_scale=float(hf.get("layerscale_value", 1.0)),
    gated=gated,
    qkv_bias=hf.get("qkv_bias", True),
    num_classes=num_labels(hf) if _classifies(hf) else None,
  )
  if with_registers:
    model |= dict(registers=hf.get("num_register_tokens", 4), pos_resample="antialias")
  return model | (dict(gelu="silu") if gated else {})


def _dinov2_config(model: Any, channels: int) -> dict[str, Any]:
  name = "Dinov2WithRegisters" if model.registers else "Dinov2"
  hf = image_config(model, channels)
  hidden = hf.pop("intermediate_size") * (1.5 if model.gated else 1)
  own = dict(
    model_type="dinov2_with_registers" if model.registers else "dinov2",
    architectures=[name + ("ForImageClassification" if model.num_classes else "Model")],
    mlp_ratio=round(hidden / model.width),
    use_swiglu_ffn=model.gated,
    qkv_bias=model.qkv_bias,
    layerscale_value=model.layer_scale or 1.0,
  )
  own |= dict(num_register_tokens=model.registers) if model.registers else {}
  own |= {} if model.registers else dict(use_mask_token=model.mask_token)
  return own | hf | labels(model)


FAMILIES = dict.fromkeys(
  ("dinov2", "dinov2_with_registers"),
  Family(_dinov2_model, _dinov2, patch_sizes, config=_dinov2_config),
)
