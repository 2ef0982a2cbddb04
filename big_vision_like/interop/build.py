"""Models of ours for foreign configs, their abstract variables, and foreign configs for models.

hf, tensors = huggingface.read(folder)
model = build.make(hf, tensors)
like = build.like(hf, tensors)
params = tables.to_ours(family(hf).rules(hf), tensors, like)       # or all four: read(...)
hf, tensors = build.export("vit", model, params)
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from big_vision_like import models, tree
from big_vision_like.config import UserError
from big_vision_like.interop import tables
from big_vision_like.interop.families import HF, Family, family
from big_vision_like.layers.patch_embed import grid_of
from big_vision_like.layers.pos_embed import sincos_2d
from big_vision_like.models import mae_decoder, naflex, two_towers, vit

# What a config of theirs need not say: how a model runs, how it starts.
RUNTIME = {"parent", "name", "scan", "remat", "dtype", "dropout", "drop_path"}
RUNTIME |= {"temperature_init", "groups", "zero_init", "pos_resample"}


class Mae(NamedTuple):
  """A masked autoencoder: variables are `encoder/...` and `decoder/...`."""

  encoder: nn.Module
  decoder: nn.Module


def _make_mae(kwargs: dict[str, Any]) -> Mae:
  return Mae(vit.make(**kwargs["model"]), mae_decoder.make(**kwargs["decoder"]))


def _init_one(model: nn.Module, channels: int) -> Any:
  """A text model has `vocab_size`; else it takes images."""
  if hasattr(model, "vocab_size"):
    return model.init(jax.random.key(0), jnp.zeros((1, getattr(model, "max_len", 8)), jnp.int32))
  size = getattr(model, "image_size", (32, 32))
  return model.init(jax.random.key(0), jnp.zeros((1, *size, channels)))


def _init_towers(model: two_towers.TwoTowers, channels: int) -> Any:
  if isinstance(model.image, naflex.NaFlex):
    image = naflex.example(model.image, channels)
  else:
    image = jnp.zeros((1, *model.image.image_size, channels))
  return model.init(jax.random.key(0), image, jnp.zeros((1, model.text.max_len), jnp.int32))


def _init_mae(model: Mae, channels: int) -> Any:
  encoder, (h, w) = model.encoder, model.encoder.image_size
  p, q = encoder.patch_size
  grid, all_of = grid_of(h, w, (p, q)), jnp.zeros((1, h // p * (w // q)), jnp.int32)
  image, key = jnp.zeros((1, h, w, channels)), jax.random.key(0)
  (_, out), variables = encoder.init_with_output(key, image, keep=all_of)
  tokens = (out["tokens"], out["prefix"], all_of)
  decoder = model.decoder.init(key, *tokens, grid=grid, out_dim=p * q * channels)
  return {"params": {"encoder": variables["params"], "decoder": decoder["params"]}}


class Kind(NamedTuple):
  """`make(kwargs) -> model` and `init(model, channels) -> variables`."""

  make: Callable[[dict[str, Any]], Any]
  init: Callable[[Any, int], Any] = _init_one


KINDS = {"two_towers": Kind(two_towers.make, _init_towers), "mae": Kind(_make_mae, _init_mae)}


def kind(name: str) -> Kind:
  """Of `KINDS`, or any other file of models/ that has one input and perhaps a head."""
  return KINDS.get(name) or Kind(lambda kwargs: models.make({"name": name, **kwargs}))


def make(hf: HF, tensors: tables.Tensors | None = None) -> Any:
  """The model of ours: a module, or a `Mae`.

  Whether it has a head, and of how many classes, say `tensors`; without them, the config.

  Raises:
    UserError: a `model_type` or a key that we do not have.
  """
  entry = family(hf)
  kwargs = dict(entry.model(hf))
  headed = entry.kind not in KINDS and "num_classes" not in kwargs
  if headed and (classes := _classes(entry, hf, tensors)):
    kwargs["num_classes"] = classes
  return kind(entry.kind).make(kwargs)


def _classes(entry: Family, hf: HF, tensors: tables.Tensors | None) -> int | None:
  if tensors is None:
    return hf.get("num_labels") or len(hf.get("id2label", ())) or None
  for rule in entry.rules(hf):
    if rule.ours in ("head/bias", "params/head/bias") and rule.theirs in tensors:
      return tensors[rule.theirs].shape[0]
  return None


def like(hf: HF, tensors: tables.Tensors | None = None) -> Any:
  """Shapes and dtypes of the variables that the table of the family names, no array made.

  The params, or `params` and the other collections where there are some (batch statistics).
  """
  model, init = make(hf, tensors), kind(family(hf).kind).init
  variables = jax.eval_shape(lambda: init(model, channels(hf)))
  return variables if len(variables) > 1 else variables["params"]


def channels(hf: HF) -> int:
  """Of the images, three by default."""
  return hf.get("vision_config", hf).get("num_channels", 3)


def leaves(hf: HF, tensors: tables.Tensors) -> tables.Leaves:
  """Our leaves by path, each put together when asked for.

  Raises:
    UserError: a config that we do not have; tensors that are missing, left over, of another shape.
  """
  entry = family(hf)
  tensors = _prefixed(entry.rules(hf), tensors)
  return tables.leaves(
    entry.rules(hf),
    tensors,
    like(hf, tensors),
    constants=entry.constants(hf),
    ignore=entry.ignore,
  )


def _prefixed(rules: Sequence[tables.Rule], tensors: tables.Tensors) -> tables.Tensors:
  """A bare encoder is saved without the `vit.` that its names have inside a larger model."""
  names = {rule.theirs for rule in rules if "{i}" not in rule.theirs}
  for prefix in {f"{name.split('.')[0]}." for name in names}:
    bare = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    if bare & tensors.keys() and not names & tensors.keys():
      return {prefix + name: x for name, x in tensors.items()}
  return tensors


# ---------------------------------------------------------------------------------------- export


def export(
  model_type: str, model: Any, variables: Any, **keys: Any
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """(config, tensors) of theirs that compute what `model` with `variables` does.

  Fixed positions are written out as a table, and a class token without a position gets zeros.
  `keys` are further ones of the config.

  Raises:
    UserError: what of the model their config cannot say.
  """
  entry = family({"model_type": model_type})
  if entry.config is None:
    raise UserError(f"no config of {model_type} is written yet")
  width = _channels_of(model, tree.flatten(variables))
  hf = entry.config(model, width) | keys
  if _differences(model, make(hf), "config.model"):
    model, variables = _written_out(model, variables)
    hf = entry.config(model, width) | keys
    if wrong := _differences(model, make(hf), "config.model"):
      raise UserError(f"{wrong[0]} in {model_type}")
  return hf, theirs(hf, variables)


def theirs(hf: HF, variables: Any) -> dict[str, np.ndarray]:
  """Our variables under their names.

  Raises:
    UserError: a leaf that has no name there, or a tensor of theirs that no leaf gives.
  """
  entry = family(hf)
  tensors = tables.to_theirs(
    entry.rules(hf), variables, sizes=entry.sizes(hf), constants=entry.constants(hf)
  )
  counted = [k.replace("running_var", "num_batches_tracked") for k in tensors if "running_var" in k]
  tensors |= {name: np.zeros((), np.int64) for name in counted}
  leaves(hf, tensors)  # every one is there, and of the right shape
  return tensors


def _channels_of(model: Any, flat: Mapping[str, Any]) -> int:
  for name, x in flat.items():
    if name.endswith("patch_embed/proj/kernel"):
      vit_model = getattr(model, "image", getattr(model, "encoder", model))
      return x.shape[-2] // (vit_model.patch_size[0] * vit_model.patch_size[1])
    if name.endswith("stem_conv/kernel"):
      return x.shape[2]
  return 3


def _written_out(model: Any, variables: Any) -> tuple[Any, Any]:
  if isinstance(model, two_towers.TwoTowers):
    image, params = _written_out(model.image, variables["image"])
    return model.clone(image=image), {**variables, "image": params}
  if not isinstance(model, vit.ViT):
    return model, variables
  params = dict(variables)
  if model.pool == "cls" and not model.cls_pos:
    params["cls_pos"] = np.zeros_like(params["cls"])
    model = model.clone(cls_pos=True)
  if model.pos_embed in ("sincos2d", "sincos2d_moco"):
    grid = grid_of(*model.image_size, model.patch_size)
    endpoint = model.pos_embed == "sincos2d"
    params["pos_embed"] = sincos_2d(grid, model.width, endpoint=endpoint)
    model = model.clone(pos_embed="learn")
  return model, params


def _differences(ours: Any, theirs: Any, where: str) -> list[str]:
  """ "config.model.pool = 'gap'; it is 'cls'" for every attribute that says what is computed."""
  if isinstance(ours, Mae):
    pairs = [
      (ours.encoder, theirs.encoder, where),
      (ours.decoder, theirs.decoder, "config.decoder"),
    ]
    return [d for a, b, at in pairs for d in _differences(a, b, at)]
  out = []
  for field in dataclasses.fields(ours):
    key = field.name
    a, b = getattr(ours, key), getattr(theirs, key)
    if isinstance(a, nn.Module):
      out += _differences(a, b, f"{where}.{key}")
    elif key == "bias_init":
      out += [f"{where}.{key} = {a}; it is {b}"] * ((a is None) != (b is None))
    elif key not in RUNTIME and a != b:
      out.append(f"{where}.{key} = {a!r}; it is {b!r}")
  return out
