"""Whatever holds parameters and is no workdir: Hugging Face folders, npz and safetensors files."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from big_vision_like import tree
from big_vision_like.interop import build, files, huggingface
from big_vision_like.interop.families import big_vision

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


class Source(NamedTuple):
  """A checkpoint under our names.

  Attributes:
    config: of Hugging Face, or as `big_vision.config_of` reads it; of a file with our names the
      `config.json` beside it (perhaps a run's), or {}.
    arrays: `{path: array}`, of a foreign one put together when asked for.
  """

  config: Mapping[str, Any]
  arrays: Mapping[str, np.ndarray]


def read(path: str | pathlib.Path) -> Source | None:
  """What `path` holds; None where that is neither such a folder nor such a file: perhaps a workdir.

      hf:DIR, or DIR with config.json and *.safetensors    Hugging Face
      FILE.npz                                             big_vision's names, or ours
      FILE.safetensors, or DIR with params.npz or .safetensors, as tools.export writes them    ours

  Raises:
    UserError: a pickle; a file that cannot be read; tensors that do not fit their config.
  """
  text = str(path)
  path = pathlib.Path(text.removeprefix("hf:"))
  if path.suffix in PICKLES:
    raise files.pickled(path)
  if path.suffix in (".npz", ".safetensors") and not path.is_dir():
    return _file(path)
  if not text.startswith("hf:"):
    if (path / "checkpoints").is_dir():
      return None
    for name in ("params.safetensors", "params.npz"):
      if (path / name).exists():
        return _file(path / name)
    if not huggingface.is_folder(path):
      return None
  hf, tensors = huggingface.read(path)
  return Source(hf, build.leaves(hf, tensors))


def _file(path: pathlib.Path) -> Source:
  load = files.load_npz if path.suffix == ".npz" else files.load_safetensors
  tensors = load(path)
  if big_vision.is_ours(tensors):
    tensors = big_vision.normalized(tensors)
    hf = big_vision.config_of(tensors)
    return Source(hf, build.leaves(hf, tensors))
  try:
    config = json.loads((path.parent / "config.json").read_text())
  except (OSError, ValueError):
    config = {}
  return Source(config, tensors)


def nested(source: Source) -> Any:
  """All arrays as a tree, put together."""
  return tree.nest({path: source.arrays[path] for path in source.arrays})
