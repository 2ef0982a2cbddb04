"""Colour and blur of images [N, H, W, C], floats in 0..1: one definition for NumPy and for JAX.

The ops of the input pipeline and of `augment` draw the factors; here they are given, each a number
or an array [N, 1, 1, 1]. The array's own module computes: `xp` is `numpy` or `jax.numpy`.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

Images = Any  # Float[Array, "N H W C"] of NumPy or of JAX
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def _xp(x: Images) -> ModuleType:
  return x.__array_namespace__()


def luma(x: Images) -> Images:
  """[N, H, W, 1] of RGB; one channel stays."""
  return x @ _xp(x).asarray(LUMA, dtype=x.dtype)[:, None] if x.shape[-1] == 3 else x


def gray(x: Images) -> Images:
  """Luma in all channels."""
  return _xp(x).broadcast_to(luma(x), x.shape)


def blend(a: Images, b: Images, factor: Any) -> Images:
  """b + factor (a - b), clipped to 0..1: b at 0, a at 1, beyond a above 1."""
  return _xp(a).clip(b + factor * (a - b), 0.0, 1.0)


def brightness(x: Images, factor: Any) -> Images:
  """Against black."""
  return _xp(x).clip(x * factor, 0.0, 1.0)


def contrast(x: Images, factor: Any) -> Images:
  """Against the image's mean luma."""
  return blend(x, _xp(x).mean(gray(x), axis=(1, 2, 3), keepdims=True), factor)


def saturation(x: Images, factor: Any) -> Images:
  """Against the image in gray."""
  return blend(x, gray(x), factor) if x.shape[-1] == 3 else x


def _circle(x: Images) -> Images:
  """x mod 6; NumPy's own takes several times as long."""
  return x - 6 * _xp(x).floor(x / 6)


def hue(x: Images, turns: Any) -> Images:
  """Turns the hue of RGB in HSV space; value and saturation stay."""
  if x.shape[-1] != 3:
    return x
  xp = _xp(x)
  r, g, b = x[..., 0:1], x[..., 1:2], x[..., 2:3]
  high, low = xp.maximum(xp.maximum(r, g), b), xp.minimum(xp.minimum(r, g), b)
  chroma = high - low
  safe = xp.where(chroma == 0, xp.ones_like(chroma), chroma)
  red, green = high == r, high == g
  along = xp.where(red, g - b, xp.where(green, b - r, r - g)) / safe
  sector = xp.where(red, 0.0, xp.where(green, 2.0, 4.0)).astype(x.dtype) + along
  sector = _circle(sector + 6 * turns)
  # Channel n of HSV -> RGB is high - chroma * clip(min(k, 4 - k), 0, 1), k = (n + sector) mod 6.
  k = _circle(xp.asarray((5.0, 3.0, 1.0), dtype=x.dtype).reshape(1, 1, 1, 3) + sector)
  return high - chroma * xp.clip(xp.minimum(k, 4 - k), 0.0, 1.0)


JITTER = (brightness, contrast, saturation, hue)


def jitter(x: Images, factors: Sequence[Any], order: Sequence[int] = (0, 1, 2, 3)) -> Images:
  """Brightness, contrast, saturation and hue by their factors, None skips, in that `order`."""
  for i in order:
    if factors[i] is not None:
      x = JITTER[i](x, factors[i])
  return x


def invert(x: Images) -> Images:
  """1 - x."""
  return 1 - x


def solarize(x: Images, threshold: Any) -> Images:
  """Inverts what is at or above the threshold."""
  return _xp(x).where(x >= threshold, 1 - x, x)


def posterize(x: Images, bits: int) -> Images:
  """Keeps the highest `bits` of 8."""
  xp, step = _xp(x), 2 ** (8 - bits)
  return xp.floor(xp.round(x * 255) / step) * (step / 255)


def autocontrast(x: Images) -> Images:
  """Stretches every channel to 0..1; constant ones stay."""
  xp = _xp(x)
  low, high = (f(x, axis=(1, 2), keepdims=True) for f in (xp.min, xp.max))
  span = xp.where(high > low, high - low, xp.ones_like(low))
  return xp.where(high > low, (x - low) / span, x)


def equalize_table(counts: Images) -> Images:
  """Histograms [..., 256] -> the new levels [..., 256] that flatten them, as PIL defines it.

  Level i becomes (sum_{j < i} h_j + s // 2) // s, s = (pixels - h_last) // 255, where h_last counts
  the highest level that occurs; where s = 0 all levels stay.
  """
  xp = _xp(counts)
  below = xp.cumsum(counts, axis=-1) - counts
  level = xp.arange(256).reshape(*(1,) * (counts.ndim - 1), 256)
  # Pixels below the highest level that occurs are all but those of that level.
  step = xp.max(xp.where(counts > 0, below, 0), axis=-1, keepdims=True) // 255
  table = xp.minimum((below + step // 2) // xp.maximum(step, 1), 255)
  return xp.where(step > 0, table, level)


def sharpness(x: Images, factor: Any) -> Images:
  """Against a 3 x 3 mean with weight 5 in the middle (PIL's SMOOTH); the border stays."""
  if min(x.shape[1:3]) < 3:
    return x
  rows = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
  smooth = (rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * x[:, 1:-1, 1:-1]) / 13
  inner = blend(x[:, 1:-1, 1:-1], smooth, factor)
  middle = _xp(x).concatenate([x[:, 1:-1, :1], inner, x[:, 1:-1, -1:]], axis=2)
  return _xp(x).concatenate([x[:, :1], middle, x[:, -1:]], axis=1)


def blur(x: Images, sigma: Any, radius: int) -> Images:
  """Separable Gaussian of 2 radius + 1 taps, sigma in pixels [N, 1]; mirrored at the border."""
  xp = _xp(x)
  taps = xp.exp(-0.5 * (np.arange(-radius, radius + 1)[None, :] / sigma) ** 2)
  taps = (taps / xp.sum(taps, axis=1, keepdims=True)).astype(x.dtype)
  for axis in (1, 2):
    pad = [(0, 0)] * 4
    pad[axis] = (radius, radius)
    n = x.shape[axis]
    wide = xp.pad(x, pad, mode="reflect" if n > radius else "edge")
    shifted = lambda i: wide[:, i : i + n] if axis == 1 else wide[:, :, i : i + n]  # noqa: B023
    x = sum(shifted(i) * taps[:, i, None, None, None] for i in range(2 * radius + 1))
  return x


def blur_radius(height: int, size: int | None) -> int:
  """Of a kernel of `size` taps, a tenth of the image's height by default."""
  return max(1, (size or height // 10) // 2)
