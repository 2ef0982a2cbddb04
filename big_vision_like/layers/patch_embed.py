"""Cutting images into patches."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from big_vision_like.config import UserError
from big_vision_like.layers import fused


def grid_of(height: int, width: int, patch: tuple[int, int]) -> tuple[int, int]:
  """Patches down and across.

  Raises:
    UserError: the image is not a multiple of the patch (never a silent crop).
  """
  if height % patch[0] or width % patch[1]:
    raise UserError(
      f"image {height} x {width} is not a multiple of the patch {patch[0]} x {patch[1]}; "
      f"nearest that fits: {height - height % patch[0]} x {width - width % patch[1]}"
    )
  return height // patch[0], width // patch[1]


def patchify(image: jax.Array, patch: tuple[int, int]) -> jax.Array:
  """[B, H, W, C] -> [B, N, p*q*C], row by row."""
  return rearrange(image, "B (h p) (w q) C -> B (h w) (p q C)", p=patch[0], q=patch[1])


def unpatchify(patches: jax.Array, grid: tuple[int, int], patch: tuple[int, int]) -> jax.Array:
  """[B, N, p*q*C] -> [B, H, W, C], the inverse of `patchify`."""
  return rearrange(patches, "B (h w) (p q C) -> B (h p) (w q) C", h=grid[0], p=patch[0], q=patch[1])


def resample_patch_kernel(
  kernel: np.ndarray, old: tuple[int, int], new: tuple[int, int]
) -> np.ndarray:
  """Kernel [p*q*C, D] of patches `old` -> [p'*q'*C, D] of patches `new`.

  FlexiViT's pseudo-inverse resize (arXiv:2212.08013, Sec. 3.4): with B [p'*q', p*q] the bilinear
  resize of a patch, without antialiasing, w' = pinv(B^T) w. No other kernel gives a resized patch a
  product as near to that of w with the patch itself; it is the same where patches grow. In float64
  on the host. The same size gives the same kernel, bit for bit.

  Raises:
    UserError: rows that are no multiple of a patch.
  """
  if kernel.shape[0] % (old[0] * old[1]):
    raise UserError(
      f"a patch kernel of {kernel.shape[0]} rows is not of {old[0]} x {old[1]} pixels"
    )
  if tuple(old) == tuple(new):
    return kernel
  eye = np.eye(old[0] * old[1], dtype=np.float32).reshape(*old, -1)
  resize = jax.image.resize(eye, (*new, eye.shape[-1]), "bilinear", antialias=False)
  inverse = np.linalg.pinv(np.asarray(resize, np.float64).reshape(new[0] * new[1], -1).T)
  pixels = rearrange(np.asarray(kernel, np.float64), "(x C) D -> x (C D)", x=old[0] * old[1])
  out = rearrange(inverse @ pixels, "x (C D) -> (x C) D", D=kernel.shape[1])
  return out.astype(kernel.dtype)


class PatchEmbed(nn.Module):
  """A convolution with stride = patch, as one matrix product: kernel [p*q*C, D], bias [D]."""

  width: int
  patch_size: tuple[int, int]
  dtype: jnp.dtype = jnp.float32
  use_bias: bool = True

  @nn.compact
  def __call__(self, image: jax.Array, keep: jax.Array | None = None) -> jax.Array:
    """[B, H, W, C] -> [B, N, D], or with `keep` int32 [B, n] of those patches only, [B, n, D]."""
    grid_of(image.shape[1], image.shape[2], self.patch_size)
    x = patchify(image.astype(self.dtype), self.patch_size)
    if keep is not None:
      x = jnp.take_along_axis(x, keep[:, :, None], axis=1)
    return fused.Dense(self.width, self.use_bias, dtype=self.dtype, name="proj")(x)
