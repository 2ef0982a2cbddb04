"""Arrays of an example -> uint8 [H, W, 3] pictures."""

import math

import numpy as np

GAP = 2
MOST = 16
"""Views, frames and masks of one array that are shown."""
RED = np.array([220, 30, 30], np.float32)


def image(x: np.ndarray, scale: np.ndarray | None = None) -> np.ndarray:
  """[H, W, 1, 3 or 4] -> RGB. `scale`: (factor, summand) that bring floats to 0..1.

  Without it, floats outside of 0..1 are stretched from their least to their largest.
  """
  if x.dtype != np.uint8:
    x = np.nan_to_num(x.astype(np.float32))
    if scale is not None:
      x = x * scale[0] + scale[1]
    elif x.size and (x.min() < 0 or x.max() > 1):
      x = (x - x.min()) / max(float(x.max() - x.min()), 1e-12)
    x = np.round(np.clip(x, 0, 1) * 255).astype(np.uint8)
  return np.repeat(x, 3, -1) if x.shape[-1] == 1 else x[..., :3]


def strip(pictures: list[np.ndarray]) -> np.ndarray:
  """Pictures of one size, side by side, at most MOST of them, taken evenly."""
  at = np.unique(np.linspace(0, len(pictures) - 1, min(len(pictures), MOST)).round().astype(int))
  gap = np.full((pictures[0].shape[0], GAP, 3), 255, np.uint8)
  row = [part for i in at for part in (pictures[i], gap)]
  return np.concatenate(row[:-1], 1)


def heat(x: np.ndarray) -> np.ndarray:
  """[H, W] -> colours from its least (dark) to its largest (bright)."""
  import matplotlib

  x = np.nan_to_num(x.astype(np.float32))
  x = (x - x.min()) / max(float(x.max() - x.min()), 1e-12)
  return (matplotlib.colormaps["viridis"](x)[..., :3] * 255).round().astype(np.uint8)


def wave(x: np.ndarray, height: int = 64, width: int = 256) -> np.ndarray:
  """Samples [n] -> their least and largest over time."""
  out = np.full((height, width, 3), 255, np.uint8)
  x = np.nan_to_num(x.astype(np.float32))
  level = max(float(np.abs(x).max(initial=0)), 1e-12)
  for column, part in enumerate(np.array_split(x, width)):
    if part.size:
      low, high = ((1 - v / level) / 2 * (height - 1) for v in (part.max(), part.min()))
      out[round(low) : round(high) + 1, column] = (31, 119, 180)
  return out


def grid_of(mask: np.ndarray, height: int, width: int) -> np.ndarray | None:
  """A mask [n] as rows x columns of about the picture's aspect ratio; None where none fits."""
  n = len(mask)
  fits = [(r, n // r) for r in range(1, n + 1) if n % r == 0 and r <= height and n // r <= width]
  if not fits:
    return None
  off = lambda rc: abs(math.log(rc[0] / rc[1] * width / height))
  best = min(fits, key=off)
  return mask.reshape(best) if off(best) < 0.1 else None


def overlay(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """The picture with red where the mask [h, w], of any size, is not zero."""
  height, width = picture.shape[:2]
  rows = np.arange(height) * mask.shape[0] // height
  columns = np.arange(width) * mask.shape[1] // width
  on = (mask != 0)[rows][:, columns, None]
  return np.where(on, 0.4 * picture + 0.6 * RED, picture).astype(np.uint8)


def from_patches(patches: np.ndarray, grid: np.ndarray) -> np.ndarray | None:
  """[n, side * side * C] of op patchify_native -> [H, W, C]; None where that is not its form."""
  rows, columns = (int(g) for g in grid)
  for channels in (3, 1):
    side = math.isqrt(patches.shape[1] // channels)
    if side * side * channels == patches.shape[1] and rows * columns <= len(patches):
      x = patches[: rows * columns].reshape(rows, columns, side, side, channels)
      return x.transpose(0, 2, 1, 3, 4).reshape(rows * side, columns * side, channels)
  return None
