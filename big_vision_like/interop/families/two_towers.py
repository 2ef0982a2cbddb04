"""SigLIP and CLIP: an image and a text tower. Images of another size resample the positions."""

from typing import Any

from big_vision_like.interop.families import (
  HF,
  PATCH,
  Family,
  image,
  image_config,
  patch_sizes,
  square,
  transformer,
  transformer_config,
  whole_patches,
)
from big_vision_like.interop.tables import Rule, dense, norm


def _clip_blocks(theirs: str, ours: str) -> list[Rule]:
  """The encoder layers of CLIP and SigLIP, both towers."""
  return [
    *norm(f"{theirs}.layer_norm1", f"{ours}/ln1"),
    *dense(f"{theirs}.self_attn.q_proj", f"{ours}/attn/query"),
    *dense(f"{theirs}.self_attn.k_proj", f"{ours}/attn/key"),
    *dense(f"{theirs}.self_attn.v_proj", f"{ours}/attn/value"),
    *dense(f"{theirs}.self_attn.out_proj", f"{ours}/attn/out"),
    *norm(f"{theirs}.layer_norm2", f"{ours}/ln2"),
    *dense(f"{theirs}.mlp.fc1", f"{ours}/mlp/up"),
    *dense(f"{theirs}.mlp.fc2", f"{ours}/mlp/down"),
  ]


def _two_towers(hf: HF) -> list[Rule]:
  """What both have."""
  text, vision = "text_model.embeddings", "vision_model.embeddings"
  return [
    Rule(f"{text}.token_embedding.weight", "text/embed/embedding"),
    Rule(f"{text}.position_embedding.weight", "text/pos_embed"),
    *_clip_blocks("text_model.encoder.layers.{i}", "text/encoder/block_{i}"),
    *norm("text_model.final_layer_norm", "text/encoder/norm"),
    Rule(f"{vision}.patch_embedding.weight", "image/patch_embed/proj/kernel", PATCH),
    *_clip_blocks("vision_model.encoder.layers.{i}", "image/encoder/block_{i}"),
    *norm("vision_model.post_layernorm", "image/encoder/norm"),
  ]


SIGLIP = dict(
  hidden_size=768,
  num_hidden_layers=12,
  num_attention_heads=12,
  intermediate_size=3072,
  layer_norm_eps=1e-6,
  hidden_act="gelu_pytorch_tanh",
)


def siglip(hf: HF) -> list[Rule]:
  """SigLIP, and SigLIP 2 at a fixed size."""
  pool, ours = "vision_model.head", "image/pool"
  qkv = lambda leaf: tuple(f"{ours}/attn/{part}/{leaf}" for part in ("query", "key", "value"))
  return [
    *_two_towers(hf),
    Rule("logit_scale", "logit_scale", "1 -> "),
    Rule("logit_bias", "logit_bias", "1 -> "),
    *dense("text_model.head", "text/head"),
    Rule("vision_model.embeddings.patch_embedding.bias", "image/patch_embed/proj/bias"),
    Rule("vision_model.embeddings.position_embedding.weight", "image/pos_embed"),
    Rule(f"{pool}.probe", f"{ours}/probe"),
    Rule(f"{pool}.attention.in_proj_weight", qkv("kernel"), "o i -> i o"),
    Rule(f"{pool}.attention.in_proj_bias", qkv("bias")),
    *dense(f"{pool}.attention.out_proj", f"{ours}/attn/out"),
    *norm(f"{pool}.layernorm", f"{ours}/norm"),
    *dense(f"{pool}.mlp.fc1", f"{ours}/mlp/up"),
    *dense(f"{pool}.mlp.fc2", f"{ours}/mlp/down"),
  ]


def siglip_text(hf: HF) -> dict[str, Any]:
  """The text tower; the last token is the text, padding is seen like any other token."""
  text = {**SIGLIP, "vocab_size": 32_000, "max_position_embeddings": 64, **hf["text_config"]}
  return transformer(text) | dict(
    vocab_size=text["vocab_size"], max_len=text["max_position_embeddings"], pool="last"
  )


