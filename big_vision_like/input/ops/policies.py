"""Augmentation policies: several ops of random kinds and strengths on uint8 [H, W, C]."""

from typing import Any

import numpy as np

from big_vision_like.config import UserError, whole_number
from big_vision_like.input import recolor
from big_vision_like.input.pixels import check_uint8, numbers, on_key

# Strengths at level 0 and at the highest one (AutoAugment, arXiv:1805.09501, Table 6): degrees,
# shares of the image's width or height (150 of 331 pixels there), thresholds of 256, bits, factors.
RANGES = {
  "shear_x": (0.0, 0.3),
  "shear_y": (0.0, 0.3),
  "translate_x": (0.0, 150 / 331),
  "translate_y": (0.0, 150 / 331),
  "rotate": (0.0, 30.0),
  "solarize": (256.0, 0.0),
  "posterize": (8.0, 4.0),
  "contrast": (0.1, 1.9),
  "color": (0.1, 1.9),
  "brightness": (0.1, 1.9),
  "sharpness": (0.1, 1.9),
}
# TrivialAugment's "wide" space (arXiv:2103.10158, Table 7).
WIDE = {
  **dict.fromkeys(("shear_x", "shear_y"), (0.0, 0.99)),
  **dict.fromkeys(("translate_x", "translate_y"), (0.0, 32 / 224)),
  "rotate": (0.0, 135.0),
  "solarize": (256.0, 0.0),
  "posterize": (8.0, 2.0),
  **dict.fromkeys(("contrast", "color", "brightness", "sharpness"), (0.01, 2.0)),
}
SIGNED = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
KINDS = ("identity", "autocontrast", "equalize", *RANGES)

# ImageNet's 25 pairs of op, probability and level of 0..9 (arXiv:1805.09501, Table 9).
IMAGENET = """
posterize .4 8, rotate .6 9
solarize .6 5, autocontrast .6 5
equalize .8 8, equalize .6 3
posterize .6 7, posterize .6 6
equalize .4 7, solarize .2 4
equalize .4 4, rotate .8 8
solarize .6 3, equalize .6 7
posterize .8 5, equalize 1 2
rotate .2 3, solarize .6 8
equalize .6 8, posterize .4 6
rotate .8 8, color .4 0
rotate .4 9, equalize .6 2
equalize 0 7, equalize .8 8
invert .6 4, equalize 1 8
color .6 4, contrast 1 8
rotate .8 8, color 1 2
color .8 8, solarize .8 7
sharpness .4 7, invert .6 8
shear_x .6 5, equalize 1 9
color .4 0, equalize .6 3
equalize .4 7, solarize .2 4
solarize .6 5, autocontrast .6 5
invert .6 4, equalize 1 8
color .6 4, contrast 1 8
equalize .8 8, equalize .6 3
"""


def _affine(image: np.ndarray, matrix: tuple[float, ...], fill: int) -> np.ndarray:
  """Pixel (x, y) is taken from (a x + b y + c, d x + e y + f), the nearest one, else `fill`."""
  from PIL import Image

  squeezed = image[..., 0] if image.shape[-1] == 1 else image
  out = Image.fromarray(squeezed).transform(
    squeezed.shape[1::-1],
    Image.Transform.AFFINE,
    matrix,
    Image.Resampling.NEAREST,
    fillcolor=fill if squeezed.ndim == 2 else (fill,) * 3,
  )
  return np.asarray(out).reshape(image.shape)


def _rotation(degrees: float, height: int, width: int) -> tuple[float, ...]:
  """Counter-clockwise about the middle."""
  cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
  x, y = width / 2, height / 2
  return (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)


