"""Ops on colours and sharpness of uint8 images, the host's side of `config.augment`.

`key` is [H, W, C], or views [V, H, W, C] (`multi_crop`'s "global" and "local"): every view draws
its own numbers, and `p`, the probability, may be a tuple with one for each view, as DINO has it.
The definitions are those of `photometric`, which the accelerator's ops share.
"""

from collections.abc import Callable

import numpy as np

from big_vision_like.config import UserError, whole_number
from big_vision_like.input import recolor
from big_vision_like.input.pixels import bounds, check_uint8, numbers, probability
from big_vision_like.photometric import blur_radius

Probability = float | tuple[float, ...]


def _chance(op: str, fn: Callable, p: Probability, key: str):
  """`fn(uint8 [H, W, C], rng)` on an image or on views, each with its probability."""
  for value in p if isinstance(p, tuple) else (p,):
    probability(op, value)

  def one(x, rng, p):
    return fn(x, rng) if p == 1 or (p > 0 and rng.random() < p) else x

  def run(example, rng):
    x = example[key]
    check_uint8(op, key, x)
    if x.ndim == 3 and not isinstance(p, tuple):
      return {**example, key: one(x, rng, p)}
    each = p if isinstance(p, tuple) else (p,) * len(x)
    if x.ndim != 4 or len(each) != len(x):
      raise UserError(
        f"op {op}: p = {p!r} for {key} of shape {x.shape}; expected one for each view"
      )
    return {**example, key: np.stack([one(view, rng, p) for view, p in zip(x, each)])}

  return run


def color_jitter(
  brightness: float = 0.4,
  contrast: float = 0.4,
  saturation: float = 0.2,
  hue: float = 0.1,
  p: Probability = 0.8,
  key: str = "image",
):
  """Jitter of SimCLR (arXiv:2002.05709, Appendix A), the four parts in random order.

  Factors are uniform in max(0, 1 - strength)..1 + strength, against black, the mean luma and the
  gray image; hue turns by -hue..hue of the circle. Rounded to uint8 once, at the end. A strength
  of 0 leaves its part out.
  """
  strengths = dict(brightness=brightness, contrast=contrast, saturation=saturation, hue=hue)
  numbers("color_jitter", **strengths)
  if min(strengths.values()) < 0 or hue > 0.5:
    raise UserError(f"op color_jitter: {strengths}; expected numbers >= 0, hue at most 0.5")

  def fn(x, rng):
    drawn = [rng.uniform(max(0, 1 - s), 1 + s) if s else None for s in list(strengths.values())[:3]]
    turns = rng.uniform(-hue, hue) if hue else None
    return recolor.jitter(x, [*drawn, turns], rng.permutation(4))

  return _chance("color_jitter", fn, p, key)


def grayscale(p: Probability = 0.2, key: str = "image"):
  """RGB -> its luma (ITU-R BT.601) in all channels, at random (SimCLR, arXiv:2002.05709)."""
  return _chance("grayscale", lambda x, rng: recolor.gray(x), p, key)


def gaussian_blur(
  p: Probability = 0.5,
  sigma: tuple[float, float] = (0.1, 2.0),
  size: int | None = None,
  key: str = "image",
):
  """Gaussian blur, sigma uniform in pixels (SimCLR, arXiv:2002.05709, Appendix A).

  `size` taps in each direction, a tenth of the image's height by default; mirrored at the border.
  """
  bounds("gaussian_blur", "sigma", sigma)
  if size is not None:
    whole_number(size, "op gaussian_blur: size")

  def fn(x, rng):
    return recolor.blur(x, rng.uniform(*sigma), blur_radius(x.shape[0], size))

  return _chance("gaussian_blur", fn, p, key)


def solarize(p: Probability = 0.2, threshold: float = 0.5, key: str = "image"):
  """Inverts values at or above `threshold` in 0..1, at random (BYOL, arXiv:2006.07733)."""
  numbers("solarize", threshold=threshold)
  return _chance("solarize", lambda x, rng: recolor.solarize(x, threshold), p, key)


def posterize(bits: int = 4, p: Probability = 1.0, key: str = "image"):
  """Keeps the highest `bits` of the 8 (AutoAugment, arXiv:1805.09501)."""
  if whole_number(bits, "op posterize: bits") > 8:
    raise UserError(f"op posterize: bits = {bits}; expected 1 to 8")
  return _chance("posterize", lambda x, rng: recolor.posterize(x, bits), p, key)


def invert(p: Probability = 0.5, key: str = "image"):
  """255 - x, at random (AutoAugment, arXiv:1805.09501)."""
  return _chance("invert", lambda x, rng: recolor.invert(x), p, key)


def equalize(p: Probability = 1.0, key: str = "image"):
  """Flattens the histogram of every channel, as PIL's ImageOps.equalize defines it."""
  return _chance("equalize", lambda x, rng: recolor.equalize(x), p, key)


def autocontrast(p: Probability = 1.0, key: str = "image"):
  """Stretches every channel to 0..255 (PIL's ImageOps.autocontrast, rounded, not cut)."""
  return _chance("autocontrast", lambda x, rng: recolor.autocontrast(x), p, key)


def sharpness(factor: tuple[float, float] = (0.1, 1.9), p: Probability = 1.0, key: str = "image"):
  """Uniform factor between smoothed (0), as it is (1) and sharpened (PIL's ImageEnhance)."""
  numbers("sharpness", factor=factor)
  if not isinstance(factor, (tuple, list)) or len(factor) != 2 or not 0 <= factor[0] <= factor[1]:
    raise UserError(f"op sharpness: factor = {factor!r}; expected (low, high), at least 0")
  fn = lambda x, rng: recolor.sharpness(x, rng.uniform(*factor))
  return _chance("sharpness", fn, p, key)
