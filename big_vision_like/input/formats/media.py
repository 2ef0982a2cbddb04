"""What video and audio share: folders of such files, and files that were cut short."""

import importlib
import os
import re
import struct
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from big_vision_like.config import UserError
from big_vision_like.input import paths


class Folder:
  """Examples of files below a folder, listed when opened, read when asked for.

  Args:
    root: the folder.
    items: what each example is read from, names relative to the folder.
    texts: the class name of each, or "" for none.
    read: item -> the example without its label and text.
  """

  def __init__(
    self,
    root: str,
    items: Sequence[Any],
    texts: Sequence[str],
    read: Callable[[Any], dict[str, Any]],
  ):
    self.root, self.items, self.texts, self.read = root, items, texts, read
    self.labels = _numbered(sorted(set(texts) - {""}))

  def __len__(self) -> int:
    return len(self.items)

  def __getitem__(self, index: int) -> dict[str, Any]:
    example, text = self.read(self.items[index]), self.texts[index]
    return example | {"label": self.labels[text], "text": text} if text else example

  @property
  def classes(self) -> list[str]:
    """Names of the classes, by label where these are 0, 1, ..."""
    return sorted(self.labels, key=self.labels.get)


def _numbered(names: list[str]) -> dict[str, int]:
  """Class name -> label: the number it is, where all are whole numbers, else its place."""
  if all(re.fullmatch(r"\d{1,9}", n) for n in names):
    return {n: int(n) for n in names}
  return {n: i for i, n in enumerate(names)}


def found(
  path: str, where: str, suffixes: Sequence[str], files: str, what: str
) -> tuple[str, list[str]]:
  """The folder, and the names below it that end and match so, hidden ones left out.

  Raises:
    UserError: it is not a folder, or nothing in it matches.
  """
  root = str(path) if paths.is_remote(str(path)) else os.path.expanduser(str(path))
  names = [n for n in paths.listed(root, where, suffixes) if n.rsplit("/", 1)[-1][0] != "."]
  chosen = paths.matching(names, files)
  if not chosen:
    hint = f" that match files = {files!r}" if names else f" ({', '.join(suffixes)})"
    raise UserError(f"{where}: {path} has no {what}{hint}")
  return root, chosen


def classes(names: Sequence[str], where: str, label: str | None) -> list[str]:
  """The class name of each file: what the regular expression `label` finds in its own name (group
  1 where it has groups), else its topmost folder, else "" where no file lies in a folder.

  Raises:
    UserError: no regular expression, a file that it does not match, files beside class folders.
  """
  if label is None:
    out = [n.split("/")[0] if "/" in n else "" for n in names]
    if "" in out and any(out):
      raise UserError(
        f"{where}: {names[out.index('')]} lies beside class folders such as {max(out)}; move it "
        "into one, or choose with files"
      )
    return out
  try:
    pattern = re.compile(label)
  except (re.error, TypeError) as e:
    raise UserError(f"{where}: label = {label!r} is no regular expression: {e}") from None
  out = []
  for name in names:
    match = pattern.search(name.rsplit("/", 1)[-1])
    text = match and (match[1] if pattern.groups else match[0])
    if not text:
      raise UserError(f"{where}: label = {label!r} does not match {name}; choose with files")
    out.append(text)
  return out


def library(name: str, extra: str, where: str) -> ModuleType:
  """The module that decodes.

  Raises:
    UserError: it is not installed.
  """
  try:
    return importlib.import_module(name)
  except ImportError as e:
    raise UserError(f"{where}: {e}; pip install -e '.[{extra}]'") from None


def natural(name: str) -> list[Any]:
  """Sort key that puts `frame2` before `frame10`."""
  return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"([0-9]+)", name) if p]


# ------------------------------------------------------------------------------------ cut short


def cut_short(data: bytes) -> bool:
  """Whether a container says that more bytes should follow: RIFF (wav, avi), AIFF, ISO
  (mp4, mov), Matroska (mkv, webm), GIF, Ogg. False where it cannot be known.
  """
  check = _format(data)
  try:
    return check is not None and check(data)
  except (IndexError, struct.error):  # not even its head is whole
    return True


def _format(data: bytes) -> Callable[[bytes], bool] | None:
  for start, magic, check in (
    (0, b"RIFF", _riff),
    (0, b"FORM", _aiff),
    (4, b"ftyp", _iso),
    (0, b"\x1aE\xdf\xa3", _matroska),
    (0, b"GIF8", _gif),
    (0, b"OggS", _ogg),
  ):
    if data[start : start + 4] == magic:
      return check
  return None


def _riff(data: bytes) -> bool:
  (size,) = struct.unpack_from("<I", data, 4)
  return 0 < size < 0xFFFF_FFFF and 8 + size > len(data) + 1  # 1: padding that some leave out


def _aiff(data: bytes) -> bool:
  (size,) = struct.unpack_from(">I", data, 4)
  return 8 + size > len(data) + 1


def _iso(data: bytes) -> bool:
  """Boxes of size and type, one after the other."""
  at = 0
  while at + 8 <= len(data):
    (size,) = struct.unpack_from(">I", data, at)
    if size == 1:
      (size,) = struct.unpack_from(">Q", data, at + 8)
    if size == 0:  # to the end
      return False
    if size < 8:
      return False  # not a box: what follows the last one is not read by players either
    at += size
  return at > len(data)


def _vint(data: bytes, at: int) -> tuple[int | None, int]:
  """EBML's number of variable length and what follows; None: unknown."""
  length = 9 - data[at].bit_length()
  if length > 8:
    raise IndexError(at)
  bits = (1 << 7 * length) - 1
  value = int.from_bytes(data[at : at + length]) & bits
  return (None if value == bits else value), at + length


def _matroska(data: bytes) -> bool:
  size, at = _vint(data, 4)
  at += size or 0
  if data[at : at + 4] != b"\x18S\x80g":
    return at + 4 > len(data)
  size, at = _vint(data, at + 4)
  return size is not None and at + size > len(data)


def _gif(data: bytes) -> bool:
  return not data.rstrip(b"\0").endswith(b";")


def _ogg(data: bytes) -> bool:
  """The last page: 27 bytes, a table of segment lengths, the segments."""
  at = data.rfind(b"OggS")
  segments = data[at + 26]
  table = data[at + 27 : at + 27 + segments]
  return len(table) < segments or at + 27 + segments + sum(table) > len(data)