def _apply(image: np.ndarray, kind: str, value: float, fill: int) -> np.ndarray:
  """One op of that strength."""
  height, width = image.shape[:2]
  match kind:
    case "identity":
      return image
    case "autocontrast" | "equalize" | "invert":
      return getattr(recolor, kind)(image)
    case "solarize":
      return recolor.solarize(image, (round(value) - 0.5) / 255)
    case "posterize":
      return recolor.posterize(image, round(value))
    case "color":
      return recolor.saturation(image, value)
    case "brightness" | "contrast" | "sharpness":
      return getattr(recolor, kind)(image, value)
    case "shear_x":
      return _affine(image, (1, value, 0, 0, 1, 0), fill)
    case "shear_y":
      return _affine(image, (1, 0, 0, value, 1, 0), fill)
    case "translate_x":
      return _affine(image, (1, 0, round(value * width), 0, 1, 0), fill)
    case "translate_y":
      return _affine(image, (1, 0, 0, 0, 1, round(value * height)), fill)
  return _affine(image, _rotation(value, height, width), fill)


def _strength(kind: str, level: float, ranges: dict[str, tuple[float, float]], rng: Any) -> float:
  """Of a level in 0..1; places are moved to either side at random."""
  low, high = ranges.get(kind, (0.0, 0.0))
  value = low + (high - low) * level
  return -value if kind in SIGNED and rng.random() < 0.5 else value


def _check(op: str, fill: int) -> None:
  if not isinstance(fill, int) or not 0 <= fill <= 255:
    raise UserError(f"op {op}: fill = {fill!r}; expected 0 to 255")


def randaugment(n: int = 2, m: float = 9, max_level: float = 10, fill: int = 128):
  """`n` ops drawn from 14, all of level `m` (RandAugment, arXiv:1909.13719).

  Of identity, autocontrast, equalize, shear and translate (x, y), rotate, solarize, posterize,
  contrast, color, brightness, sharpness, drawn with replacement. `m` of `max_level` (10, as in the
  paper; other libraries count to 30) scales the ranges of AutoAugment. What moves in from outside
  is `fill` (gray).
  """
  whole_number(n, "op randaugment: n", low=0)
  numbers("randaugment", above=0, max_level=max_level)
  numbers("randaugment", m=m)
  _check("randaugment", fill)
  if not 0 <= m <= max_level:
    raise UserError(f"op randaugment: m = {m!r}; expected 0 to max_level = {max_level}")

  def run(x, rng):
    check_uint8("randaugment", "image", x)
    for _ in range(n):
      kind = KINDS[rng.integers(len(KINDS))]
      x = _apply(x, kind, _strength(kind, m / max_level, RANGES, rng), fill)
    return x

  return on_key(run)


def _parsed(policy: str) -> list[list[tuple[str, float, float]]]:
  """Rows of (kind, probability, level in 0..1)."""
  rows = [[op.split() for op in line.split(",")] for line in policy.split("\n") if line]
  return [[(kind, float(p), int(level) / 9) for kind, p, level in row] for row in rows]


def autoaugment(fill: int = 128):
  """One of ImageNet's 25 pairs of ops, each op by its chance (AutoAugment, arXiv:1805.09501).

  The pairs are the paper's Table 9, the ranges its Table 6. What moves in is `fill` (gray).
  """
  _check("autoaugment", fill)
  pairs = _parsed(IMAGENET)

  def run(x, rng):
    check_uint8("autoaugment", "image", x)
    for kind, p, level in pairs[rng.integers(len(pairs))]:
      if rng.random() < p:
        x = _apply(x, kind, _strength(kind, level, RANGES, rng), fill)
    return x

  return on_key(run)


def trivial_augment(fill: int = 128):
  """One op of the 14 with a strength drawn from 31 (TrivialAugment, wide, arXiv:2103.10158).

  Translations reach 32 pixels of 224, in proportion. What moves in is `fill` (gray).
  """
  _check("trivial_augment", fill)

  def run(x, rng):
    check_uint8("trivial_augment", "image", x)
    kind = KINDS[rng.integers(len(KINDS))]
    return _apply(x, kind, _strength(kind, rng.integers(31) / 30, WIDE, rng), fill)

  return on_key(run)
