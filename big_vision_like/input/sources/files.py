"""Data on disk: TFDS data sets, ArrayRecord files, folders of images. No TensorFlow."""

import fnmatch
import glob
import os
import pathlib
from typing import Any

from big_vision_like.config import UserError, unknown

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
INFO = "dataset_info.json"


def _prepared(name: str, data_dir: str | None) -> Any:
  """Folder of the newest prepared version of `name[/config][:version]`.

  Found on disk and not through the library: its code of many data sets imports TensorFlow.
  """
  from etils import epath

  if (epath.Path(name) / INFO).exists():
    return epath.Path(name)
  root = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  root = epath.Path(root).expanduser()
  if not root.is_dir():
    raise UserError(f"source tfds: {name!r}: {root} is not a folder; set data_dir")
  path, _, version = name.partition(":")
  folder = root / path
  if not folder.is_dir():
    raise unknown(f"source tfds: {folder}: data set", name, [d.name for d in root.iterdir()])
  versions = [f.parent for depth in ("*", "*/*") for f in folder.glob(f"{depth}/{INFO}")]
  versions = [d for d in versions if fnmatch.fnmatch(d.name, version or "*")]
  if not versions:
    raise UserError(f"source tfds: {folder} has no prepared version {version or ''} ({INFO})")
  configs = sorted({d.parent for d in versions})
  if len(configs) > 1:
    names = " or ".join(repr(str(c.relative_to(root))) for c in configs)
    raise UserError(f"source tfds: {name!r} has {len(configs)} configs in {root}; name = {names}")
  numbers = lambda d: [int(n) if n.isdigit() else -1 for n in d.name.split(".")]
  return max(versions, key=numbers)


def tfds(name: str, split: str = "train", data_dir: str | None = None) -> Any:
  """A prepared TFDS data set, any split or slice ("train[10%:60%]"); images stay encoded.

  `name` is `name[/config][:version]` in `data_dir` (else $TFDS_DATA_DIR, ~/tensorflow_datasets), or
  the folder of a prepared version (with `dataset_info.json`).

  Raises:
    UserError: nothing prepared there, no such split, or files without random access.
  """
  folder = _prepared(name, data_dir)
  import tensorflow_datasets as library

  try:
    builder = library.builder_from_directory(folder)
    decoders = {
      key: library.decode.SkipDecoding()
      for key, feature in builder.info.features.items()
      if isinstance(feature, library.features.Image)
    }
    return builder.as_data_source(split, decoders=decoders or None)
  except Exception as e:  # the library raises many types for what is one mistake
    reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
    raise UserError(f"source tfds: {folder} split {split!r}: {reason}") from None


class _ArrayRecord:
  def __init__(self, paths: list[str]):
    from array_record.python import array_record_data_source

    self.records = array_record_data_source.ArrayRecordDataSource(paths)

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return {"record": self.records[index]}


def array_record(pattern: str) -> _ArrayRecord:
  """ArrayRecord files by path or glob pattern; each example is its bytes, under `record`."""
  paths = sorted(glob.glob(pattern))
  if not paths:
    raise UserError(f"source array_record: no file matches {pattern!r}")
  try:
    return _ArrayRecord(paths)
  except (RuntimeError, ValueError, OSError) as e:
    raise UserError(f"source array_record: {pattern!r} is not made of ArrayRecords: {e}") from None


class _ImageFolder:
  def __init__(self, files: list[pathlib.Path], classes: list[str]):
    self.files, self.classes = files, classes
    self.labels = {name: i for i, name in enumerate(classes)}

  def __len__(self) -> int:
    return len(self.files)

  def __getitem__(self, index: int) -> dict[str, Any]:
    file = self.files[index]
    name = file.parent.name
    return {"image": file.read_bytes(), "label": self.labels[name], "text": name}


def image_folder(path: str) -> _ImageFolder:
  """`path/class/picture.jpg`: encoded image, label (index of the sorted class names), text."""
  root = pathlib.Path(str(path)).expanduser()
  if not root.is_dir():
    raise UserError(f"source image_folder: {path} is not a folder")
  files = sorted(f for f in root.glob("*/*") if f.suffix.lower() in IMAGES)
  if not files:
    raise UserError(f"source image_folder: {path} has no class folder with images in it")
  return _ImageFolder(files, sorted({f.parent.name for f in files}))
