"""Folders of video files, and of the frames of clips."""

import itertools
from typing import Any

from big_vision_like.config import UserError
from big_vision_like.input import paths
from big_vision_like.input.formats import media

VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".avi", ".webm", ".gif", ".mpg", ".mpeg", ".ts", ".ogv")
FRAMES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def videos(path: str, files: str = "*", label: str | None = None) -> media.Folder:
  """Video files anywhere below a folder or URL: {"video": bytes, "label", "text"}.

  The topmost folder of a file is its class: `text` is the folder's name, `label` its place among
  the sorted names (or the number it is, where all names are whole numbers). Files that lie in
  `path` itself have neither. Files: mp4, m4v, mov, mkv, avi, webm, gif, mpg, mpeg, ts, ogv; read
  when they are asked for; `decode_video` takes frames of them.

  Args:
    path: the folder, or an fsspec URL.
    files: pattern (`*`, `?`, `[...]`) of names relative to it, `/` among what `*` matches.
    label: regular expression whose first group, in the file's name, is the class instead.

  Raises:
    UserError: not a folder, no such file in it, files beside class folders, a `label` that is no
      regular expression or does not match a file.
  """
  root, names = media.found(path, "source videos", VIDEOS, files, "video")
  read = lambda name: {"video": paths.read_bytes(paths.inside(root, name), where="source videos")}
  return media.Folder(root, names, media.classes(names, "source videos", label), read)


def frames(
  path: str, fps: float = 25.0, files: str = "*", label: str | None = None
) -> media.Folder:
  """Folders of frame images, one folder a clip: {"video": list of bytes, "fps", "label", "text"}.

  Frames of a clip are in the order of their names, numbers counted as numbers. A clip is any folder
  below `path` with jpg, png, webp or bmp images; `path/class/clip/0001.jpg` has the class's name as
  `text` and `label` (as in `videos`), `path/clip/0001.jpg` has neither. All frames are read.

  Args:
    path: the folder, or an fsspec URL.
    fps: frames a second at which they were taken.
    files: pattern of names relative to `path`, `/` among what `*` matches.
    label: regular expression whose first group, in the name of the clip's folder, is the class.

  Raises:
    UserError: as `videos`; images in `path` itself; an fps that is not above 0.
  """
  where = "source frames"
  if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not fps > 0:
    raise UserError(f"{where}: fps = {fps!r}; expected a number above 0")
  root, names = media.found(path, where, FRAMES, files, "image")
  folder = lambda name: name.rpartition("/")[0]
  if alone := [n for n in names if not folder(n)]:
    raise UserError(f"{where}: {alone[0]} lies in {path} itself; expected a folder for each clip")
  names = sorted(names, key=lambda n: (folder(n), media.natural(n)))
  clips = [list(clip) for _, clip in itertools.groupby(names, key=folder)]

  def read(clip: list[str]) -> dict[str, Any]:
    data = [paths.read_bytes(paths.inside(root, name), where=where) for name in clip]
    return {"video": data, "fps": float(fps)}

  return media.Folder(root, clips, media.classes([folder(c[0]) for c in clips], where, label), read)
