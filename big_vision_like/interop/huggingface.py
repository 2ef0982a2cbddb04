"""Hugging Face checkpoints: names and configs of each family, in both directions.

A folder holds `config.json` and `model.safetensors` (or shards and their index). The names are
those that published checkpoints store. Model files know nothing of this.
"""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from big_vision_like.config import UserError, unknown
from big_vision_like.interop import files
from big_vision_like.interop.tables import Rule, Tensors, conv, dense, norm
from big_vision_like.layers.pos_embed import sincos_2d

GELU = {"gelu": "exact", "gelu_pytorch_tanh": "tanh", "quick_gelu": "quick"}
PATCH = "D C p q -> (p q C) D"
HF = Mapping[str, Any]  # a config.json


class Family(NamedTuple):
  """What one `model_type` needs.

  Attributes:
    model: their config -> keyword arguments of our model's `make`.
    rules: their config -> the table of names.
    sizes: their config -> lengths of merged axes, for the way back.
    constants: their config -> tensors of theirs that we compute.
    ignore: a regex of their tensors that carry nothing.
  """

  model: Callable[[HF], dict[str, Any]]
  rules: Callable[[HF], list[Rule]]
  sizes: Callable[[HF], dict[str, int]] = lambda hf: {}
  constants: Callable[[HF], Tensors] = lambda hf: {}
  ignore: str = r"$^"


def read(folder: str | pathlib.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """(config, tensors by name) of a checkpoint folder.

  Raises:
    UserError: no config, no safetensors, a shard that is missing, or a pickle.
  """
  folder = pathlib.Path(folder)
  try:
    config = json.loads((folder / "config.json").read_text())
  except (OSError, ValueError) as e:
    raise UserError(f"{folder / 'config.json'} cannot be read: {e}") from None
  index = folder / "model.safetensors.index.json"
  if index.exists():
    names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    tensors = {}
    for name in names:
      if pathlib.PurePath(name).name != name:
        raise UserError(f"{index}: {name!r} is not a file of this folder")
      tensors |= files.load_safetensors(folder / name)
    return config, tensors
  if not (folder / "model.safetensors").exists() and list(folder.glob("*.bin")):
    raise UserError(
      f"{folder} holds a pickle, which can run any code; where you trust it, save it anew: "
      "AutoModel.from_pretrained(DIR).save_pretrained(OUT)"
    )
  return config, files.load_safetensors(folder / "model.safetensors")


def family(hf: HF) -> Family:
  """The entry of `hf["model_type"]`. Raises `UserError` where there is none."""
  name = hf.get("model_type", "")
  if name not in FAMILIES:
    raise unknown("config.json: model_type", name, list(FAMILIES))
  return FAMILIES[name]


def _pair(size: Any) -> tuple[int, int]:
  return tuple(size) if isinstance(size, (list, tuple)) else (size, size)


def _gelu(hf: HF) -> str:
  name = hf.get("hidden_act", "gelu")
  if name not in GELU:
    raise unknown("config.json: hidden_act", name, list(GELU))
  return GELU[name]


def _transformer(hf: HF, **defaults: Any) -> dict[str, Any]:
  """The keys that all their transformers share; `defaults` are the family's own."""
  hf = {**defaults, **hf}
  return dict(
    width=hf["hidden_size"],
    depth=hf["num_hidden_layers"],
    mlp_dim=hf["intermediate_size"],
    num_heads=hf["num_attention_heads"],
    gelu=_gelu(hf),
    eps=hf["layer_norm_eps"],
  )


def _image(hf: HF, **defaults: Any) -> dict[str, Any]:
  hf = {**defaults, **hf}
  return _transformer(hf) | dict(
    patch_size=_pair(hf["patch_size"]), image_size=_pair(hf["image_size"]), pos_embed="learn"
  )


def _patch_sizes(hf: HF) -> dict[str, int]:
  p, q = _pair(hf["patch_size"])
  return {"p": p, "q": q}


# -------------------------------------------------------------------------------- ViT and ViT-MAE

_VIT = dict(
  hidden_size=768,
  num_hidden_layers=12,
  num_attention_heads=12,
  intermediate_size=3072,
  layer_norm_eps=1e-12,
  patch_size=16,
  image_size=224,
)


def _vit_blocks(theirs: str, ours: str) -> list[Rule]:
  """The encoder layers of ViT, DeiT and ViT-MAE."""
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
    *_vit_blocks("vit.encoder.layer.{i}", "encoder/block_{i}"),
    *norm("vit.layernorm", "encoder/norm"),
    *dense("classifier", "head"),
  ]


