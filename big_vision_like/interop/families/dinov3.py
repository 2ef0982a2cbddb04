"""DINOv3 ViT."""

from typing import Any

import numpy as np

from big_vision_like.config import UserError
from big_vision_like.interop.families import HF, PATCH, Family, image, image_config, patch_sizes
from big_vision_like.interop.tables import Rule, Tensors, dense, norm

_DINOV3 = dict(
  hidden_size=384,
  num_hidden_layers=12,
  num_attention_heads=6,
  intermediate_size=1536,
  layer_norm_eps=1e-5,
  patch_size=16,
  image_size=224,
)


def _dinov3(hf: HF) -> list[Rule]:
  block, ours = "layer.{i}", "encoder/block_{i}"
  return [
    Rule("embeddings.cls_token", "cls", "1 1 D -> 1 D"),
    Rule("embeddings.mask_token", "mask_token", "1 1 D -> 1 D"),
    Rule("embeddings.register_tokens", "registers", "1 R D -> R D"),
    Rule("embeddings.patch_embeddings.weight", "patch_embed/proj/kernel", PATCH),
    Rule("embeddings.patch_embeddings.bias", "patch_embed/proj/bias"),
    *norm(f"{block}.norm1", f"{ours}/ln1"),
    *dense(f"{block}.attention.q_proj", f"{ours}/attn/query"),
    *dense(f"{block}.attention.k_proj", f"{ours}/attn/key"),
    *dense(f"{block}.attention.v_proj", f"{ours}/attn/value"),
    *dense(f"{block}.attention.o_proj", f"{ours}/attn/out"),
    Rule(f"{block}.layer_scale1.lambda1", f"{ours}/ls1"),
    *norm(f"{block}.norm2", f"{ours}/ln2"),
    *dense(f"{block}.mlp.gate_proj", f"{ours}/mlp/gate"),
    *dense(f"{block}.mlp.up_proj", f"{ours}/mlp/up"),
    *dense(f"{block}.mlp.down_proj", f"{ours}/mlp/down"),
    Rule(f"{block}.layer_scale2.lambda1", f"{ours}/ls2"),
    *norm("norm", "encoder/norm"),
  ]


def _dinov3_model(hf: HF) -> dict[str, Any]:
  biases = [hf.get(f"{part}_bias", part != "key") for part in ("query", "key", "value")]
  for name, want in (("rope_theta", 100.0), ("proj_bias", True), ("mlp_bias", True)):
    if hf.get(name, want) != want:
      raise UserError(f"config.json: {name} = {hf[name]!r}; our model has {want!r}")
  if biases not in ([True] * 3, [True, False, True], [False] * 3):
    raise UserError(
      f"config.json: query_bias, key_bias, value_bias = {biases}; expected all, none "
      "or all but key_bias"
    )
  return image(hf, **_DINOV3) | dict(
    pool="cls",
    pos_embed="rope_centred",
    registers=hf.get("num_register_tokens", 0),
    mask_token=True,
    layer_scale=float(hf.get("layerscale_value", 1.0)),
    gated=hf.get("use_gated_mlp", False),
    qkv_bias=biases[0],
    key_bias=biases[1],
  )


def _no_registers(hf: HF) -> Tensors:
  """Where there are none the file still has their tensor, of no rows."""
  if hf.get("num_register_tokens", 0):
    return {}
  return {"embeddings.register_tokens": np.zeros((1, 0, hf["hidden_size"]), np.float32)}


def _dinov3_config(model: Any, channels: int) -> dict[str, Any]:
  own = dict(
    model_type="dinov3_vit",
    architectures=["DINOv3ViTModel"],
    num_register_tokens=model.registers,
    layerscale_value=model.layer_scale or 1.0,
    use_gated_mlp=model.gated,
    query_bias=model.qkv_bias,
    key_bias=model.qkv_bias and model.key_bias,
    value_bias=model.qkv_bias,
  )
  return own | image_config(model, channels)


FAMILIES = {
  "dinov3_vit": Family(_dinov3_model, _dinov3, patch_sizes, _no_registers, config=_dinov3_config)
}
