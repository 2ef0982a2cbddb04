"""CLIP and SigLIP as open_clip stores them: `open_clip_config.json` and its state dict."""

from collections.abc import Mapping
from typing import Any

from big_vision_like.config import UserError, unknown
from big_vision_like.interop.families import HF, PATCH, Family, pair, timm
from big_vision_like.interop.tables import Rule, dense, norm

VISION = dict(
  layers=12,
  width=768,
  head_width=64,
  mlp_ratio=4.0,
  patch_size=16,
  image_size=224,
  ls_init_value=None,
  no_ln_pre=False,
  pos_embed_type="learnable",
  final_ln_after_pool=False,
  pool_type="tok",
  act_kwargs=None,
  norm_kwargs=None,
)
TEXT = dict(
  context_length=77,
  vocab_size=49_408,
  width=512,
  heads=8,
  layers=12,
  mlp_ratio=4.0,
  eos_id=2,
  no_causal_mask=False,
  pool_type="argmax",
  proj_bias=False,
  proj_type="linear",
  act_kwargs=None,
  norm_kwargs=None,
)
TRUNK = ("timm_model_name", "timm_pool", "timm_proj", "timm_proj_bias", "image_size")
# What says nothing of the parameters, or nothing outside training.
IGNORED = ("patch_dropout", "output_tokens", "pad_id", "attn_pooler_queries", "attn_pooler_heads")
IGNORED += ("timm_model_pretrained", "timm_drop", "timm_drop_path", "block_type", "tokenizer_mode")
IGNORED += ("hf_tokenizer_name", "tokenizer_kwargs", "hf_model_pretrained")


def detect(config: Mapping[str, Any]) -> dict[str, Any] | None:
  """An `open_clip_config.json`, or its `model_cfg` alone, with its `model_type`, or None."""
  if "model_type" in config:
    return None
  if "vision_cfg" in config and "text_cfg" in config:
    return {"model_type": "open_clip", "model_cfg": dict(config)}
  return {"model_type": "open_clip", **config} if "model_cfg" in config else None


def _parts(hf: HF) -> tuple[HF, dict[str, Any], dict[str, Any]]:
  """(model_cfg, vision_cfg, text_cfg), the last two with open_clip's defaults.

  Raises:
    UserError: what our towers do not have.
  """
  cfg = hf["model_cfg"]
  if "multimodal_cfg" in cfg:
    raise UserError(
      "open_clip's CoCa is not the paper's, which we have: one pooler whose first query is the "
      "image, norms of its queries and keys, no start token; it cannot be converted"
    )
  vision, text = dict(cfg["vision_cfg"]), dict(cfg["text_cfg"])
  known = dict.fromkeys(TRUNK) if vision.get("timm_model_name") else VISION
  for part, given, names in (("vision_cfg", vision, known), ("text_cfg", text, TEXT)):
    for key, value in given.items():
      if key not in names and key not in IGNORED and value not in (None, False):
        raise UserError(f"open_clip_config.json: {part}.{key} = {value!r} is not supported")
  vision = {**(VISION if known is VISION else {}), **vision}
  if known is VISION:
    if not isinstance(vision["layers"], int):
      raise UserError("open_clip_config.json: vision_cfg.layers: a ResNet tower is not supported")
    for key, choices in (("pool_type", ("tok", "avg")), ("pos_embed_type", ("learnable",))):
      if vision[key] not in choices:
        raise unknown(f"open_clip_config.json: vision_cfg.{key}", vision[key], list(choices))
  text = {**TEXT, **text}
  if text["proj_type"] != "linear":
    raise UserError("open_clip_config.json: text_cfg.proj_type: only 'linear' is supported")
  return cfg, vision, text


def _common(cfg: HF, part: HF) -> dict[str, Any]:
  act = "quick" if cfg.get("quick_gelu") else "exact"
  if (part["act_kwargs"] or {}).get("approximate") == "tanh":
    act = "tanh"
  out = dict(
    width=part["width"],
    depth=part["layers"],
    mlp_dim=int(part["width"] * part["mlp_ratio"]),
    gelu=act,
    eps=(part["norm_kwargs"] or {}).get("eps", 1e-5),
  )
  return out | ({"layer_scale": part["ls_init_value"]} if part.get("ls_init_value") else {})


def _trunk(vision: HF) -> dict[str, Any]:
  """The timm tower as a config of timm's family."""
  out = dict(architecture=vision["timm_model_name"], num_classes=0, model_args={})
  out |= {"global_pool": vision["timm_pool"]} if vision.get("timm_pool") else {}
  if "image_size" in vision:
    out["model_args"]["img_size"] = vision["image_size"]
  return out


