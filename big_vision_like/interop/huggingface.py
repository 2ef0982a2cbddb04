"""Hugging Face checkpoints: folders of `config.json` and safetensors, whole or in shards."""

import json
import pathlib
from typing import Any

import numpy as np

from big_vision_like.config import UserError
from big_vision_like.interop import files


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
