"""A run's weights as a folder that `transformers` loads: which method is which model there."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from big_vision_like import models
from big_vision_like.config import Config, UserError
from big_vision_like.interop import build, huggingface
from big_vision_like.models import mae_decoder, resnet, two_towers, vit


class Part(NamedTuple):
  """What of a run is written: `model_type`, model, variables, further keys of their config."""

  model_type: str
  model: Any
  variables: Any
  keys: Mapping[str, Any] = {}


def _towers(model_type: str):
  return lambda config, params, aux: Part(model_type, two_towers.make(config.model), params)


def _mae(config: Config, params: Any, aux: Any) -> Part:
  model = build.Mae(vit.make(**config.model), mae_decoder.make(**config.decoder))
  loss = config.loss
  keys = dict(mask_ratio=loss.mask_ratio, norm_pix_loss=bool(loss.norm_pix))
  return Part("vit_mae", model, params, keys)


def _backbone(model: Any, params: Any, stats: Any) -> Part:
  if isinstance(model, resnet.ResNet):
    return Part("resnet", model, {"params": params, **stats})
  if not isinstance(model, vit.ViT):
    raise UserError(f"--format hf: {type(model).__name__} is no model of Hugging Face")
  return Part("vit", model, params)


def _classify(config: Config, params: Any, aux: Any) -> Part:
  return _backbone(models.make(config.model), params, aux.get("stats", {}))


def _dino(config: Config, params: Any, aux: Any) -> Part:
  """The teacher's backbone, which predictions run on."""
  if "teacher" not in aux:
    raise UserError("--format hf: dino's weights are its teacher's, which only the run has")
  stats = {k: v.get("backbone", v) for k, v in aux["stats"]["teacher"].items()}
  return _backbone(models.make(config.model), aux["teacher"]["backbone"], stats)


METHODS = {
  "siglip": _towers("siglip"),
  "clip": _towers("clip"),
  "mae": _mae,
  "classify": _classify,
  "dino": _dino,
}


def save(folder: pathlib.Path, config: Config, params: Any, aux: Any) -> None:
  """`config.json` and `model.safetensors` of the run's weights (merged) and other arrays.

  Raises:
    UserError: a method without such a model, or what of this one cannot be said there.
  """
  if config.method not in METHODS:
    raise UserError(
      f"--format hf: config.method = {config.method!r} has no model of Hugging Face; "
      f"expected one of {', '.join(METHODS)}"
    )
  while "method" in aux:  # inside of transforms
    aux = aux["method"]
  part = METHODS[config.method](config, params, aux)
  try:
    hf, tensors = build.export(part.model_type, part.model, part.variables, **part.keys)
  except UserError as e:
    raise UserError(f"--format hf: {e}") from None
  huggingface.write(folder, hf, tensors)
