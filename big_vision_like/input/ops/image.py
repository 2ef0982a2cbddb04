"""Ops on `image`: bytes, then uint8 [H, W, C], then float32 after `value_range`."""

import io
import math
from typing import Any

import numpy as np

from big_vision_like.config import UserError, unknown

Example = dict[str, Any]
METHODS = ("nearest", "bilinear", "bicubic", "lanczos")


def _op(fn, key="image"):
  """Lifts array -> array to example -> example."""
  return lambda example, rng: {**example, key: fn(example[key], rng)}


def decode(channels: int = 3, key: str = "image"):
  """Bytes of a JPEG, PNG, WebP or GIF -> uint8 [H, W, channels] (1 or 3); arrays stay."""

  def run(data, rng):
    from PIL import Image

    if not isinstance(data, (bytes, bytearray)):
      return data
    with Image.open(io.BytesIO(data)) as picture:
      array = np.asarray(picture.convert({1: "L", 3: "RGB"}[channels]))
    return array.reshape(*array.shape[:2], channels)

  if channels not in (1, 3):
    raise UserError(f"op decode: channels = {channels!r}; expected 1 or 3")
  return _op(run, key)


def _resized(image: np.ndarray, size: tuple[int, int], method: str) -> np.ndarray:
  """PIL's resize (antialiased on the way down), channel by channel."""
  from PIL import Image

  if image.shape[:2] == size:
    return image
  filters = Image.Resampling
  by_name = dict(
    zip(METHODS, (filters.NEAREST, filters.BILINEAR, filters.BICUBIC, filters.LANCZOS))
  )
  planes = [
    np.asarray(Image.fromarray(image[..., c]).resize(size[::-1], by_name[method]))
    for c in range(image.shape[-1])
  ]
  return np.stack(planes, -1)


def _size(op: str, height: int, width: int | None) -> tuple[int, int]:
  size = (height, height if width is None else width)
  if not all(isinstance(s, int) and s > 0 for s in size):
    raise UserError(f"op {op}: size {size} is not two positive whole numbers; write {op}(8, 16)")
  return size


def _numbers(op: str, *, above: float = -math.inf, **values: Any) -> None:
  """Every one of `values` is a number above `above`, or a tuple of such."""
  for name, value in values.items():
    parts = value if isinstance(value, (tuple, list)) else (value,)
    if not parts or not all(isinstance(v, (int, float)) and v > above for v in parts):
      raise UserError(f"op {op}: {name} = {value!r}; expected numbers above {above}")


def _range(op: str, name: str, pair: Any) -> None:
  _numbers(op, above=0, **{name: pair})
  if not isinstance(pair, (tuple, list)) or len(pair) != 2 or pair[0] > pair[1]:
    raise UserError(f"op {op}: {name} = {pair!r}; expected (low, high)")


def _check_fits(image: np.ndarray, height: int, width: int) -> None:
  if image.shape[0] < height or image.shape[1] < width:
    raise ValueError(f"image {image.shape} is smaller than the crop {height} x {width}")


def _method(op: str, method: str) -> str:
  if method not in METHODS:
    raise unknown(f"op {op}: method", method, METHODS)
  return method


def resize(height: int, width: int | None = None, method: str = "bilinear"):
  """To height x width (a square with one number), whatever the aspect ratio."""
  size = _size("resize", height, width)
  _method("resize", method)
  return _op(lambda x, rng: _resized(x, size, method))


def resize_small(smaller: int, method: str = "bilinear"):
  """Scales so that the smaller side is `smaller`."""
  _numbers("resize_small", above=0, smaller=smaller)
  _method("resize_small", method)

  def run(x, rng):
    scale = smaller / min(x.shape[:2])
    return _resized(x, (round(x.shape[0] * scale), round(x.shape[1] * scale)), method)

  return _op(run)


def central_crop(height: int, width: int | None = None):
  """The middle height x width."""
  h, w = _size("central_crop", height, width)

  def run(x, rng):
    _check_fits(x, h, w)
    top, left = (x.shape[0] - h) // 2, (x.shape[1] - w) // 2
    return x[top : top + h, left : left + w]

  return _op(run)


def random_crop(height: int, width: int | None = None):
  """A random height x width."""
  h, w = _size("random_crop", height, width)

  def run(x, rng):
    _check_fits(x, h, w)
    top, left = rng.integers(x.shape[0] - h + 1), rng.integers(x.shape[1] - w + 1)
    return x[top : top + h, left : left + w]

  return _op(run)


def random_resized_crop(
  height: int,
  width: int | None = None,
  area: tuple[float, float] = (0.08, 1.0),
  ratio: tuple[float, float] = (3 / 4, 4 / 3),
  method: str = "bilinear",
):
  """Inception crop (Szegedy et al. 2015): random area and aspect ratio, then resized."""
  size = _size("random_resized_crop", height, width)
  _method("random_resized_crop", method)
  for name, pair in (("area", area), ("ratio", ratio)):
    _range("random_resized_crop", name, pair)
  return _op(lambda x, rng: _inception_crop(x, rng, size, area, ratio, method))


