"""What the ops on images share: checks of their arguments, resizing, boxes of random crops."""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from big_vision_like.config import UserError, unknown
from big_vision_like.input.bad import BadExample

METHODS = ("nearest", "bilinear", "bicubic", "lanczos", "area")
FLAVOURS = ("pil", "tf")


def on_key(fn: Callable[[np.ndarray, np.random.Generator], np.ndarray], key: str = "image"):
  """Lifts array -> array to example -> example."""
  return lambda example, rng: {**example, key: fn(example[key], rng)}


# ------------------------------------------------------------------------------------------ checks


def size_of(op: str, height: int, width: int | None) -> tuple[int, int]:
  """(height, width), a square with one number."""
  size = (height, height if width is None else width)
  if not all(isinstance(s, int) and s > 0 for s in size):
    raise UserError(f"op {op}: size {size} is not two positive whole numbers; write {op}(8, 16)")
  return size


def numbers(op: str, *, above: float = -math.inf, **values: Any) -> None:
  """Every one of `values` is a number above `above`, or a tuple of such."""
  for name, value in values.items():
    parts = value if isinstance(value, (tuple, list)) else (value,)
    if not parts or not all(isinstance(v, (int, float)) and v > above for v in parts):
      raise UserError(f"op {op}: {name} = {value!r}; expected numbers above {above}")


def bounds(op: str, name: str, pair: Any) -> None:
  """(low, high), both positive."""
  numbers(op, above=0, **{name: pair})
  if not isinstance(pair, (tuple, list)) or len(pair) != 2 or pair[0] > pair[1]:
    raise UserError(f"op {op}: {name} = {pair!r}; expected (low, high)")


def probability(op: str, p: Any, name: str = "p") -> None:
  """A number from 0 to 1."""
  if not isinstance(p, (int, float)) or not 0 <= p <= 1:
    raise UserError(f"op {op}: {name} = {p!r}; expected a probability from 0 to 1")


def method_of(op: str, method: str) -> str:
  """One of METHODS."""
  if method not in METHODS:
    raise unknown(f"op {op}: method", method, METHODS)
  return method


def check_uint8(op: str, key: str, image: Any) -> None:
  """Ops on colours come before `value_range`."""
  found = getattr(image, "dtype", type(image).__name__)
  if found != np.uint8:
    raise UserError(f"op {op}: {key} is {found}; expected uint8, after decode, before value_range")


# ---------------------------------------------------------------------------------------- resizing


def _pil(method: str) -> Any:
  from PIL import Image

  return Image.Resampling["BOX" if method == "area" else method.upper()]


def resized(image: np.ndarray, size: tuple[int, int], method: str) -> np.ndarray:
  """PIL's resize of [H, W, C] (antialiased on the way down); "area" is its box filter."""
  from PIL import Image

  if image.shape[:2] == size:
    return image
  pil_filter = _pil(method)
  plane = lambda x: np.asarray(Image.fromarray(x).resize(size[::-1], pil_filter))
  if image.dtype == np.uint8 and image.shape[-1] == 3:
    return plane(image)  # all channels at once: the same numbers, in two thirds of the time
  return np.stack([plane(image[..., c]) for c in range(image.shape[-1])], -1)


def resized_box(
  image: np.ndarray, box: tuple[float, float, float, float], size: tuple[int, int], method: str
) -> np.ndarray:
  """The part (top, left, height, width), in fractions of pixels, of uint8 [H, W, 3]."""
  from PIL import Image

  top, left, height, width = box
  corners = (left, top, min(left + width, image.shape[1]), min(top + height, image.shape[0]))
  return np.asarray(Image.fromarray(image).resize(size[::-1], _pil(method), box=corners))


def tf_resized(
  image: np.ndarray, size: tuple[int, int], method: str, antialias: bool
) -> np.ndarray:
  """`tf.image.resize` of TensorFlow 2: W_rows x W_columns^T, pixel centres at half numbers.

  uint8 is rounded (half to even) and clipped to uint8; other types become float32.
  """
  if image.shape[:2] == size:
    return image
  rows, columns = (
    weights(n, m, method, antialias) for n, m in zip(image.shape[:2], size, strict=True)
  )
  x = _product(rows, image.astype(np.float32))
  x = _product(columns, x.swapaxes(0, 1)).swapaxes(0, 1)
  return np.clip(np.rint(x), 0, 255).astype(np.uint8, "C") if image.dtype == np.uint8 else x


