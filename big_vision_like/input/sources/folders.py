"""Folders of images, a folder for each class."""

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from big_vision_like.config import UserError, unknown
from big_vision_like.input import paths
from big_vision_like.input.bad import BadExample

WHERE = "source image_folder"
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
LARGE = 100_000
"""Files from which on the list of a folder is kept between runs."""


class _ImageFolder:
  """`names`: of all files, each ended by a zero; `labels` int32: numbers of their classes."""

  def __init__(self, root: str, names: np.ndarray, labels: np.ndarray, classes: Sequence[str]):
    self.root, self.names, self.labels, self.classes = root, names, labels, classes
    self.ends = np.flatnonzero(names == 0)

  def __len__(self) -> int:
    return len(self.labels)

  def name(self, index: int) -> str:
    """Path of a file in the folder."""
    if not 0 <= index < len(self):
      raise IndexError(index)
    start = self.ends[index - 1] + 1 if index else 0
    return os.fsdecode(self.names[start : self.ends[index]].tobytes())

  def __getitem__(self, index: int) -> dict[str, Any]:
    path = paths.inside(self.root, self.name(index))
    return self._example(index, path, paths.read_bytes(path, where=WHERE))

  def _example(self, index: int, path: str, data: bytes) -> dict[str, Any]:
    if not data:
      raise BadExample("empty file", path)
    label = int(self.labels[index])
    return {"image": data, "label": label, "text": self.classes[label]}


class _RemoteImageFolder(_ImageFolder):
  """Several files are asked for at once."""

  def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any] | None]:
    """Examples; None for one that is bad: `__getitem__` says why."""
    fs, inner = paths.filesystem(self.root, WHERE)
    files = [paths.inside(inner.rstrip("/"), self.name(i)) for i in indices]
    found = fs.cat(files, on_error="return") if files else {}
    bad = lambda data: isinstance(data, Exception) or not data
    return [
      None if bad(found[f]) else self._example(i, f, found[f]) for i, f in zip(indices, files)
    ]


def image_folder(path: str, classes: Sequence[str] = (), cache: str = "") -> _ImageFolder:
  """`path/class/**/picture.jpg`: image (encoded), label, text (the name of the class).

  The class is the first folder; pictures may lie deeper in it. Files in `path` itself, names that
  begin with a dot, other kinds of files, and links to folders are left out. The order is that of
  the names, folder by folder. The list of a folder of more than 100,000 pictures is kept beside it,
  or in the cache folder, and made anew when one of its folders changed. Bad examples: "empty file",
  "missing file", "unsafe path" (a link that leads out of the folder).

  Args:
    path: a folder, or a URL of fsspec, which is listed at every start.
    classes: names of the classes, whose order are the labels; other folders are left out. Default:
      all folders with pictures in them, sorted.
    cache: folder for the list; default $BIG_VISION_LIKE_CACHE.

  Raises:
    UserError: it is not a folder, has no class folder with images, or lacks one of `classes`.
  """
  root = os.path.expanduser(str(path)).rstrip("/") or "/"
  wanted = (classes,) if isinstance(classes, str) else tuple(classes)
  if paths.is_remote(root):
    files = sorted(n.split("/") for n in paths.listed(root, WHERE, IMAGES))
    found = _arrays(f for f in files if len(f) > 1 and not any(n[0] == "." for n in f))
  else:
    found = _of_disk(root, cache)
  known = json.loads(str(found["classes"]))
  if not known:
    raise UserError(f"{WHERE}: {path} has no class folder with images in it")
  for name in wanted:
    if name not in known:
      raise unknown(f"{WHERE}: classes: no images in {path}: folder", name, known)
  names, labels = found["names"], found["labels"]
  if wanted:
    label_of = np.array([wanted.index(n) if n in wanted else -1 for n in known], np.int32)
    labels = label_of[labels]
    kept = np.repeat(labels >= 0, np.diff(np.flatnonzero(names == 0), prepend=-1))
    names, labels = names[kept], labels[labels >= 0]
  kind = _RemoteImageFolder if paths.is_remote(root) else _ImageFolder
  return kind(root, names, labels, wanted or known)


def _of_disk(root: str, cache: str) -> dict[str, np.ndarray]:
  if not os.path.isdir(root):
    raise UserError(f"{WHERE}: {root} is not a folder")
  small = []
  for parts in _walk(root, [], []):
    small.append(parts)
    if len(small) > LARGE:
      break
  else:
    return _arrays(small)

  def make(folder: str) -> dict[str, np.ndarray]:
    folders: list[tuple[str, int]] = []
    arrays = _arrays(_walk(folder, [], folders))
    return {**arrays, "folders": np.array(json.dumps(folders))}

  def is_right(found: dict[str, np.ndarray]) -> bool:
    return all(_time(root, f) == time for f, time in json.loads(str(found["folders"])))

  return paths.cached_index([root], make, "images", WHERE, cache, is_right)[0]


def _time(root: str, folder: str) -> int:
  """When something was last added to it, or removed."""
  try:
    return os.stat(os.path.join(root, folder)).st_mtime_ns
  except OSError:
    return -1


def _walk(root: str, at: list[str], folders: list[tuple[str, int]]) -> Iterator[list[str]]:
  """Parts of the paths of all images below `root/at`, sorted; appends to `folders`."""
  folders.append(("/".join(at), _time(root, "/".join(at))))
  try:
    with os.scandir(os.path.join(root, *at)) as entries:
      found = sorted((e.name, e.is_dir(follow_symlinks=False)) for e in entries if e.name[0] != ".")
  except OSError as e:
    raise UserError(f"{WHERE}: {root} cannot be listed: {e}") from None
  for name, is_folder in found:
    if is_folder:
      yield from _walk(root, [*at, name], folders)
    elif at and name.lower().endswith(IMAGES):
      yield [*at, name]


def _arrays(files: Any) -> dict[str, np.ndarray]:
  """Parts of paths, sorted -> names, labels and JSON of the classes."""
  names, labels, classes = [], [], []
  for parts in files:
    if not classes or classes[-1] != parts[0]:
      classes.append(parts[0])
    names.append(os.fsencode("/".join(parts)) + b"\0")
    labels.append(len(classes) - 1)
  return {
    "names": np.frombuffer(b"".join(names), np.uint8),
    "labels": np.array(labels, np.int32),
    "classes": np.array(json.dumps(classes)),
  }
