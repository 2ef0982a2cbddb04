"""NumPy files, and the photographs that come with scikit-image."""

import functools
import io
import os
from typing import Any

import numpy as np

from big_vision_like.config import UserError, unknown
from big_vision_like.input import paths

_PHOTOS = {
  "astronaut.png": "an astronaut in an orange space suit in front of a flag and a model shuttle",
  "brick.png": "a wall of bricks",
  "camera.png": "a man in a black coat looks through a camera on a tripod",
  "chelsea.png": "the face of a ginger cat with green eyes",
  "coffee.png": "a cup of coffee with a spoon on a red saucer",
  "coins.png": "four rows of ancient coins",
  "grass.png": "grass and leaves seen from above",
  "gravel.png": "gravel, many small stones",
  "horse.png": "the black silhouette of a horse",
  "hubble_deep_field.jpg": "distant galaxies in a black sky",
  "ihc.png": "stained tissue with brown glands under a microscope",
  "moon.png": "craters on the surface of the moon",
  "motorcycle_left.png": "a red motorcycle in a garage",
  "page.png": "a page of printed text",
  "retina.jpg": "the retina of an eye with its blood vessels",
  "rocket.jpg": "a rocket on its launch pad in the evening",
}
"""File of scikit-image's wheel -> what it shows; label = its place in this list."""


def _load(path: str) -> Any:
  try:
    if paths.is_remote(path):
      return np.load(io.BytesIO(paths.read_bytes(path)), allow_pickle=False)
    return np.load(path, mmap_mode="r" if path.endswith(".npy") else None, allow_pickle=False)
  except Exception as e:  # OSError, ValueError, EOFError, zipfile.BadZipFile
    raise UserError(f"source arrays: {path}: {getattr(e, 'strerror', None) or e}") from None


class _Arrays:
  def __init__(self, columns: dict[str, np.ndarray]):
    self.columns = columns

  def __len__(self) -> int:
    return len(next(iter(self.columns.values())))

  def __getitem__(self, index: int) -> dict[str, Any]:
    if not 0 <= index < len(self):
      raise IndexError(index)
    return {key: _plain(column[index]) for key, column in self.columns.items()}

  def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
    return [self[i] for i in indices]


def _plain(value: Any) -> Any:
  """Whole numbers and texts as Python's own; what is mapped into memory as an array of its own."""
  if isinstance(value, (np.integer, np.str_, np.bytes_, np.bool_)):
    return value.item()
  return np.array(value)


def arrays(path: str, key: str = "image", **names: str) -> _Arrays:
  """Rows of the arrays of a .npz file, or of one .npy file, which is mapped into memory.

  `arrays('mnist.npz', image=x_train, label=y_train)`. Images [N, H, W] get a channel.

  Args:
    path: the file; a .npz is read into memory as a whole. Pickled objects are refused.
    key: under which the rows of a .npy file are.
    **names: key of the example -> array of the .npz; default: all arrays, under their names.

  Raises:
    UserError: no such file or array, pickled objects, arrays that are not equally long.
  """
  path = os.path.expanduser(str(path))
  found = _load(path)
  if isinstance(found, np.ndarray):
    if names:
      raise UserError(f"source arrays: {path} holds one array; {', '.join(names)} cannot be named")
    columns = {key: found}
  else:
    with found:
      for name in names.values():
        if name not in found.files:
          raise unknown(f"source arrays: {path}: array", name, found.files)
      try:
        columns = {k: found[n] for k, n in (names or {f: f for f in found.files}).items()}
      except Exception as e:  # pickled objects, or a broken zip
        raise UserError(f"source arrays: {path}: {e}") from None
  lengths = {k: len(v) if v.ndim else "a scalar" for k, v in columns.items()}
  if len(set(lengths.values())) != 1 or "a scalar" in lengths.values():
    raise UserError(f"source arrays: {path}: arrays of equal length expected, found {lengths}")
  return _Arrays(
    {k: v[..., None] if k == "image" and v.ndim == 3 else v for k, v in columns.items()}
  )


class _Photos:
  def __init__(self, files: list[str]):
    self.files = files
    self._image = functools.cache(_decoded)

  def __len__(self) -> int:
    return len(self.files)

  def __getitem__(self, index: int) -> dict[str, Any]:
    if not 0 <= index < len(self):
      raise IndexError(index)
    file = self.files[index]
    name = os.path.basename(file)
    text, label = _PHOTOS[name], list(_PHOTOS).index(name)
    return {"image": self._image(file).copy(), "text": text, "label": label}


def _decoded(file: str) -> np.ndarray:
  from PIL import Image

  with Image.open(file) as picture:
    return np.asarray(picture.convert("RGB"))


def photos() -> _Photos:
  """The photographs that come with scikit-image (see its data/README.txt): image, text, label.

  image uint8 [H, W, 3] of several sizes (grey ones repeated), text a caption, label its number.
  Those that the installed package has; nothing is downloaded.

  Raises:
    UserError: scikit-image is not installed.
  """
  import importlib.util

  spec = importlib.util.find_spec("skimage")
  if spec is None or spec.origin is None:
    raise UserError("source photos: scikit-image is not installed; pip install -e '.[data]'")
  folder = os.path.join(os.path.dirname(spec.origin), "data")
  files = [f for name in _PHOTOS if os.path.isfile(f := os.path.join(folder, name))]
  if not files:
    raise UserError(f"source photos: {folder} has none of {', '.join(_PHOTOS)}")
  return _Photos(files)
