"""Vision Transformers of timm: a hub `config.json` names an architecture, not its sizes."""

import re
from collections.abc import Mapping
from typing import Any

from big_vision_like.config import UserError, unknown
from big_vision_like.interop.families import HF, PATCH, Family, pair, whole_patches
from big_vision_like.interop.tables import Rule, dense, norm

SIZES = {  # embed_dim, depth, num_heads, mlp_ratio
  "tiny": (192, 12, 3, 4),
  "xsmall": (256, 10, 4, 4),
  "small": (384, 12, 6, 4),
  "medium": (512, 12, 8, 4),
  "mediumd": (512, 20, 8, 4),
  "betwixt": (640, 12, 10, 4),
  "base": (768, 12, 12, 4),
  "large": (1024, 24, 16, 4),
  "so400m": (1152, 27, 16, 3.7362),
  "huge": (1280, 32, 16, 4),
  "giant": (1408, 40, 16, 48 / 11),
  "giantopt": (1536, 40, 16, 4),
  "gigantic": (1664, 48, 16, 64 / 13),
}
WORDS = {  # what a word of the name adds to the arguments of `timm.models.VisionTransformer`
  "clip": dict(pre_norm=True, eps=1e-5),
  "quickgelu": dict(act_layer="quick_gelu"),
  "siglip": dict(class_token=False, global_pool="map"),
  "gap": dict(class_token=False, global_pool="avg"),
  "map": dict(class_token=False, global_pool="map"),
  "dinov2": dict(init_values=1e-5),
  "distilled": dict(distilled=True),
}
DEFAULTS = dict(
  num_classes=1000,
  global_pool="token",
  qkv_bias=True,
  init_values=None,
  class_token=True,
  pos_embed="learn",
  no_embed_class=False,
  reg_tokens=0,
  pre_norm=False,
  final_norm=True,
  fc_norm=None,
  act_layer="gelu",
  eps=1e-6,
  distilled=False,
  swiglu=False,
)
IGNORED = ("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate")
IGNORED += ("drop_path_rate", "weight_init", "fix_init", "dynamic_img_size", "in_chans")
POOL = {"token": "cls", "avg": "gap", "map": "map", "": "none"}
ACT = {"gelu": "exact", "gelu_tanh": "tanh", "quick_gelu": "quick", "silu": "silu"}


def detect(config: Mapping[str, Any]) -> dict[str, Any] | None:
  """The `config.json` of a timm model on the hub with its `model_type`, or None."""
  if "architecture" in config and "model_type" not in config:
    return {"model_type": "timm", **config}
  return None


def arguments(hf: HF) -> dict[str, Any]:
  """Arguments of `timm.models.VisionTransformer`: by name, then `model_args`, then the top level.

  Raises:
    UserError: an architecture or an argument that we do not have.
  """
  name = hf["architecture"].split(".")[0]
  args = {**DEFAULTS, **_named(name), **hf.get("model_args", {})}
  args |= {k: hf[k] for k in ("num_classes", "global_pool") if k in hf}
  args.setdefault("img_size", hf.get("pretrained_cfg", {}).get("input_size", [3, 224, 224])[1:])
  known = {*DEFAULTS, *IGNORED, "embed_dim", "depth", "num_heads", "mlp_ratio"}
  for key in args:
    if key not in known | {"img_size", "patch_size"}:
      raise UserError(f"config.json: model_args.{key} = {args[key]!r} of {name} is not supported")
  for key, choices in dict(global_pool=POOL, act_layer=ACT, pos_embed=("learn", "none")).items():
    if args[key] not in choices:
      raise unknown(f"config.json: {key}", args[key], list(choices))
  for key in ("embed_dim", "depth", "num_heads"):
    if key not in args:
      raise UserError(f"config.json: architecture {name!r} has no sizes known here; set model_args")
  if args["reg_tokens"] and not args["no_embed_class"]:
    raise UserError("config.json: positions of register tokens are not supported")
  if not args["final_norm"]:
    raise UserError("config.json: final_norm = False is not supported")
  if args["fc_norm"] is None:
    args["fc_norm"] = args["global_pool"] == "avg"
  return args


def _named(name: str) -> dict[str, Any]:
  """What the architecture's name says: `vit_base_patch16_clip_quickgelu_224`."""
  found = re.fullmatch(r"(vit|deit3?)_(\w+?)_(distilled_)?patch(\d+)((?:_[a-z]+\d?)*)_?(\d*)", name)
  if not found or found[2] not in SIZES:
    return {}
  kind, size, distilled, patch, words, image = found.groups()
  out = dict(zip(("embed_dim", "depth", "num_heads", "mlp_ratio"), SIZES[size]))
  out |= dict(patch_size=int(patch), distilled=bool(distilled))
  out |= dict(img_size=int(image)) if image else dict(img_size=518) if "dinov2" in words else {}
  words = words.split("_")[1:]
  for word in words:
    if word in WORDS:
      out |= WORDS[word]
    elif re.fullmatch(r"reg\d", word):
      out |= dict(reg_tokens=int(word[3:]), no_embed_class=True)
    else:
      return {}
  if "gap" in words and not out.get("reg_tokens"):
    out |= dict(fc_norm=False)
    if name == "vit_base_patch16_gap_224":
      out |= dict(num_heads=16)
    if size in ("medium", "betwixt"):
      out |= dict(qkv_bias=False, init_values=1e-6)
  elif "gap" in words and size != "base":
    out |= dict(init_values=1e-5)
  elif "map" in words and "siglip" not in words:
    out |= dict(no_embed_class=False)
  if (size, *words[-1:]) == ("giant", "dinov2"):
    out |= dict(embed_dim=1536, num_heads=24, mlp_ratio=2.66667 * 2, swiglu=True, act_layer="silu")
  if kind == "deit3":
    out |= dict(no_embed_class=True, init_values=1e-6)
  return out


