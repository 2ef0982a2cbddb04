"""Images with a depth map and a segmentation each, in folders side by side."""

import os
from typing import Any

from big_vision_like.config import UserError
from big_vision_like.input import paths

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif")


class _Triples:
  def __init__(self, folders: dict[str, str], names: dict[str, dict[str, str]], stems: list[str]):
    self.folders, self.names, self.stems = folders, names, stems

  def __len__(self) -> int:
    return len(self.stems)

  def __getitem__(self, index: int) -> dict[str, Any]:
    if not 0 <= index < len(self):
      raise IndexError(index)
    return {
      key: paths.read_bytes(paths.inside(folder, self.names[key][self.stems[index]]))
      for key, folder in self.folders.items()
    }


def _is_folder(path: str) -> bool:
  if paths.is_remote(path):
    fs, inner = paths.filesystem(path, "source triples")
    return fs.isdir(inner)
  return os.path.isdir(path)


def _by_stem(folder: str) -> dict[str, str]:
  """Name without its suffix -> name, of the pictures in a folder."""
  out: dict[str, str] = {}
  for name in paths.listed(folder, "source triples", _SUFFIXES):
    stem = name.rpartition(".")[0]
    if stem in out:
      raise UserError(f"source triples: {folder} has {out[stem]} and {name}; one must go")
    out[stem] = name
  return out


def triples(
  path: str, image: str = "image", depth: str | None = None, segmentation: str | None = None
) -> _Triples:
  """image, depth and segmentation as encoded bytes: `path/image/a.jpg`, `path/depth/a.png`, ...

  Files belong together that have the same name but for its suffix, also in sub-folders. Follow
  with `decode|decode_depth|decode_segmentation`.

  Args:
    path: the folder that holds the others.
    image: sub-folder of the images.
    depth: sub-folder of the depth maps; default: `depth` where there is one; "" for none.
    segmentation: sub-folder of the segmentations; default: `segmentation` where there is one.

  Raises:
    UserError: a folder that is not there or empty, or a file without its partners.
  """
  path = os.path.expanduser(str(path)).rstrip("/")
  folders = {"image": f"{path}/{image}"}
  for key, name in (("depth", depth), ("segmentation", segmentation)):
    folder = f"{path}/{key if name is None else name}"
    if name or (name is None and _is_folder(folder)):
      folders[key] = folder
  for key, folder in folders.items():
    if not _is_folder(folder):
      raise UserError(f"source triples: {key} = {folder[len(path) + 1 :]!r}: {folder} is no folder")
  names = {key: _by_stem(folder) for key, folder in folders.items()}
  for key in names:
    for other in names:
      if lacking := sorted(names[key].keys() - names[other].keys()):
        raise UserError(
          f"source triples: {len(lacking)} files of {folders[key]} have no partner in "
          f"{folders[other]}, first {names[key][lacking[0]]}"
        )
  if not names["image"]:
    raise UserError(f"source triples: {folders['image']} has no images ({', '.join(_SUFFIXES)})")
  return _Triples(folders, names, sorted(names["image"]))
