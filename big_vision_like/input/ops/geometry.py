"""Ops on the place of pixels: crops, mirrors, padding; `image` stays uint8 [H, W, C]."""

import numpy as np

from big_vision_like.config import UserError
from big_vision_like.input.formats import decoding
from big_vision_like.input.pixels import (
  bounds,
  check_fits,
  free_space,
  inception_box,
  method_of,
  mirrored,
  on_key,
  probability,
  resized,
  resized_box,
  size_of,
)


def central_crop(height: int, width: int | None = None):
  """The middle height x width."""
  h, w = size_of("central_crop", height, width)

  def run(x, rng):
    check_fits(x, h, w)
    top, left = (x.shape[0] - h) // 2, (x.shape[1] - w) // 2
    return x[top : top + h, left : left + w]

  return on_key(run)


def random_crop(height: int, width: int | None = None):
  """A random height x width."""
  h, w = size_of("random_crop", height, width)

  def run(x, rng):
    check_fits(x, h, w)
    top, left = rng.integers(x.shape[0] - h + 1), rng.integers(x.shape[1] - w + 1)
    return x[top : top + h, left : left + w]

  return on_key(run)


def random_resized_crop(
  height: int,
  width: int | None = None,
  area: tuple[float, float] = (0.08, 1.0),
  ratio: tuple[float, float] = (3 / 4, 4 / 3),
  method: str = "bilinear",
):
  """Inception crop (Szegedy et al. 2015): random area and aspect ratio, then resized."""
  size = size_of("random_resized_crop", height, width)
  method_of("random_resized_crop", method)
  for name, pair in (("area", area), ("ratio", ratio)):
    bounds("random_resized_crop", name, pair)

  def run(x, rng):
    top, left, h, w = inception_box(x.shape[:2], rng, area, ratio)
    return resized(x[top : top + h, left : left + w], size, method)

  return on_key(run)


def decode_random_resized_crop(
  height: int,
  width: int | None = None,
  area: tuple[float, float] = (0.08, 1.0),
  ratio: tuple[float, float] = (3 / 4, 4 / 3),
  method: str = "bilinear",
  key: str = "image",
):
  """`decode|random_resized_crop` in one, with the same draws: large JPEGs are decoded smaller.

  The box is drawn from the header's size. A JPEG is then decoded down to the box's last row, at
  the smallest of 1, 1/2, 1/4, 1/8 of its size at which the box is still at least height x width,
  so that it is only ever scaled down. At 1 the result is that of the two ops; below, it differs as
  libjpeg's scaling differs from `method`. Other formats and arrays are decoded whole. Always three
  channels.
  """
  size = size_of("decode_random_resized_crop", height, width)
  method_of("decode_random_resized_crop", method)
  for name, pair in (("area", area), ("ratio", ratio)):
    bounds("decode_random_resized_crop", name, pair)

  def run(data, rng):
    encoded = isinstance(data, (bytes, bytearray, memoryview))
    data = bytes(data) if encoded else data
    jpeg = decoding.jpeg_size(data) if encoded else None
    image = None if jpeg else (decoding.decode(data) if encoded else data)
    top, left, h, w = inception_box(jpeg or image.shape[:2], rng, area, ratio)
    if jpeg:
      factor = decoding.shrinkage(min(h / size[0], w / size[1]), 1)
      image = decoding.decode_jpeg(data, jpeg, factor, bottom=top + h)
      if factor > 1:
        return resized_box(image, tuple(v / factor for v in (top, left, h, w)), size, method)
    return resized(image[top : top + h, left : left + w], size, method)

  return on_key(run, key)


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
  sizes = [size_of("multi_crop", s, None) for s in (global_size, local_size)]
  method_of("multi_crop", method)
  for name, pair in (("global_area", global_area), ("local_area", local_area), ("ratio", ratio)):
    bounds("multi_crop", name, pair)
  counts = (num_global, num_local)
  if not all(isinstance(n, int) for n in counts) or num_global < 1 or num_local < 0:
    raise UserError(f"op multi_crop: num_global, num_local = {counts}; expected >= 1 and >= 0")

  def run(example, rng):
    x = example["image"]

    def crop(size, area):
      top, left, h, w = inception_box(x.shape[:2], rng, area, ratio)
      view = resized(x[top : top + h, left : left + w], size, method)
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
  return on_key(lambda x, rng: mirrored(x) if rng.random() < 0.5 else x)


def flip_ud(p: float = 0.5, key: str = "image"):
  """Turns images upside down (mirrored, not rotated), each with probability `p`."""
  probability("flip_ud", p)
  return on_key(lambda x, rng: x[::-1] if rng.random() < p else x, key)


def pad(height: int, width: int | None = None, value: int = 0, centered: bool = False):
  """Pads with `value` to height x width: at the bottom and right, or on all sides if `centered`."""
  h, w = size_of("pad", height, width)

  def run(x, rng):
    missing = free_space(x, h, w)
    top, left = (m // 2 if centered else 0 for m in missing)
    sides = ((top, missing[0] - top), (left, missing[1] - left), (0, 0))
    return np.pad(x, sides, constant_values=value)

  return on_key(run)


def random_place(height: int, width: int | None = None, value: int = 0):
  """Pastes the image, whole, at a random place of a height x width canvas of `value`."""
  h, w = size_of("random_place", height, width)

  def run(x, rng):
    free = free_space(x, h, w)
    top, left = (int(rng.integers(f + 1)) for f in free)
    sides = ((top, free[0] - top), (left, free[1] - left), (0, 0))
    return np.pad(x, sides, constant_values=value)

  return on_key(run)


def random_erasing(
  p: float = 0.25,
  area: tuple[float, float] = (0.02, 0.33),
  ratio: tuple[float, float] = (0.3, 3.3),
  value: int | str = "random",
  key: str = "image",
):
  """Covers a random box (Zhong et al. 2017, arXiv:1708.04896).

  With probability `p`, a box of `area` (a fraction of the image) and `ratio` (log-uniform, height
  over width) that lies inside; ten tries, then the image stays. `value`: "random" pixels in
  0..255, or that number.
  """
  probability("random_erasing", p)
  bounds("random_erasing", "area", area)
  bounds("random_erasing", "ratio", ratio)
  if value != "random" and (not isinstance(value, int) or not 0 <= value <= 255):
    raise UserError(f"op random_erasing: value = {value!r}; expected 'random' or 0 to 255")

  def run(x, rng):
    if p == 0 or rng.random() >= p:
      return x
    for _ in range(10):
      target = x.shape[0] * x.shape[1] * rng.uniform(*area)
      aspect = np.exp(rng.uniform(*np.log(ratio)))
      h, w = round((target * aspect) ** 0.5), round((target / aspect) ** 0.5)
      if 0 < h < x.shape[0] and 0 < w < x.shape[1]:
        top, left = rng.integers(x.shape[0] - h + 1), rng.integers(x.shape[1] - w + 1)
        box = (h, w, x.shape[-1])
        x = x.copy()
        x[top : top + h, left : left + w] = (
          rng.integers(0, 256, box, np.uint8) if value == "random" else value
        )
        return x
    return x

  return on_key(run, key)
