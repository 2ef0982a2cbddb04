"""Data on disk: TFDS data sets, ArrayRecord files, folders of images. No TensorFlow."""

import glob
import pathlib
from typing import Any

from big_vision_like.config import UserError

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")


def tfds(name: str, split: str = "train", data_dir: str | None = None) -> Any:
  """A prepared TFDS data set, any split or slice ("train[10%:60%]"); images stay encoded.

  `name` may also be the folder of a prepared version (with `dataset_info.json`).
  """
  import tensorflow_datasets as library

  try:
    if (pathlib.Path(name) / "dataset_info.json").exists():
      builder = library.builder_from_directory(name)
    else:
      builder = library.builder(name, data_dir=data_dir)
    decoders = {
      key: library.decode.SkipDecoding()
      for key, feature in builder.info.features.items()
      if isinstance(feature, library.features.Image)
    }
    return builder.as_data_source(split, decoders=decoders or None)
  except Exception as e:  # the library raises many types for what is one mistake: it is not there
    reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
    place = data_dir or "~/tensorflow_datasets"
    raise UserError(
      f"source tfds: {name!r} split {split!r} is not prepared in {place} ({reason})"
    ) from None


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
  return _ArrayRecord(paths)


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
  root = pathlib.Path(path)
  if not root.is_dir():
    raise UserError(f"source image_folder: {path} is not a folder")
  files = sorted(f for f in root.glob("*/*") if f.suffix.lower() in IMAGES)
  if not files:
    raise UserError(f"source image_folder: {path} has no class folder with images in it")
  return _ImageFolder(files, sorted({f.parent.name for f in files}))