def tower(hf: HF) -> dict[str, Any]:
  """Keyword arguments of `models.vit.make`, without scan, remat and dtype."""
  args = arguments(hf)
  mlp_dim = int(args["embed_dim"] * args.get("mlp_ratio", 4))
  out = dict(
    width=args["embed_dim"],
    depth=args["depth"],
    num_heads=args["num_heads"],
    mlp_dim=mlp_dim // 2 if args["swiglu"] else mlp_dim,
    patch_size=pair(args.get("patch_size", 16)),
    image_size=whole_patches(args["img_size"], args.get("patch_size", 16)),
    pool=POOL[args["global_pool"]],
    pos_embed=args["pos_embed"],
    cls_pos=args["class_token"] and args["pos_embed"] == "learn" and not args["no_embed_class"],
    registers=args["reg_tokens"],
    num_classes=args["num_classes"] or None,
    pre_norm=args["pre_norm"],
    patch_bias=not args["pre_norm"],
    norm_pooled=args["fc_norm"],
    gelu=ACT[args["act_layer"]],
    eps=args["eps"],
  )
  if args["class_token"] and args["global_pool"] != "token":
    out["cls_token"] = True
  if args["init_values"]:
    out["layer_scale"] = args["init_values"]
  if not args["qkv_bias"]:
    out["qkv_bias"] = False
  if args["swiglu"]:
    out["gated"] = True
  if args["distilled"]:
    out |= dict(dist_token=True, dist_head=bool(args["num_classes"]))
  return out


def qkv(theirs: str, ours: str, parts: tuple[str, ...] = ("query", "key", "value")) -> list[Rule]:
  """A linear layer that they have for several of ours: weight [parts * out, in] and bias."""
  paths = lambda leaf: tuple(f"{ours}/{part}/{leaf}" for part in parts)
  return [
    Rule(f"{theirs}weight", paths("kernel"), "o i -> i o"),
    Rule(f"{theirs}bias", paths("bias")),
  ]


def table(hf: HF, theirs: str = "", ours: str = "") -> list[Rule]:
  """The names below the prefixes `theirs` and `ours`."""
  args = arguments(hf)
  block, at = f"{theirs}blocks.{{i}}", f"{ours}encoder/block_{{i}}"
  positions = [f"{ours}pos_embed"]
  if args["class_token"] and not args["no_embed_class"]:
    dist = [f"{ours}dist_pos"] * args["distilled"]
    positions = [f"{ours}cls_pos", *dist, *positions]
  up = [*dense(f"{block}.mlp.fc1", f"{at}/mlp/up")]
  if args["swiglu"]:
    up = qkv(f"{block}.mlp.fc1.", f"{at}/mlp", ("gate", "up"))
  last = ("fc_norm", "norm") if args["fc_norm"] else ("norm", "encoder/norm")
  pool = f"{theirs}attn_pool"
  return [
    Rule(f"{theirs}cls_token", f"{ours}cls", "1 1 D -> 1 D"),
    Rule(f"{theirs}dist_token", f"{ours}dist", "1 1 D -> 1 D"),
    Rule(f"{theirs}reg_token", f"{ours}registers", "1 R D -> R D"),
    Rule(f"{theirs}pos_embed", tuple(positions), "1 N D -> N D", axis=1),
    Rule(f"{theirs}patch_embed.proj.weight", f"{ours}patch_embed/proj/kernel", PATCH),
    Rule(f"{theirs}patch_embed.proj.bias", f"{ours}patch_embed/proj/bias"),
    *norm(f"{theirs}norm_pre", f"{ours}pre_norm"),
    *norm(f"{block}.norm1", f"{at}/ln1"),
    *qkv(f"{block}.attn.qkv.", f"{at}/attn"),
    *dense(f"{block}.attn.proj", f"{at}/attn/out"),
    Rule(f"{block}.ls1.gamma", f"{at}/ls1"),
    *norm(f"{block}.norm2", f"{at}/ln2"),
    *up,
    *dense(f"{block}.mlp.fc2", f"{at}/mlp/down"),
    Rule(f"{block}.ls2.gamma", f"{at}/ls2"),
    *norm(f"{theirs}{last[0]}", f"{ours}{last[1]}"),
    Rule(f"{pool}.latent", f"{ours}pool/probe"),
    *dense(f"{pool}.q", f"{ours}pool/attn/query"),
    *qkv(f"{pool}.kv.", f"{ours}pool/attn", ("key", "value")),
    *dense(f"{pool}.proj", f"{ours}pool/attn/out"),
    *norm(f"{pool}.norm", f"{ours}pool/norm"),
    *dense(f"{pool}.mlp.fc1", f"{ours}pool/mlp/up"),
    *dense(f"{pool}.mlp.fc2", f"{ours}pool/mlp/down"),
    *dense(f"{theirs}head", f"{ours}head"),
    *dense(f"{theirs}head_dist", f"{ours}head_dist"),
  ]


def sizes(hf: HF) -> dict[str, int]:
  """Height and width of a patch."""
  p, q = pair(arguments(hf).get("patch_size", 16))
  return {"p": p, "q": q}


FAMILIES = {"timm": Family(tower, table, sizes)}
