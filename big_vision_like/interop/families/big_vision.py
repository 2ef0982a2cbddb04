"""big_vision's `.npz`: ViT, and the two towers of SigLIP and LiT. Kernels there have a heads axis.

Such a file has no config: `config_of` reads one from names and shapes. What neither shows is as in
big_vision: the tanh GELU, epsilon 1e-6, the last token as the text, sin-cos positions where no
table is stored.
"""

import math
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from big_vision_like.interop.families import HF, Family
from big_vision_like.interop.tables import Rule, Tensors

_VERY_OLD = (  # names of before 2022, as in the checkpoints of "How to train your ViT"
  ("LayerNorm_2", "LayerNorm_1"),
  ("MultiHeadDotProductAttention_1", "MultiHeadDotProductAttention_0"),
  ("MlpBlock_3", "MlpBlock_0"),
)


def is_ours(names: Iterable[str]) -> bool:
  """Whether these are names of big_vision."""
  return any("/encoderblock" in name for name in names)


def normalized(tensors: Tensors) -> Tensors:
  """The parameters only, blocks apart, by the names of today.

  A stack of `encoderblock/` (scanned) becomes `encoderblock_0/`, ...; the old position of the class
  token is added to that token, as big_vision does.
  """
  if any(name.startswith("params/") for name in tensors):
    tensors = {k[7:]: v for k, v in tensors.items() if k.startswith("params/")}
  out: dict[str, np.ndarray] = {}
  old = any("/LayerNorm_2/" in name for name in tensors)
  for name, x in tensors.items():
    name = re.sub(r"Transformer/(posembed_input/)?pos_embedding$", "pos_embedding", name)
    if old and "/encoderblock" in name:
      for before, now in _VERY_OLD:
        name = name.replace(before, now)
    if "/encoderblock/" in name:
      out |= {name.replace("block/", f"block_{i}/"): row for i, row in enumerate(x)}
    else:
      out[name] = x
  for at in ("", "img/"):
    table, cls = out.get(f"{at}pos_embedding"), out.get(f"{at}cls")
    if (
      table is not None
      and cls is not None
      and math.isqrt(table.shape[1] - 1) ** 2 == (table.shape[1] - 1)
    ):
      out[f"{at}cls"] = cls + table[:, :1]
      out[f"{at}pos_embedding"] = table[:, 1:]
  return out


# ---------------------------------------------------------------------------------------- config


def config_of(tensors: Tensors) -> dict[str, Any]:
  """Of `normalized` tensors, in the words of `FAMILIES` below.

  An image size is that of a square where the number of positions is one; else the two factors that
  lie closest.
  """
  if not any(name.startswith(("img/", "txt/")) for name in tensors):
    return {"model_type": "big_vision_vit", **_image_of(tensors)}
  below = lambda at: {k.removeprefix(at): v for k, v in tensors.items() if k.startswith(at)}
  return dict(
    model_type="big_vision_two_towers",
    vision_config=_image_of(below("img/")),
    text_config=_text_of(below("txt/")),
    bias="b" in tensors,
  )


def _encoder_of(tensors: Tensors, at: str) -> dict[str, Any]:
  block = f"{at}/encoderblock_0"
  width, heads, _ = tensors[f"{block}/MultiHeadDotProductAttention_0/query/kernel"].shape
  depth = sum(
    re.fullmatch(rf"{at}/encoderblock_\d+/LayerNorm_0/scale", k) is not None for k in tensors
  )
  mlp_dim = tensors[f"{block}/MlpBlock_0/Dense_0/kernel"].shape[1]
  head = tensors.get("head/kernel")
  classes = None if head is None else head.shape[1]
  return dict(width=width, depth=depth, mlp_dim=mlp_dim, num_heads=heads, num_classes=classes)


