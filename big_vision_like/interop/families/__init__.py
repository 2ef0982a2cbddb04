"""What one `model_type` of Hugging Face needs: its config in our words, and the table of names.

Each file here has `FAMILIES = {model_type: Family(...)}`; the names are those that published
checkpoints store. Model files know nothing of this. A file may also have `detect(config)`, which
gives the config with a `model_type` where it is of a library that writes none, else None.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from big_vision_like.config import UserError, modules, unknown
from big_vision_like.interop.tables import Rule, Tensors

GELU = {
  "gelu": "exact",
  "gelu_pytorch_tanh": "tanh",
  "gelu_new": "tanh",
  "quick_gelu": "quick",
  "silu": "silu",
}
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
    kind: what `model` describes, a key of `build.KINDS`: a file of models/, or two_towers or mae.
    config: `(model of ours, channels) -> their config`, or None where none is written. It need not
      check: `build.export` makes a model of it again, and what differs cannot be said there.
  """

  model: Callable[[HF], dict[str, Any]]
  rules: Callable[[HF], list[Rule]]
  sizes: Callable[[HF], dict[str, int]] = lambda hf: {}
  constants: Callable[[HF], Tensors] = lambda hf: {}
  ignore: str = r"$^"
  kind: str = "vit"
  config: Callable[[Any, int], dict[str, Any]] | None = None


def family(hf: HF) -> Family:
  """The entry of `hf["model_type"]`. Raises `UserError` where there is none."""
  known = {k: v for module in modules(__name__, __path__) for k, v in module.FAMILIES.items()}
  name = hf.get("model_type", "")
  if name not in known:
    raise unknown("config.json: model_type", name, list(known))
  return known[name]


def pair(size: Any) -> tuple[int, int]:
  """(height, width), a square from one number."""
  return tuple(size) if isinstance(size, (list, tuple)) else (size, size)


def whole_patches(size: Any, patch: Any) -> tuple[int, int]:
  """(height, width) without the pixels past the last whole patch, which their convolutions drop."""
  return tuple(s - s % p for s, p in zip(pair(size), pair(patch)))


def gelu(hf: HF) -> str:
  """Our name of `hidden_act`. Raises `UserError` where there is none."""
  name = hf.get("hidden_act", "gelu")
  if name not in GELU:
    raise unknown("config.json: hidden_act", name, list(GELU))
  return GELU[name]


def transformer(hf: HF, **defaults: Any) -> dict[str, Any]:
  """The keys that all their transformers share; `defaults` are the family's own."""
  hf = {**defaults, **hf}
  return dict(
    width=hf["hidden_size"],
    depth=hf["num_hidden_layers"],
    mlp_dim=hf["intermediate_size"],
    num_heads=hf["num_attention_heads"],
    gelu=gelu(hf),
    eps=hf["layer_norm_eps"],
  )


def image(hf: HF, **defaults: Any) -> dict[str, Any]:
  """The same of an image tower with learned positions."""
  hf = {**defaults, **hf}
  return transformer(hf) | dict(
    patch_size=pair(hf["patch_size"]),
    image_size=pair(hf["image_size"]),
    pos_embed="learn",
    pos_resample="bicubic",
  )


def architecture(hf: HF, default: str) -> str:
  """The class that saved the checkpoint: with a head or without, and so the names of tensors."""
  return (hf.get("architectures") or [default])[0]


def num_labels(hf: HF) -> int:
  """Classes of their head; config.json has names of them, or nothing for their default."""
  return len(hf["id2label"]) if "id2label" in hf else hf.get("num_labels", 2)


def labels(model: Any) -> dict[str, Any]:
  """The inverse: names of classes that have none, or nothing without a head."""
  count = model.num_classes
  return {"id2label": {str(i): f"LABEL_{i}" for i in range(count)}} if count else {}


def patch_sizes(hf: HF) -> dict[str, int]:
  """Height and width of a patch, the axes p and q of `PATCH`."""
  p, q = pair(hf["patch_size"])
  return {"p": p, "q": q}


# ----------------------------------------------------------------------------------------- back


def side(size: tuple[int, int]) -> Any:
  """One number of a square, else [height, width]: the inverse of `pair`."""
  return size[0] if size[0] == size[1] else list(size)


def square(size: tuple[int, int], what: str) -> int:
  """The side. Raises `UserError` where it is no square."""
  if size[0] != size[1]:
    raise UserError(f"{what} {size[0]} x {size[1]} is no square; their config holds one number")
  return size[0]


def transformer_config(model: Any) -> dict[str, Any]:
  """The inverse of `transformer`: the keys that all their transformers share."""
  return dict(
    hidden_size=model.width,
    num_hidden_layers=model.depth,
    intermediate_size=model.mlp_dim,
    num_attention_heads=model.num_heads,
    hidden_act=next(k for k, v in GELU.items() if v == model.gelu),
    layer_norm_eps=model.eps,
  )


def image_config(model: Any, channels: int) -> dict[str, Any]:
  """The inverse of `image`; sizes as `side` gives them."""
  return transformer_config(model) | dict(
    patch_size=side(model.patch_size), image_size=side(model.image_size), num_channels=channels
  )


def detected(config: HF) -> HF:
  """The config with its `model_type`, where a file here has a `detect` that knows it without."""
  for module in modules(__name__, __path__):
    found = module.detect(config) if hasattr(module, "detect") else None
    if found is not None:
      return found
  return config
