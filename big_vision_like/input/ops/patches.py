"""Images of any aspect ratio as sequences of patches."""

import numpy as np

from big_vision_like.config import whole_number
from big_vision_like.input.bad import BadExample
from big_vision_like.input.ops import image

STEPS = 40  # of a bisection; 2^-40 of the range of scales


def _native_grid(height: int, width: int, patch: int, max_tokens: int) -> tuple[int, int]:
  """Rows and columns of patches for the largest scale whose grid has at most `max_tokens`."""

  def grid(scale: float) -> tuple[int, int]:
    return tuple(max(1, int(np.ceil(scale * side / patch))) for side in (height, width))

  low, high = 0.0, max_tokens * patch / max(height, width)
  for _ in range(STEPS):
    middle = (low + high) / 2
    rows, columns = grid(middle)
    low, high = (middle, high) if rows * columns <= max_tokens else (low, middle)
  return grid(low)


def patchify_native(
  patch: int = 16, max_tokens: int = 256, method: str = "bilinear", key: str = "image"
):
  """Image of any shape -> at most `max_tokens` patches of about its aspect ratio, padded.

  NaFlex, SigLIP 2, Tschannen et al. 2025 (arXiv:2502.14786), Sec. 2.4.2, after NaViT
  (arXiv:2307.06304) and Pix2Struct (arXiv:2210.03347): the image is resized, up or down, by the
  largest scale s with rows * columns <= max_tokens, where rows = ceil(s * height / patch) and
  columns = ceil(s * width / patch), to exactly rows * patch x columns * patch pixels.

  In place of the image [H, W, C], uint8 or float32, come

      patches           its dtype [max_tokens, patch * patch * C]; pixel rows, columns, channels
      patch_mask        bool [max_tokens], True for a patch, False for padding, which is zeros
      patch_positions   int32 [max_tokens, 2], row and column of the patch; 0 for padding
      patch_grid        int32 [2], rows and columns

  Args:
    patch: side in pixels.
    max_tokens: most patches.
    method: of op `resize`.
    key: of the image.

  Raises:
    UserError: numbers or a method out of range.
  """
  whole_number(patch, "op patchify_native: patch")
  whole_number(max_tokens, "op patchify_native: max_tokens")
  image.resize(patch, patch, method)  # raises where there is no such method

  def run(example, rng):
    height, width, channels = np.shape(example[key])
    if not height * width:
      raise BadExample("empty image", f"{key} has {height} x {width} pixels")
    rows, columns = _native_grid(height, width, patch, max_tokens)
    resize = image.resize(rows * patch, columns * patch, method)
    pixels = resize({"image": example[key]}, rng)["image"]
    pixels = pixels.reshape(rows, patch, columns, patch, channels)
    n = rows * columns
    patches = np.zeros((max_tokens, patch * patch * channels), pixels.dtype)
    patches[:n] = pixels.transpose(0, 2, 1, 3, 4).reshape(n, -1)
    positions = np.zeros((max_tokens, 2), np.int32)
    positions[:n] = np.indices((rows, columns)).reshape(2, n).T
    return {
      **{k: v for k, v in example.items() if k != key},
      "patches": patches,
      "patch_mask": np.arange(max_tokens) < n,
      "patch_positions": positions,
      "patch_grid": np.array([rows, columns], np.int32),
    }

  return run
