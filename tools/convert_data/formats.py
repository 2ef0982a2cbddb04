"""Formats: an example becomes a payload (in any process), payloads become a shard (in one).

Every format has `encode(index, example)`, `file(plan, shard)`, `open(path)` with `write(payload)`
and `close()`, and `finish(out)`. The same examples make the same bytes.
"""

import io
import json
import pathlib
import re
import tarfile
from typing import Any

import numpy as np

from big_vision_like.config import UserError
from big_vision_like.input.bad import BadExample
from big_vision_like.input.formats import records
from big_vision_like.metrics import encode_png
from tools.convert_data.manifest import Plan

Example = dict[str, Any]


def make(to: str, features: dict[str, Any] | None = None) -> Any:
  """A format by name; TFDS needs to know its features."""
  if to == "tfds":
    from tools.convert_data import tfds

    return tfds.Tfds(features or {})
  return {"arrayrecord": ArrayRecord, "webdataset": WebDataset}[to]()


class ArrayRecord:
  """Records of `input/formats/records.py`: every value comes back with its type."""

  def encode(self, index: int, example: Example) -> bytes:
    return records.encode(example)

  def file(self, plan: Plan, shard: int) -> str:
    return f"{plan.name}-{plan.split}-{shard:05d}-of-{plan.shards:05d}.array_record"

  def open(self, path: pathlib.Path) -> Any:
    from array_record.python.array_record_module import ArrayRecordWriter

    return ArrayRecordWriter(str(path), "group_size:1")  # one record is read without another

  def finish(self, out: pathlib.Path) -> None:
    """Nothing more is needed."""


class WebDataset:
  """Tar files of `%08d.EXTENSION`, the number being the example's in the source.

  Bare extensions for what everybody names so: jpg, png, ... (image), wav, flac (audio), mp4
  (video), cls (an int under label), txt (a str under text). All else has its key before it:
  `depth.npy`, `segmentation.png`, `boxes.json`. uint8 [H, W, 1 or 3] becomes PNG, other arrays npy,
  bytes of no known kind have their key alone, and what is left is JSON. A str under `key`, the name
  of a sample in tar files, is left out.
  """

  def encode(self, index: int, example: Example) -> list[tuple[str, bytes]]:
    members = []
    for key, value in example.items():
      if key == "key" and isinstance(value, str):  # the sample's name in the shard it comes from
        continue
      if not re.fullmatch(r"[a-z0-9_]+", key):  # readers take extensions in lower case
        raise UserError(f"webdataset: key {key!r} is not of a-z, 0-9 and _; rename it")
      extension, data = _member(key, value)
      members.append((f"{index:08d}.{extension}", data))
    return members

  def file(self, plan: Plan, shard: int) -> str:
    return f"{plan.name}-{plan.split}-{shard:06d}.tar"

  def open(self, path: pathlib.Path) -> "_Tar":
    return _Tar(path)

  def finish(self, out: pathlib.Path) -> None:
    """Nothing more is needed."""


class _Tar:
  def __init__(self, path: pathlib.Path):
    self.tar = tarfile.open(path, "w", format=tarfile.GNU_FORMAT)  # noqa: SIM115

  def write(self, members: list[tuple[str, bytes]]) -> None:
    for name, data in members:
      info = tarfile.TarInfo(name)  # time, owner and mode are constants
      info.size = len(data)
      self.tar.addfile(info, io.BytesIO(data))

  def close(self) -> None:
    self.tar.close()


BARE = {"image": ("jpg", "png", "webp", "gif", "bmp"), "audio": ("wav", "flac"), "video": ("mp4",)}


def _member(key: str, value: Any) -> tuple[str, bytes]:
  """Extension and content."""
  if isinstance(value, (bytes, bytearray)):
    kind = media(value)
    if key == "image" and kind not in BARE["image"]:
      raise not_an_image(value)
    if kind is None and key == "text":  # TFDS has its texts as bytes
      return "txt", bytes(value).decode().encode()
    if kind is None:
      return key, bytes(value)
    return (kind if kind in BARE.get(key, ()) else f"{key}.{kind}"), bytes(value)
  if isinstance(value, np.ndarray) and value.ndim:
    if value.dtype == np.uint8 and value.ndim == 3 and value.shape[-1] in (1, 3) and value.size:
      return ("png" if key == "image" else f"{key}.png"), encode_png(value)
    out = io.BytesIO()
    try:
      np.save(out, value, allow_pickle=False)
    except ValueError:
      raise UserError(f"webdataset: {key} is an array of objects; drop or convert it") from None
    return f"{key}.npy", out.getvalue()
  if key == "label" and isinstance(value, (int, np.integer)) and not isinstance(value, bool):
    return "cls", str(int(value)).encode()
  if key == "text" and isinstance(value, str):
    return "txt", value.encode()
  return ("json" if key == "json" else f"{key}.json"), _json(key, value)


def _json(key: str, value: Any) -> bytes:
  def plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
      return value.tolist()
    if isinstance(value, bytes):
      return value.decode()
    raise TypeError(f"a {type(value).__name__}")

  try:
    return json.dumps(value, default=plain, ensure_ascii=False).encode()
  except (TypeError, ValueError) as e:
    raise UserError(
      f"webdataset: {key} does not go into JSON ({e}); drop it, or --to arrayrecord"
    ) from None


def media(data: bytes) -> str | None:
  """The extension of what these bytes are, by how they begin."""
  starts = {
    b"\xff\xd8\xff": "jpg",
    b"\x89PNG\r\n\x1a\n": "png",
    b"GIF8": "gif",
    b"BM": "bmp",
    b"fLaC": "flac",
  }
  for start, kind in starts.items():
    if data[: len(start)] == start:
      return kind
  if data[:4] == b"RIFF":
    return {b"WEBP": "webp", b"WAVE": "wav"}.get(bytes(data[8:12]))
  return "mp4" if data[4:8] == b"ftyp" else None


def not_an_image(data: bytes) -> BadExample:
  """The error for bytes that are none."""
  if not data:
    return BadExample("empty file", "an image of no bytes")
  return BadExample("not an image", f"it begins with {bytes(data[:8])!r}")
