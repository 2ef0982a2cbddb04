"""`photometric` on uint8 [H, W, C]: scaled to 0..1, computed in float32, rounded back.

Where every value has one result, a table of the 256 values stands for the image.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from big_vision_like import photometric

LEVELS = (np.arange(256, dtype=np.float32) / np.float32(255)).reshape(1, 256, 1, 1)


def _rounded(x: np.ndarray) -> np.ndarray:
  return np.rint(x * np.float32(255)).astype(np.uint8)


def _whole(fn: Callable, image: np.ndarray, *args: Any) -> np.ndarray:
  x = np.divide(image, np.float32(255), dtype=np.float32)
  return _rounded(fn(x[None], *args)[0])


def _by_table(fn: Callable, image: np.ndarray, *args: Any) -> np.ndarray:
  return _rounded(fn(LEVELS, *args)).reshape(256).take(image)


def _mean_luma(image: np.ndarray) -> np.float32:
  mean = image.mean(axis=(0, 1), dtype=np.float64) / 255
  return np.float32(mean @ photometric.LUMA if image.shape[-1] == 3 else mean.mean())


def gray(image: np.ndarray) -> np.ndarray:
  """Luma in all channels."""
  return _whole(photometric.gray, image)


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
  """Against black."""
  return _by_table(photometric.brightness, image, np.float32(factor))


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
  """Against the mean luma."""
  return _by_table(photometric.blend, image, _mean_luma(image), np.float32(factor))


def saturation(image: np.ndarray, factor: float) -> np.ndarray:
  """Against the image in gray."""
  return _whole(photometric.saturation, image, np.float32(factor))


def jitter(
  image: np.ndarray, factors: Sequence[float | None], order: Sequence[int] = (0, 1, 2, 3)
) -> np.ndarray:
  """Brightness, contrast, saturation, hue in that order, rounded once at the end."""
  factors = [None if f is None else np.float32(f) for f in factors]
  return _whole(photometric.jitter, image, factors, order)


def invert(image: np.ndarray) -> np.ndarray:
  """255 - x."""
  return 255 - image


def solarize(image: np.ndarray, threshold: float) -> np.ndarray:
  """Inverts what is at or above `threshold`, in 0..1."""
  return _by_table(photometric.solarize, image, np.float32(threshold))


def posterize(image: np.ndarray, bits: int) -> np.ndarray:
  """Keeps the highest bits."""
  return _by_table(photometric.posterize, image, bits)


def _by_channel(fn: Callable, image: np.ndarray) -> np.ndarray:
  """`fn`: a channel's pixels -> its table of 256."""
  out = np.empty_like(image)
  for c in range(image.shape[-1]):
    plane = np.ascontiguousarray(image[..., c])
    out[..., c] = fn(plane).take(plane)
  return out


def autocontrast(image: np.ndarray) -> np.ndarray:
  """Every channel over the full range."""

  def table(plane):
    levels = np.clip(LEVELS, LEVELS[0, plane.min(), 0, 0], LEVELS[0, plane.max(), 0, 0])
    return _rounded(photometric.autocontrast(levels)).reshape(256)

  return _by_channel(table, image)


def equalize(image: np.ndarray) -> np.ndarray:
  """Flat histograms of the channels."""

  def table(plane):
    counts = np.bincount(plane.reshape(-1), minlength=256)
    return photometric.equalize_table(counts).astype(np.uint8)

  return _by_channel(table, image)


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
  """Against a smoothed image."""
  return _whole(photometric.sharpness, image, np.float32(factor))


def blur(image: np.ndarray, sigma: float, radius: int) -> np.ndarray:
  """Gaussian; taps beyond 4.5 sigma are left out: together they weigh less than 1e-5."""
  if radius < min(image.shape[:2]):
    radius = min(radius, max(1, int(np.ceil(4.5 * sigma))))
  return _whole(photometric.blur, image, np.full((1, 1), sigma, np.float32), radius)
