"""Files of a sample -> fields of an example, by their extension: `jpg` -> image, `txt` -> text."""

import io
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from big_vision_like.input.bad import BadExample


def _bytes(data: bytes) -> bytes:
  if not data:
    raise BadExample("empty file", "0 bytes")
  return data


def _text(data: bytes) -> str:
  try:
    return data.decode("utf-8")
  except UnicodeDecodeError as e:
    raise BadExample("not UTF-8", str(e)) from None


def _label(data: bytes) -> int:
  try:
    return int(data)
  except ValueError:
    raise BadExample("not a label", repr(data[:40])) from None


def _json(data: bytes) -> Any:
  try:
    return json.loads(data)
  except (ValueError, RecursionError) as e:
    raise BadExample("not JSON", str(e)) from None


def _npy(data: bytes) -> np.ndarray:
  """An array of a .npy file. Its size is checked before memory is taken for it."""
  try:
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else None
    header = header or np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(stream)
    start, size = stream.tell(), math.prod(shape) * dtype.itemsize
    if dtype.hasobject or start + size != len(data):
      raise ValueError(f"{dtype}{shape} in {len(data) - start} bytes")
    flat = np.frombuffer(data, dtype, math.prod(shape), start)
    return flat.reshape(shape, order="F" if fortran else "C").copy()
  except Exception as e:  # a header is Python syntax, for which its parser has many errors
    raise BadExample("not an array", f"{type(e).__name__}: {e}") from None


READERS: dict[str, tuple[str, Callable[[bytes], Any]]] = {
  **dict.fromkeys(("jpg", "jpeg", "png", "webp", "gif", "bmp"), ("image", _bytes)),
  **dict.fromkeys(("mp4", "avi", "mkv", "webm", "mov"), ("video", _bytes)),
  **dict.fromkeys(("wav", "flac", "mp3", "ogg"), ("audio", _bytes)),
  "txt": ("text", _text),
  "cls": ("label", _label),
  "json": ("json", _json),
  "npy": ("npy", _npy),
}


def of_extension(extension: str) -> tuple[str, Callable[[bytes], Any]]:
  """(field, reader of its bytes): `jpg` -> image, `depth.png` -> depth, `xyz` -> xyz as bytes."""
  name, _, kind = extension.rpartition(".")
  if kind not in READERS:
    return extension, bytes
  field, reader = READERS[kind]
  return name or field, reader
