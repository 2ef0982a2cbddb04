"""Hugging Face checkpoints: folders of `config.json` and safetensors, whole or in shards."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from big_vision_like.config import UserError
from big_vision_like.interop import families, files

_FILE = "model.safetensors"
_FORMS = (("config.json", _FILE), ("open_clip_config.json", "open_clip_model.safetensors"))


def read(folder: str | pathlib.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """(config, tensors by name) of a checkpoint folder; the files are mapped, not read.

  Raises:
    UserError: no config, no safetensors, a shard that is missing or says other than the index,
      or a pickle.
  """
  folder = pathlib.Path(folder)
  name, file = next(
    (f for f in _FORMS if (folder / f[0]).exists() and _there(folder, f[1])), _FORMS[0]
  )
  try:
    config = json.loads((folder / name).read_text())
  except (OSError, ValueError) as e:
    raise UserError(f"{folder / name} cannot be read: {e}") from None
  config = families.detected(config)
  index = folder / f"{file}.index.json"
  if index.exists():
    return config, _shards(folder, index)
  if not (folder / file).exists() and (pickles := sorted(folder.glob("*.bin"))):
    raise files.pickled(pickles[0])
  return config, files.load_safetensors(folder / file)


def _there(folder: pathlib.Path, file: str) -> bool:
  return (folder / file).exists() or (folder / f"{file}.index.json").exists()


def is_folder(folder: pathlib.Path) -> bool:
  """Whether `read` is meant for it: a config and safetensors or pickles."""
  has = lambda pattern: any(folder.glob(pattern))
  return any((folder / f[0]).exists() for f in _FORMS) and (has("*.safetensors") or has("*.bin"))


def _shards(folder: pathlib.Path, index: pathlib.Path) -> dict[str, np.ndarray]:
  """The arrays of all shards. Raises `UserError` where index and shards do not agree."""
  try:
    names = dict(json.loads(index.read_text())["weight_map"])
  except (OSError, ValueError, KeyError, TypeError) as e:
    raise UserError(f"{index} cannot be read: {e}") from None
  tensors = {}
  for file in sorted(set(names.values())):
    if pathlib.PurePath(file).name != file:
      raise UserError(f"{index}: {file!r} is not a file of this folder")
    tensors |= files.load_safetensors(folder / file)
  if differ := sorted(names.keys() ^ tensors.keys()):
    raise UserError(f"{index} and its files do not agree on {', '.join(differ[:3])}")
  return tensors


def write(
  folder: str | pathlib.Path,
  config: Mapping[str, Any],
  tensors: Mapping[str, np.ndarray],
  shard_bytes: int = 5_000_000_000,
) -> None:
  """`config.json` and the tensors, in several files with an index where one grows too large.

  Raises:
    UserError: the folder cannot be written.
  """
  folder, shards, size = pathlib.Path(folder), [[]], 0
  for name in sorted(tensors):
    own = tensors[name].nbytes
    if size + own > shard_bytes and shards[-1]:
      shards, size = [*shards, []], 0
    shards[-1].append(name)
    size += own
  many = len(shards) > 1
  place = {}
  for i, names in enumerate(shards, 1):
    file = f"model-{i:05d}-of-{len(shards):05d}.safetensors" if many else _FILE
    part = {name: tensors[name] for name in names}
    files.save_safetensors(folder / file, part, {"format": "pt"})  # they refuse any other
    place |= dict.fromkeys(names, file)
  if many:
    total = sum(x.nbytes for x in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": place}
    files.write_json(folder / f"{_FILE}.index.json", index)
  files.write_json(folder / "config.json", config)