def _product(w: np.ndarray, x: np.ndarray) -> np.ndarray:
  """w @ x along x's first axis: the few weights of each row, one after the other."""
  used = w != 0
  first = used.argmax(1)
  taps = int((used.shape[1] - used[:, ::-1].argmax(1) - first).max())
  first = np.minimum(first, w.shape[1] - taps)
  at = np.arange(len(w))
  return sum(w[at, first + k][:, None, None] * x[first + k] for k in range(taps))


@functools.lru_cache(64)
def weights(inputs: int, outputs: int, method: str, antialias: bool) -> np.ndarray:
  """float32 [outputs, inputs] of a resize along one axis; every row sums to 1.

  w_ij ~ k((j + 1/2 - c_i) / s), c_i = (i + 1/2) inputs / outputs, and s = inputs / outputs where
  that is > 1 and `antialias`, else 1. "nearest" takes floor(c_i); "area" the overlap of pixels.
  """
  scale = inputs / outputs
  centre = (np.arange(outputs)[:, None] + 0.5) * scale
  pixel = np.arange(inputs)[None, :]
  if method == "nearest":
    return (pixel == np.minimum(np.floor(centre), inputs - 1)).astype(np.float32)
  if method == "area":
    low, high = centre - scale / 2, centre + scale / 2
    w = np.clip(np.minimum(pixel + 1, high) - np.maximum(pixel, low), 0, None)
  else:
    w = KERNELS[method](np.abs(pixel + 0.5 - centre) / (max(scale, 1.0) if antialias else 1.0))
  return (w / w.sum(1, keepdims=True)).astype(np.float32)


def _triangle(x: np.ndarray) -> np.ndarray:
  return np.maximum(0, 1 - x)


def _keys(x: np.ndarray) -> np.ndarray:
  """Keys' cubic with a = -1/2 (Keys 1981)."""
  near, far = (1.5 * x - 2.5) * x**2 + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
  return np.where(x < 1, near, np.where(x < 2, far, 0))


def _lanczos3(x: np.ndarray) -> np.ndarray:
  return np.where(x < 3, np.sinc(x) * np.sinc(x / 3), 0)


KERNELS = {"bilinear": _triangle, "bicubic": _keys, "lanczos": _lanczos3}


# ------------------------------------------------------------------------------------------- crops


def check_fits(image: np.ndarray, height: int, width: int) -> None:
  """A crop lies inside its image."""
  if image.shape[0] < height or image.shape[1] < width:
    message = f"image {image.shape} is smaller than the crop {height} x {width}"
    raise BadExample("image too small", message)


def free_space(image: np.ndarray, height: int, width: int) -> tuple[int, int]:
  """Rows and columns of a height x width canvas that the image leaves."""
  free = (height - image.shape[0], width - image.shape[1])
  if min(free) < 0:
    message = f"image {image.shape} is larger than {height} x {width}"
    raise BadExample("image too large for its canvas", message)
  return free


def inception_box(
  shape: tuple[int, int],
  rng: np.random.Generator,
  area: tuple[float, float],
  ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
  """(top, left, height, width), random in area and aspect; after ten tries the middle square."""
  full_h, full_w = shape
  for _ in range(10):
    target = full_h * full_w * rng.uniform(*area)
    aspect = np.exp(rng.uniform(*np.log(ratio)))
    w, h = round((target * aspect) ** 0.5), round((target / aspect) ** 0.5)
    if 0 < h <= full_h and 0 < w <= full_w:
      top, left = rng.integers(full_h - h + 1), rng.integers(full_w - w + 1)
      return int(top), int(left), h, w
  side = min(full_h, full_w)
  return (full_h - side) // 2, (full_w - side) // 2, side, side


def mirrored(image: np.ndarray) -> np.ndarray:
  """Left to right; a copy, channel by channel: four times as fast as copying a reversed view."""
  if image.ndim != 3 or image.shape[-1] > 4:
    return image[:, ::-1]
  out = np.empty_like(image)
  for c in range(image.shape[-1]):
    out[..., c] = image[:, ::-1, c]
  return out
