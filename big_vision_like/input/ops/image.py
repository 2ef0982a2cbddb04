"""Ops on `image`: bytes, then uint8 [H, W, C], then float32 after `value_range`."""

import numpy as np

from big_vision_like.config import UserError, unknown, whole_number
from big_vision_like.input.formats import decoding
from big_vision_like.input.pixels import (
  FLAVOURS,
  method_of,
  numbers,
  on_key,
  resized,
  size_of,
  tf_resized,
)


def decode(
  channels: int = 3,
  key: str = "image",
  draft: int | None = None,
  orient: bool = False,
  max_pixels: int = decoding.MAX_PIXELS,
):
  """Bytes of a JPEG, PNG, WebP or GIF -> uint8 [H, W, channels] (1 or 3); arrays stay.

  The content decides, not a file's name: JPEG by simplejpeg (the same pixels as PIL's), the rest
  by PIL, BMP, TIFF and PPM included; of a GIF the first frame. Luma is ITU-R BT.601. Alpha is
  dropped, CMYK converted as PIL does, 16 bits are divided by 257 and rounded (of 16-bit colour
  PNGs PIL gives the high byte alone).

  `draft`: JPEGs are decoded at the smallest of 1, 1/2, 1/4, 1/8 of their size whose smaller side
  is >= draft (off by default). `orient`: turned as EXIF says (off by default). `max_pixels`: more
  pixels than these (10^8 by default), going by the header, are not decoded.

  Raises:
    BadExample: empty file, not an image, image too large, truncated image, unreadable image.
  """
  if channels not in (1, 3):
    raise UserError(f"op decode: channels = {channels!r}; expected 1 or 3")
  if draft is not None:
    whole_number(draft, "op decode: draft")
  whole_number(max_pixels, "op decode: max_pixels")

  def run(data, rng):
    if not isinstance(data, (bytes, bytearray, memoryview)):
      return data
    data = bytes(data)
    image = decoding.decode(data, channels, draft, max_pixels)
    turn = decoding.orientation(data) if orient else 1
    return image if turn == 1 else decoding.oriented(image, turn)

  return on_key(run, key)


# ---------------------------------------------------------------------------------------- resizing


def _resizer(op: str, method: str, antialias: bool, flavour: str):
  """(image, size) -> image."""
  method_of(op, method)
  if flavour not in FLAVOURS:
    raise unknown(f"op {op}: flavour", flavour, FLAVOURS)
  if flavour == "pil" and not antialias and method != "nearest":
    raise UserError(f"op {op}: antialias = False; PIL always does, flavour='tf' can do without")
  if flavour == "tf":
    return lambda x, size: tf_resized(x, size, method, antialias)
  return lambda x, size: resized(x, size, method)


def resize(
  height: int,
  width: int | None = None,
  method: str = "bilinear",
  antialias: bool = True,
  flavour: str = "pil",
  key: str = "image",
):
  """To height x width (a square with one number), whatever the aspect ratio.

  `method`: nearest, bilinear, bicubic, lanczos, area. `flavour` "pil": PIL's resize, which widens
  the kernel on the way down (antialias), in 8-bit fixed point for uint8. "tf": `tf.image.resize`
  of TensorFlow 2 (pixel centres at half numbers, Keys' cubic with a = -1/2, `antialias` on or
  off), in float32, rounded and clipped to uint8 where the image was uint8.
  """
  size = size_of("resize", height, width)
  to = _resizer("resize", method, antialias, flavour)
  return on_key(lambda x, rng: to(x, size), key)


def resize_small(
  smaller: int,
  method: str = "bilinear",
  antialias: bool = True,
  flavour: str = "pil",
  key: str = "image",
):
  """Scales so that the smaller side is `smaller`; methods and flavours are those of resize."""
  numbers("resize_small", above=0, smaller=smaller)
  to = _resizer("resize_small", method, antialias, flavour)

  def run(x, rng):
    scale = smaller / min(x.shape[:2])
    return to(x, (round(x.shape[0] * scale), round(x.shape[1] * scale)))

  return on_key(run, key)


def resize_long(
  longer: int,
  method: str = "bilinear",
  antialias: bool = True,
  flavour: str = "pil",
  key: str = "image",
):
  """Scales so that the longer side is `longer`; methods and flavours are those of resize."""
  whole_number(longer, "op resize_long: longer")
  to = _resizer("resize_long", method, antialias, flavour)

  def run(x, rng):
    scale = longer / max(x.shape[:2])
    return to(x, (max(1, round(x.shape[0] * scale)), max(1, round(x.shape[1] * scale))))

  return on_key(run, key)


# ------------------------------------------------------------------------------------------ values


def to_rgb():
  """One channel -> three; three stay."""
  return on_key(lambda x, rng: np.repeat(x, 3, -1) if x.shape[-1] == 1 else x)


def value_range(low: float = -1.0, high: float = 1.0, key: str = "image"):
  """uint8 0..255 -> float32 low..high."""
  numbers("value_range", low=low, high=high)
  scale, low = np.float32((high - low) / 255), np.float32(low)

  def run(x, rng):
    out = np.multiply(x, scale, dtype=np.float32)
    out += low
    return out

  return on_key(run, key)


def standardize(
  mean: tuple[float, ...] = (0.485, 0.456, 0.406),
  std: tuple[float, ...] = (0.229, 0.224, 0.225),
  key: str = "image",
):
  """uint8 -> float32 (x / 255 - mean) / std; ImageNet's numbers by default."""
  numbers("standardize", mean=mean)
  numbers("standardize", above=0, std=std)
  mean, std = np.asarray(mean, np.float32), np.asarray(std, np.float32)

  def run(x, rng):
    out = np.divide(x, np.float32(255), dtype=np.float32)
    if out.shape[-1] % mean.size or out.shape[-1] % std.size:
      return (out - mean) / std  # one channel becomes as many as there are means
    out -= mean
    out /= std
    return out

  return on_key(run, key)


def normalize(
  mean: tuple[float, ...] = (0.485, 0.456, 0.406),
  std: tuple[float, ...] = (0.229, 0.224, 0.225),
  key: str = "image",
):
  """The same as standardize, under the name that most libraries give it."""
  return standardize(mean, std, key)