def _mae(hf: HF) -> list[Rule]:
  return [
    *_vit_stem("encoder/"),
    *_vit_blocks("vit.encoder.layer.{i}", "encoder/encoder/block_{i}"),
    *norm("vit.layernorm", "encoder/encoder/norm"),
    *dense("decoder.decoder_embed", "decoder/embed"),
    Rule("decoder.mask_token", "decoder/mask_token", "1 1 D -> 1 D"),
    *_vit_blocks("decoder.decoder_encoder.layer.{i}", "decoder/decoder/block_{i}"),
    *norm("decoder.decoder_norm", "decoder/decoder/norm"),
    *dense("decoder.decoder_pred", "decoder/pred"),
  ]


def _mae_tables(hf: HF) -> Tensors:
  """Fixed sin-cos positions, a row of zeros for the class token."""
  image, patch = _pair(hf["image_size"]), _pair(hf["patch_size"])
  grid = (image[0] // patch[0], image[1] // patch[1])

  def table(width: int) -> np.ndarray:
    return np.pad(sincos_2d(grid, width, endpoint=False), ((1, 0), (0, 0)))[None]

  return {
    "vit.embeddings.position_embeddings": table(hf["hidden_size"]),
    "decoder.decoder_pos_embed": table(hf["decoder_hidden_size"]),
  }


def _mae_model(hf: HF) -> dict[str, Any]:
  decoder = {k[8:]: v for k, v in hf.items() if k.startswith("decoder_")}
  decoder |= {"layer_norm_eps": hf["layer_norm_eps"], "hidden_act": hf.get("hidden_act", "gelu")}
  model = _image(hf, **_VIT) | dict(pool="cls", pos_embed="sincos2d_moco")
  return dict(model=model, decoder=_transformer(decoder))


# ---------------------------------------------------------------------------------- SigLIP, CLIP


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
  text, image = "text_model.embeddings", "vision_model.embeddings"
  return [
    Rule(f"{text}.token_embedding.weight", "text/embed/embedding"),
    Rule(f"{text}.position_embedding.weight", "text/pos_embed"),
    *_clip_blocks("text_model.encoder.layers.{i}", "text/encoder/block_{i}"),
    *norm("text_model.final_layer_norm", "text/encoder/norm"),
    Rule(f"{image}.patch_embedding.weight", "image/patch_embed/proj/kernel", PATCH),
    *_clip_blocks("vision_model.encoder.layers.{i}", "image/encoder/block_{i}"),
    *norm("vision_model.post_layernorm", "image/encoder/norm"),
  ]


def _siglip(hf: HF) -> list[Rule]:
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


def _siglip_model(hf: HF) -> dict[str, Any]:
  base = dict(
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    layer_norm_eps=1e-6,
    hidden_act="gelu_pytorch_tanh",
  )
  text = {**base, "vocab_size": 32_000, "max_position_embeddings": 64, **hf["text_config"]}
  image = {**base, "patch_size": 16, "image_size": 224, **hf["vision_config"]}
  return dict(
    image=_image(image) | dict(pool="map"),
    text=_transformer(text)
    | dict(vocab_size=text["vocab_size"], max_len=text["max_position_embeddings"], pool="last"),
  )


def _clip(hf: HF) -> list[Rule]:
  image = "vision_model.embeddings"
  return [
    *_two_towers(hf),
    Rule("logit_scale", "logit_scale"),
    Rule("text_projection.weight", "text/head/kernel", "o i -> i o"),
    Rule("visual_projection.weight", "image/head/kernel", "o i -> i o"),
    Rule(f"{image}.class_embedding", "image/cls", "D -> 1 D"),
    Rule(f"{image}.position_embedding.weight", ("image/cls_pos", "image/pos_embed")),
    *norm("vision_model.pre_layrnorm", "image/pre_norm"),
  ]


def _clip_model(hf: HF) -> dict[str, Any]:
  base = dict(num_hidden_layers=12, layer_norm_eps=1e-5, hidden_act="quick_gelu")
  text = dict(hidden_size=512, intermediate_size=2048, num_attention_heads=8, vocab_size=49_408)
  text = {**base, **text, "max_position_embeddings": 77, **hf["text_config"]}
  image = dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12, patch_size=32)
  image = {**base, **image, "image_size": 224, **hf["vision_config"]}
  tower = dict(pool="cls", cls_pos=True, pre_norm=True, patch_bias=False, head_bias=False)
  return dict(
    image=_image(image) | tower,
    text=_transformer(text)
    | dict(vocab_size=text["vocab_size"], max_len=text["max_position_embeddings"])
    | dict(pool="argmax", causal=True, head_bias=False),
    embed_dim=hf.get("projection_dim", 512),
    bias_init=None,
  )