def _siglip_model(hf: HF) -> dict[str, Any]:
  vision = {**SIGLIP, "patch_size": 16, "image_size": 224, **hf["vision_config"]}
  size = whole_patches(vision["image_size"], vision["patch_size"])  # so400m/14 at 384
  tower = dict(pool="map", pos_resample="bicubic", image_size=size)
  return dict(image=image(vision) | tower, text=siglip_text(hf))


def _clip(hf: HF) -> list[Rule]:
  vision = "vision_model.embeddings"
  return [
    *_two_towers(hf),
    Rule("logit_scale", "logit_scale"),
    Rule("text_projection.weight", "text/head/kernel", "o i -> i o"),
    Rule("visual_projection.weight", "image/head/kernel", "o i -> i o"),
    Rule(f"{vision}.class_embedding", "image/cls", "D -> 1 D"),
    Rule(f"{vision}.position_embedding.weight", ("image/cls_pos", "image/pos_embed")),
    *norm("vision_model.pre_layrnorm", "image/pre_norm"),
  ]


def _clip_model(hf: HF) -> dict[str, Any]:
  base = dict(num_hidden_layers=12, layer_norm_eps=1e-5, hidden_act="quick_gelu")
  text = dict(hidden_size=512, intermediate_size=2048, num_attention_heads=8, vocab_size=49_408)
  text = {**base, **text, "max_position_embeddings": 77, **hf["text_config"]}
  vision = dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12, patch_size=32)
  vision = {**base, **vision, "image_size": 224, **hf["vision_config"]}
  tower = dict(pool="cls", cls_pos=True, pre_norm=True, patch_bias=False, head_bias=False)
  tower["pos_resample"] = "bicubic"
  # The highest id is the end of text, save where a config says that it is another (2: it lies).
  end, last = text.get("eos_token_id", 49_407), text["vocab_size"] - 1
  pool = dict(pool="argmax") if end in (2, last) else dict(pool="eos", eos_id=end)
  return dict(
    image=image(vision) | tower,
    text=transformer(text)
    | dict(vocab_size=text["vocab_size"], max_len=text["max_position_embeddings"])
    | pool
    | dict(causal=True, head_bias=False),
    embed_dim=hf.get("projection_dim", 512),
    bias_init=None,
  )


def _towers_config(model: Any, channels: int) -> dict[str, Any]:
  """What SigLIP and CLIP share; their image and patch sizes are one number."""
  square(model.image.image_size, "config.model.image.image_size")
  square(model.image.patch_size, "config.model.image.patch_size")
  text = transformer_config(model.text)
  text |= dict(vocab_size=model.text.vocab_size, max_position_embeddings=model.text.max_len)
  return dict(text_config=text, vision_config=image_config(model.image, channels))


def _siglip_config(model: Any, channels: int) -> dict[str, Any]:
  hf = _towers_config(model, channels)
  hf["text_config"] |= dict(projection_size=model.image.width, bos_token_id=None, eos_token_id=None)
  return dict(model_type="siglip", architectures=["SiglipModel"]) | hf


def _clip_config(model: Any, channels: int) -> dict[str, Any]:
  """The end of the text is where the id is highest, which they say by the id 2."""
  hf = _towers_config(model, channels)
  hf["text_config"] |= dict(bos_token_id=None, eos_token_id=2)
  own = dict(model_type="clip", architectures=["CLIPModel"], projection_dim=model.image.num_classes)
  return own | hf


_sizes = lambda hf: patch_sizes(hf["vision_config"])
_TOWERS = dict(kind="two_towers")

FAMILIES = {
  "siglip": Family(_siglip_model, siglip, _sizes, config=_siglip_config, **_TOWERS),
  "clip": Family(
    _clip_model, _clip, _sizes, ignore=r".*\.position_ids", config=_clip_config, **_TOWERS
  ),
}