def _image_of(tensors: Tensors) -> dict[str, Any]:
  p, q, channels, _ = tensors["embedding/kernel"].shape
  out = _encoder_of(tensors, "Transformer") | dict(patch_size=[p, q], num_channels=channels)
  out["pool"] = "map" if "MAPHead_0/probe" in tensors else "cls" if "cls" in tensors else "gap"
  out["pos_embed"], out["image_size"] = "sincos2d", [14 * p, 14 * q]
  if "pos_embedding" in tensors:
    n = tensors["pos_embedding"].shape[1]
    h = next(h for h in range(math.isqrt(n), 0, -1) if n % h == 0)
    out["pos_embed"], out["image_size"] = "learn", [h * p, n // h * q]
  return out


def _text_of(tensors: Tensors) -> dict[str, Any]:
  return _encoder_of(tensors, "Encoder_0") | dict(
    vocab_size=tensors["Embed_0/embedding"].shape[0],
    max_len=tensors["pos_embedding"].shape[1],
    pool="map" if "MAPHead_0/probe" in tensors else "last",
  )


_ENCODER = ("width", "depth", "mlp_dim", "num_heads", "num_classes", "pool")
_IMAGE, _TEXT = (*_ENCODER, "pos_embed"), (*_ENCODER, "vocab_size", "max_len")


def _image_model(hf: HF) -> dict[str, Any]:
  sizes = {key: tuple(hf[key]) for key in ("patch_size", "image_size")}
  return {key: hf[key] for key in _IMAGE} | sizes


def _towers_model(hf: HF) -> dict[str, Any]:
  text = {key: hf["text_config"][key] for key in _TEXT}
  bias = {} if hf["bias"] else {"bias_init": None}
  return dict(image=_image_model(hf["vision_config"]), text=text, **bias)


def _image_config(model: Any, channels: int) -> dict[str, Any]:
  sizes = {key: list(getattr(model, key)) for key in ("patch_size", "image_size")}
  return {key: getattr(model, key) for key in _IMAGE} | sizes | {"num_channels": channels}


def _towers_config(model: Any, channels: int) -> dict[str, Any]:
  return dict(
    model_type="big_vision_two_towers",
    vision_config=_image_config(model.image, channels),
    text_config={key: getattr(model.text, key) for key in _TEXT},
    bias=model.bias_init is not None,
  )


# ----------------------------------------------------------------------------------------- names


def _both(theirs: str, ours: str, pattern: str | None = None) -> list[Rule]:
  """A layer whose parameters have the same names on both sides, kernels of one shape."""
  return [Rule(f"{theirs}/{leaf}", f"{ours}/{leaf}", pattern) for leaf in ("kernel", "bias")]


def _norm(theirs: str, ours: str) -> list[Rule]:
  return [Rule(f"{theirs}/{leaf}", f"{ours}/{leaf}") for leaf in ("scale", "bias")]


def _attention(theirs: str, ours: str, h: str) -> list[Rule]:
  """`h` names the axis of heads: both towers have their own number."""
  at, out = f"{theirs}/MultiHeadDotProductAttention_0", []
  for part in ("query", "key", "value"):
    out.append(Rule(f"{at}/{part}/kernel", f"{ours}/{part}/kernel", f"i {h} d -> i ({h} d)"))
    out.append(Rule(f"{at}/{part}/bias", f"{ours}/{part}/bias", f"{h} d -> ({h} d)"))
  out.append(Rule(f"{at}/out/kernel", f"{ours}/out/kernel", f"{h} d o -> ({h} d) o"))
  return [*out, Rule(f"{at}/out/bias", f"{ours}/out/bias")]


def _mlp(theirs: str, ours: str) -> list[Rule]:
  up, down = f"{theirs}/MlpBlock_0/Dense_0", f"{theirs}/MlpBlock_0/Dense_1"
  return [*_both(up, f"{ours}/up"), *_both(down, f"{ours}/down")]


def _tower(theirs: str, encoder: str, ours: str, h: str) -> list[Rule]:
  """Positions, encoder, attention pooling and head, in `theirs` and `ours` ("img/", "image/")."""
  block, our_block = f"{theirs}{encoder}/encoderblock_{{i}}", f"{ours}encoder/block_{{i}}"
  pool, our_pool = f"{theirs}MAPHead_0", f"{ours}pool"
  return [
    Rule(f"{theirs}pos_embedding", f"{ours}pos_embed", "1 N D -> N D"),
    *_norm(f"{block}/LayerNorm_0", f"{our_block}/ln1"),
    *_attention(block, f"{our_block}/attn", h),
    *_norm(f"{block}/LayerNorm_1", f"{our_block}/ln2"),
    *_mlp(block, f"{our_block}/mlp"),
    *_norm(f"{theirs}{encoder}/encoder_norm", f"{ours}encoder/norm"),
    Rule(f"{pool}/probe", f"{our_pool}/probe"),
    *_attention(pool, f"{our_pool}/attn", h),
    *_norm(f"{pool}/LayerNorm_0", f"{our_pool}/norm"),
    *_mlp(pool, f"{our_pool}/mlp"),
    *_both(f"{theirs}head", f"{ours}head"),
  ]


def _vit(hf: HF, theirs: str = "", ours: str = "") -> list[Rule]:
  at, patch = f"{theirs}embedding", f"{ours}patch_embed/proj"
  return [
    Rule(f"{at}/kernel", f"{patch}/kernel", "p q C D -> (p q C) D"),
    Rule(f"{at}/bias", f"{patch}/bias"),
    Rule(f"{theirs}cls", f"{ours}cls", "1 1 D -> 1 D"),
    *_tower(theirs, "Transformer", ours, "h"),
  ]


def _two_towers(hf: HF) -> list[Rule]:
  return [
    *_vit(hf, "img/", "image/"),
    Rule("txt/Embed_0/embedding", "text/embed/embedding"),
    *_tower("txt/", "Encoder_0", "text/", "g"),
    Rule("t", "logit_scale", "1 -> "),
    Rule("b", "logit_bias", "1 -> "),
  ]


def _sizes(hf: HF) -> dict[str, int]:
  image = hf.get("vision_config", hf)
  p, q = image["patch_size"]
  text = {"g": hf["text_config"]["num_heads"]} if "text_config" in hf else {}
  return {"p": p, "q": q, "h": image["num_heads"], **text}


FAMILIES = {
  "big_vision_vit": Family(
    _image_model,
    _vit,
    _sizes,
    config=lambda model, channels: {
      "model_type": "big_vision_vit",
      **_image_config(model, channels),
    },
  ),
  "big_vision_two_towers": Family(
    _towers_model, _two_towers, _sizes, kind="two_towers", config=_towers_config
  ),
}