# ---------------------------------------------------------------------------------------- ResNet


def _conv_norm(theirs: str, conv_name: str, norm_name: str) -> list[Rule]:
  bn = f"{theirs}.normalization"
  return [
    *conv(f"{theirs}.convolution", f"params/{conv_name}", bias=False),
    *norm(bn, f"params/{norm_name}"),
    Rule(f"{bn}.running_mean", f"batch_stats/{norm_name}/mean"),
    Rule(f"{bn}.running_var", f"batch_stats/{norm_name}/var"),
  ]


def _resnet(hf: HF) -> list[Rule]:
  """Paths of the variables: `params/...` and `batch_stats/...`."""
  out = _conv_norm("resnet.embedder.embedder", "stem_conv", "stem_bn")
  layers = 3 if hf.get("layer_type", "bottleneck") == "bottleneck" else 2
  for s, depth in enumerate(hf["depths"]):
    for b in range(depth):
      theirs, ours = f"resnet.encoder.stages.{s}.layers.{b}", f"stage{s + 1}_block{b}"
      for k in range(layers):
        out += _conv_norm(f"{theirs}.layer.{k}", f"{ours}/conv{k + 1}", f"{ours}/bn{k + 1}")
      out += _conv_norm(f"{theirs}.shortcut", f"{ours}/shortcut_conv", f"{ours}/shortcut_bn")
  return out + dense("classifier.1", "params/head")


def _resnet_model(hf: HF) -> dict[str, Any]:
  bottleneck = hf.get("layer_type", "bottleneck") == "bottleneck"
  width = hf["hidden_sizes"][0] // (4 if bottleneck else 1)
  doubled = [width * (4 if bottleneck else 1) * 2**s for s in range(len(hf["depths"]))]
  if hf.get("downsample_in_bottleneck") or list(hf["hidden_sizes"]) != doubled:
    raise UserError("config.json: stride in the 1x1 convolution, or widths that do not double")
  return dict(bottleneck=bottleneck, stages=tuple(hf["depths"]), width=width, stem="imagenet")


FAMILIES = {
  "vit": Family(lambda hf: _image(hf, **_VIT) | dict(pool="cls", cls_pos=True), _vit, _patch_sizes),
  "vit_mae": Family(_mae_model, _mae, _patch_sizes, _mae_tables),
  "siglip": Family(_siglip_model, _siglip, lambda hf: _patch_sizes(hf["vision_config"])),
  "clip": Family(
    _clip_model,
    _clip,
    lambda hf: _patch_sizes(hf["vision_config"]),
    ignore=r".*\.position_ids",
  ),
  "resnet": Family(_resnet_model, _resnet, ignore=r".*\.num_batches_tracked"),
}
