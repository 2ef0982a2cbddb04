"""Encoded pictures -> uint8 arrays: by content, bounded in size, every failure with its kind."""

import functools
import io
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from big_vision_like.input.bad import BadExample

MAX_PIXELS = 100_000_000
"""Larger pictures are bad examples; their pixels are never decoded."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
JPEG = b"\xff\xd8\xff"
ORIENTATION = 0x0112  # EXIF's tag
# What an intact file has in its last so many bytes.
ENDS = {JPEG: (b"\xff\xd9", 64), b"\x89PNG": (b"IEND", 64), b"GIF8": (b";", 1)}


def decode(
  data: bytes, channels: int = 3, draft: int | None = None, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
  """A picture as uint8 [H, W, channels], channels 1 (luma, ITU-R BT.601) or 3.

  JPEG by simplejpeg (libjpeg-turbo, the same pixels as PIL), everything else by PIL. `draft`: a
  JPEG is decoded at 1/2, 1/4 or 1/8 of its size, the smallest whose smaller side is >= draft.

  Raises:
    BadExample: empty file, not an image, image too large, truncated image, unreadable image.
  """
  if channels == 3 and (size := jpeg_size(data, max_pixels)):
    return decode_jpeg(data, size, 1 if draft is None else shrinkage(min(size), draft))
  with opened(data, max_pixels) as picture:
    if draft is not None and picture.format == "JPEG":
      factor = shrinkage(min(picture.size), draft)
      picture.draft(None, (picture.width // factor, picture.height // factor))
    return _pixels(picture, data, channels)


def shrinkage(size: float, least: float) -> int:
  """The largest of 1, 2, 4, 8 by which `size` may be divided and stays >= `least`."""
  return next((f for f in (8, 4, 2) if size / f >= least), 1)


def jpeg_size(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int] | None:
  """Height and width of a JPEG that simplejpeg decodes as PIL does; None for all other data."""
  import simplejpeg

  if data[:3] != JPEG:
    return None
  try:
    height, width, space, _ = simplejpeg.decode_jpeg_header(data)
  except ValueError:
    return None
  if space not in ("YCbCr", "Gray"):
    return None  # CMYK: PIL knows about Adobe's inversion
  _check_size(height, width, max_pixels)
  return height, width


def decode_jpeg(
  data: bytes, size: tuple[int, int], factor: int = 1, bottom: int | None = None
) -> np.ndarray:
  """RGB of a JPEG of that `jpeg_size`, both sides divided by `factor` (1, 2, 4, 8), rounded up.

  With `bottom`, rows below that one (of the whole picture) may be missing from the result.
  """
  import simplejpeg

  rows = None if bottom is None or cut_off(data) else _upper_rows(data, size[0], bottom)
  height, width = (-(-s // factor) for s in (rows.height if rows else size[0], size[1]))
  try:
    return simplejpeg.decode_jpeg(
      rows.data if rows else data,
      "RGB",
      min_height=height,
      min_width=width,
      strict=rows is None,  # libjpeg would warn about the rows that are left over
    )
  except ValueError:  # libjpeg has warned: PIL tells what is tolerable from what is broken
    with opened(data) as picture:
      if factor > 1:
        picture.draft("RGB", (size[1] // factor, size[0] // factor))
      return _pixels(picture, data, 3)


class _Rows(NamedTuple):
  data: bytes
  height: int


def _upper_rows(data: bytes, height: int, bottom: int) -> _Rows | None:
  """The same JPEG with a header that says it ends soon below row `bottom`: less to decode.

  None where nothing is saved, or the file is not of one baseline scan of all components. One more
  row of blocks, of at most 16 pixels, is kept, since chroma is interpolated across its border.
  """
  shorter = (-(-bottom // 16) + 1) * 16
  at, frame = 2, 0
  while shorter < height and at + 10 < len(data) and data[at] == 0xFF:
    marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
    if marker == 0xDA:  # start of scan
      if not frame or data[at + 4] != data[frame + 9]:
        return None
      head = data[: frame + 5] + shorter.to_bytes(2, "big")
      return _Rows(head + data[frame + 7 :], shorter)
    if marker in (0xC0, 0xC1):  # baseline or extended, Huffman
      frame = at
    elif 0xC2 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
      return None  # progressive and others
    at += 2 + length
  return None


def opened(data: bytes, max_pixels: int = MAX_PIXELS) -> Any:
  """PIL's image of the data, its header read, its size checked, its pixels not decoded."""
  if not data:
    raise BadExample("empty file", "0 bytes")
  failure = None
  # Not Image.open: it warns about large sizes before anyone has seen them.
  for factory, accept in _plugins():
    try:
      if accept(data[:16]) is True:
        picture = factory(io.BytesIO(data), "")
        break
    except Exception as e:
      failure = e
  else:
    if failure is None:
      raise BadExample("not an image", f"begins with {bytes(data[:8])!r}")
    raise _broken(data, failure) from None
  _check_size(picture.height, picture.width, max_pixels)
  return picture