def _inception_crop(
  x: np.ndarray,
  rng: np.random.Generator,
  size: tuple[int, int],
  area: tuple[float, float],
  ratio: tuple[float, float],
  method: str,
) -> np.ndarray:
  full_h, full_w = x.shape[:2]
  for _ in range(10):
    target = full_h * full_w * rng.uniform(*area)
    aspect = np.exp(rng.uniform(*np.log(ratio)))
    w, h = round((target * aspect) ** 0.5), round((target / aspect) ** 0.5)
    if 0 < h <= full_h and 0 < w <= full_w:
      top, left = rng.integers(full_h - h + 1), rng.integers(full_w - w + 1)
      return _resized(x[top : top + h, left : left + w], size, method)
  side = min(full_h, full_w)
  top, left = (full_h - side) // 2, (full_w - side) // 2
  return _resized(x[top : top + side, left : left + side], size, method)


def multi_crop(
  global_size: int,
  local_size: int = 96,
  num_local: int = 8,
  global_area: tuple[float, float] = (0.4, 1.0),
  local_area: tuple[float, float] = (0.05, 0.4),
  num_global: int = 2,
  ratio: tuple[float, float] = (3 / 4, 4 / 3),
  method: str = "bicubic",
  flip: bool = True,
):
  """Views of one image (SwAV, arXiv:2006.09882; DINO, arXiv:2104.14294).

  `image` [H, W, C] becomes `global` [num_global, S, S, C] and, where num_local > 0, `local`
  [num_local, s, s, C]: Inception crops of large and of small areas, mirrored at random.
  """
  sizes = [_size("multi_crop", s, None) for s in (global_size, local_size)]
  _method("multi_crop", method)
  for name, pair in (("global_area", global_area), ("local_area", local_area), ("ratio", ratio)):
    _range("multi_crop", name, pair)
  counts = (num_global, num_local)
  if not all(isinstance(n, int) for n in counts) or num_global < 1 or num_local < 0:
    raise UserError(f"op multi_crop: num_global, num_local = {counts}; expected >= 1 and >= 0")

  def run(example, rng):
    def crop(size, area):
      view = _inception_crop(example["image"], rng, size, area, ratio, method)
      return view[:, ::-1] if flip and rng.random() < 0.5 else view

    out = {k: v for k, v in example.items() if k != "image"}
    for key, count, size, area in zip(
      ("global", "local"), counts, sizes, (global_area, local_area)
    ):
      if count:
        out[key] = np.stack([crop(size, area) for _ in range(count)])
    return out

  return run


def flip_lr():
  """Mirrors every second image, at random."""
  return _op(lambda x, rng: x[:, ::-1] if rng.random() < 0.5 else x)


def pad(height: int, width: int | None = None, value: int = 0):
  """Pads at the bottom and right to height x width."""
  h, w = _size("pad", height, width)

  def run(x, rng):
    missing = (h - x.shape[0], w - x.shape[1])
    if min(missing) < 0:
      raise ValueError(f"image {x.shape} is larger than {h} x {w}")
    return np.pad(x, ((0, missing[0]), (0, missing[1]), (0, 0)), constant_values=value)

  return _op(run)


def random_place(height: int, width: int | None = None, value: int = 0):
  """Pastes the image, whole, at a random place of a height x width canvas of `value`."""
  h, w = _size("random_place", height, width)

  def run(x, rng):
    free = (h - x.shape[0], w - x.shape[1])
    if min(free) < 0:
      raise ValueError(f"image {x.shape} is larger than {h} x {w}")
    top, left = (int(rng.integers(f + 1)) for f in free)
    sides = ((top, free[0] - top), (left, free[1] - left), (0, 0))
    return np.pad(x, sides, constant_values=value)

  return _op(run)


def to_rgb():
  """One channel -> three; three stay."""
  return _op(lambda x, rng: np.repeat(x, 3, -1) if x.shape[-1] == 1 else x)


def value_range(low: float = -1.0, high: float = 1.0, key: str = "image"):
  """uint8 0..255 -> float32 low..high."""
  _numbers("value_range", low=low, high=high)

  def run(x, rng):
    return x.astype(np.float32) * np.float32((high - low) / 255) + np.float32(low)

  return _op(run, key)


def standardize(
  mean: tuple[float, ...] = (0.485, 0.456, 0.406),
  std: tuple[float, ...] = (0.229, 0.224, 0.225),
  key: str = "image",
):
  """uint8 -> float32 (x / 255 - mean) / std; ImageNet's numbers by default."""
  _numbers("standardize", mean=mean)
  _numbers("standardize", above=0, std=std)
  mean, std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
  return _op(lambda x, rng: (x.astype(np.float32) / 255 - mean) / std, key)