def _image(cfg: HF, vision: HF) -> dict[str, Any]:
  if not vision.get("timm_model_name"):
    return _common(cfg, vision) | dict(
      num_heads=vision["width"] // vision["head_width"],
      patch_size=pair(vision["patch_size"]),
      image_size=pair(vision["image_size"]),
      pool="cls" if vision["pool_type"] == "tok" else "gap",
      cls_token=True,
      cls_pos=True,
      pre_norm=not vision["no_ln_pre"],
      norm_pooled=vision["final_ln_after_pool"],
      patch_bias=False,
      num_classes=cfg["embed_dim"],
      head_bias=False,
    )
  # No projection, one behind the trunk, or the trunk's own classifier.
  proj = vision.get("timm_proj", "linear") or ""
  if proj not in ("linear", "none", ""):
    raise unknown("open_clip_config.json: vision_cfg.timm_proj", proj, ["linear", "none", ""])
  size = None if proj == "none" else cfg["embed_dim"]
  bias = not proj or vision.get("timm_proj_bias", False)
  return timm.tower(_trunk(vision)) | dict(num_classes=size, head_bias=bias)


def _model(hf: HF) -> dict[str, Any]:
  cfg, vision, text = _parts(hf)
  end = {"eos_id": text["eos_id"]} if text["pool_type"] == "eos" else {}
  return dict(
    image=_image(cfg, vision),
    text=_common(cfg, text)
    | end
    | dict(
      num_heads=text["heads"],
      vocab_size=text["vocab_size"],
      max_len=text["context_length"],
      pool=text["pool_type"],
      causal=not text["no_causal_mask"],
      num_classes=cfg["embed_dim"],
      head_bias=text["proj_bias"],
    ),
    bias_init=cfg.get("init_logit_bias"),
  )


def _blocks(theirs: str, ours: str) -> list[Rule]:
  theirs, ours = f"{theirs}transformer.resblocks.{{i}}", f"{ours}/encoder/block_{{i}}"
  return [
    *norm(f"{theirs}.ln_1", f"{ours}/ln1"),
    *timm.qkv(f"{theirs}.attn.in_proj_", f"{ours}/attn"),
    *dense(f"{theirs}.attn.out_proj", f"{ours}/attn/out"),
    Rule(f"{theirs}.ls_1.gamma", f"{ours}/ls1"),
    *norm(f"{theirs}.ln_2", f"{ours}/ln2"),
    *dense(f"{theirs}.mlp.c_fc", f"{ours}/mlp/up"),
    *dense(f"{theirs}.mlp.c_proj", f"{ours}/mlp/down"),
    Rule(f"{theirs}.ls_2.gamma", f"{ours}/ls2"),
  ]


def _table(hf: HF) -> list[Rule]:
  cfg, vision, text = _parts(hf)
  at = "text." if cfg.get("custom_text") else ""
  head = [Rule(f"{at}text_projection", "text/head/kernel")]
  if text["proj_bias"]:
    head = dense(f"{at}text_projection", "text/head")
  scalar = "1 -> " if cfg.get("nonscalar_logit_scale") else None
  out = [
    Rule("logit_scale", "logit_scale", scalar),
    Rule("logit_bias", "logit_bias", scalar),
    Rule(f"{at}token_embedding.weight", "text/embed/embedding"),
    Rule(f"{at}positional_embedding", "text/pos_embed"),
    *_blocks(at, "text"),
    *norm(f"{at}ln_final", "text/encoder/norm"),
    *head,
  ]
  if vision.get("timm_model_name"):
    trunk = timm.table(_trunk(vision), "visual.trunk.", "image/")
    if vision.get("timm_proj", "linear"):
      trunk = [rule for rule in trunk if not rule.theirs.startswith("visual.trunk.head.")]
      trunk += dense("visual.head.proj", "image/head")
    return out + trunk
  last = "image/norm" if vision["final_ln_after_pool"] else "image/encoder/norm"
  return out + [
    Rule("visual.conv1.weight", "image/patch_embed/proj/kernel", PATCH),
    Rule("visual.class_embedding", "image/cls", "D -> 1 D"),
    Rule("visual.positional_embedding", ("image/cls_pos", "image/pos_embed")),
    *norm("visual.ln_pre", "image/pre_norm"),
    *_blocks("visual.", "image"),
    *norm("visual.ln_post", last),
    Rule("visual.proj", "image/head/kernel"),
  ]


def _sizes(hf: HF) -> dict[str, int]:
  vision = _parts(hf)[1]
  if vision.get("timm_model_name"):
    return timm.sizes(_trunk(vision))
  p, q = pair(vision["patch_size"])
  return {"p": p, "q": q}


FAMILIES = {
  "open_clip": Family(_model, _table, _sizes, ignore=r"(text\.)?attn_mask", kind="two_towers")
}