def numbers(data: bytes) -> tuple[str, np.ndarray]:
  """PIL's mode of a picture and its pixels as the file has them, no colour converted.

  Raises:
    BadExample: as `decode`.
  """
  with opened(data) as picture:
    try:
      return picture.mode, np.asarray(picture)
    except Exception as e:  # PIL's plugins raise many types
      raise _broken(data, e) from None


def orientation(data: bytes) -> int:
  """EXIF's orientation, 1 to 8; 1 where there is none."""
  if b"Exif" not in data[:65536] and b"eXIf" not in data and b"EXIF" not in data:
    return 1
  with opened(data) as picture:
    try:
      value = picture.getexif().get(ORIENTATION, 1)
    except Exception:  # broken EXIF of a good picture
      value = 1
  return value if value in range(1, 9) else 1


def oriented(image: np.ndarray, orientation: int) -> np.ndarray:
  """[H, W, C] turned and mirrored as EXIF's orientation asks."""
  if orientation >= 5:
    image = image.swapaxes(0, 1)
  if orientation in (3, 4, 7, 8):
    image = image[::-1]
  if orientation in (2, 3, 6, 7):
    image = image[:, ::-1]
  return np.ascontiguousarray(image)


@functools.cache
def _plugins() -> list[tuple[Callable, Callable]]:
  """PIL's (factory, accept) of the FORMATS."""
  from PIL import Image

  Image.init()
  return [Image.OPEN[name] for name in FORMATS if name in Image.OPEN]


def _check_size(height: int, width: int, max_pixels: int) -> None:
  if height * width > max_pixels:
    raise BadExample("image too large", f"{width} x {height} pixels; at most {max_pixels} are read")


def _pixels(picture: Any, data: bytes, channels: int) -> np.ndarray:
  """Colour spaces as PIL converts them, alpha dropped, 16 bits divided by 257 and rounded."""
  mode = {1: "L", 3: "RGB"}[channels]
  try:
    picture.load()
    if picture.mode[0] in "IF":
      array = _narrow(np.asarray(picture))
    else:
      picture.info.pop("transparency", None)  # PIL would warn, then drop it
      array = np.asarray(picture if picture.mode == mode else picture.convert(mode))
  except BadExample:
    raise
  except Exception as e:
    raise _broken(data, e) from None
  array = array.reshape(*array.shape[:2], -1)
  return array if array.shape[-1] == channels else np.repeat(array, channels, -1)


def _narrow(image: np.ndarray) -> np.ndarray:
  """16 bits -> 8: 65535 is 255."""
  if image.dtype.kind not in "iu":
    raise BadExample("unreadable image", f"pixels of {image.dtype}; expected 8 or 16 bits")
  return ((np.clip(image, 0, 65535).astype(np.uint32) + 128) // 257).astype(np.uint8)


def cut_off(data: bytes) -> bool:
  """Whether the end is missing that files of this format have."""
  for magic, (end, tail) in ENDS.items():
    if data.startswith(magic):
      return end not in data[-tail:]
  return data[:4] == b"RIFF" and len(data) < 8 + int.from_bytes(data[4:8], "little")


def _broken(data: bytes, error: Exception) -> BadExample:
  kind = "truncated" if cut_off(data) or "truncated" in str(error) else "unreadable"
  return BadExample(f"{kind} image", f"{len(data)} bytes, {type(error).__name__}: {error}")
