"""ViT and ViT-MAE."""

from typing import Any

import numpy as np

from big_vision_like.interop.families import (
  HF,
  PATCH,
  Family,
  image,
  image_config,
  labels,
  pair,
  patch_sizes,
  transformer,
  transformer_config,
)
from big_vision_like.interop.tables import Rule, Tensors, dense, norm
from big_vision_like.layers.pos_embed import sincos_2d

VIT = dict(
  hidden_size=768,
  num_hidden_layers=12,
  num_attention_heads=12,
  intermediate_size=3072,
  layer_norm_eps=1e-12,
  patch_size=16,
  image_size=224,
)


def vit_blocks(theirs: str, ours: str) -> list[Rule]:
  """The encoder layers of ViT, DeiT, I-JEPA and ViT-MAE."""
  return [
    *norm(f"{theirs}.layernorm_before", f"{ours}/ln1"),
    *dense(f"{theirs}.attention.attention.query", f"{ours}/attn/query"),
    *dense(f"{theirs}.attention.attention.key", f"{ours}/attn/key"),
    *dense(f"{theirs}.attention.attention.value", f"{ours}/attn/value"),
    *dense(f"{theirs}.attention.output.dense", f"{ours}/attn/out"),
    *norm(f"{theirs}.layernorm_after", f"{ours}/ln2"),
    *dense(f"{theirs}.intermediate.dense", f"{ours}/mlp/up"),
    *dense(f"{theirs}.output.dense", f"{ours}/mlp/down"),
  ]


def _vit_stem(ours: str = "") -> list[Rule]:
  at = "vit.embeddings"
  return [
    Rule(f"{at}.cls_token", f"{ours}cls", "1 1 D -> 1 D"),
    Rule(f"{at}.patch_embeddings.projection.weight", f"{ours}patch_embed/proj/kernel", PATCH),
    Rule(f"{at}.patch_embeddings.projection.bias", f"{ours}patch_embed/proj/bias"),
  ]


def _vit(hf: HF) -> list[Rule]:
  pos = ("cls_pos", "pos_embed")
  return [
    *_vit_stem(),
    Rule("vit.embeddings.position_embeddings", pos, "1 N D -> N D", axis=1),
    *vit_blocks("vit.encoder.layer.{i}", "encoder/block_{i}"),
    *norm("vit.layernorm", "encoder/norm"),
    *dense("classifier", "head"),
  ]


def _mae(hf: HF) -> list[Rule]:
  return [
    *_vit_stem("encoder/"),
    *vit_blocks("vit.encoder.layer.{i}", "encoder/encoder/block_{i}"),
    *norm("vit.layernorm", "encoder/encoder/norm"),
    *dense("decoder.decoder_embed", "decoder/embed"),
    Rule("decoder.mask_token", "decoder/mask_token", "1 1 D -> 1 D"),
    *vit_blocks("decoder.decoder_encoder.layer.{i}", "decoder/decoder/block_{i}"),
    *norm("decoder.decoder_norm", "decoder/decoder/norm"),
    *dense("decoder.decoder_pred", "decoder/pred"),
  ]


def _mae_tables(hf: HF) -> Tensors:
  """Fixed sin-cos positions, a row of zeros for the class token."""
  size, patch = pair(hf["image_size"]), pair(hf["patch_size"])
  grid = (size[0] // patch[0], size[1] // patch[1])

  def table(width: int) -> np.ndarray:
    return np.pad(sincos_2d(grid, width, endpoint=False), ((1, 0), (0, 0)))[None]

  return {
    "vit.embeddings.position_embeddings": table(hf["hidden_size"]),
    "decoder.decoder_pos_embed": table(hf["decoder_hidden_size"]),
  }


def _mae_model(hf: HF) -> dict[str, Any]:
  decoder = {k[8:]: v for k, v in hf.items() if k.startswith("decoder_")}
  decoder |= {"layer_norm_eps": hf["layer_norm_eps"], "hidden_act": hf.get("hidden_act", "gelu")}
  model = image(hf, **VIT) | dict(pool="cls", pos_embed="sincos2d_moco")
  return dict(model=model, decoder=transformer(decoder))


def _vit_config(model: Any, channels: int) -> dict[str, Any]:
  head = model.num_classes is not None
  hf = dict(model_type="vit", architectures=["ViTForImageClassification" if head else "ViTModel"])
  return hf | labels(model) | image_config(model, channels)


def _mae_config(model: Any, channels: int) -> dict[str, Any]:
  """Shared epsilon and GELU are the encoder's."""
  decoder = transformer_config(model.decoder)
  sizes = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads")
  return (
    dict(model_type="vit_mae", architectures=["ViTMAEForPreTraining"])
    | image_config(model.encoder, channels)
    | {f"decoder_{k}": decoder[k] for k in sizes}
  )


FAMILIES = {
  "vit": Family(
    lambda hf: image(hf, **VIT) | dict(pool="cls", cls_pos=True),
    _vit,
    patch_sizes,
    ignore=r"vit\.pooler\..*",  # of bare encoders, behind the output
    config=_vit_config,
  ),
  "vit_mae": Family(_mae_model, _mae, patch_sizes, _mae_tables, kind="mae", config=_mae_config),
}
