"""Positions: learned tables and their resampling, sin-cos, and rotary, all for H x W grids."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from scipy.interpolate import make_interp_spline

from big_vision_like.config import UserError, unknown

Grid = tuple[int, int]


RESAMPLE = ("antialias", "bicubic")


def resample_pos_embed(table: jax.Array, old: Grid, new: Grid, how: str = "antialias") -> jax.Array:
  """A table [H*W, D] of grid `old` -> [H'*W', D] of grid `new`.

  `how` is "antialias", Keys' cubic with a = -0.5, widened where the grid shrinks (jax.image.resize,
  Pillow, and torch's `interpolate(mode="bicubic", antialias=True)`), or "bicubic", a = -0.75 over
  the four nearest rows and columns (the same of torch without antialiasing, OpenCV).
  In float32, whatever the table's dtype. The same grid gives the same table, bit for bit.

  Raises:
    UserError: the table does not have H*W rows.
  """
  if table.shape[0] != old[0] * old[1]:
    raise UserError(
      f"pos_embed has {table.shape[0]} rows; the grid {old[0]} x {old[1]} has {old[0] * old[1]}"
    )
  if tuple(old) == tuple(new):
    return table
  image = rearrange(table.astype(jnp.float32), "(H W) D -> H W D", H=old[0])
  if how == "bicubic":
    rows, columns = (_bicubic(a, b) for a, b in zip(old, new))
    image = jnp.einsum("hH,wW,HWD->hwD", rows, columns, image, precision="highest")
  else:
    image = jax.image.resize(image, (*new, table.shape[-1]), "bicubic", antialias=True)
  return rearrange(image, "H W D -> (H W) D").astype(table.dtype)


def _bicubic(old: int, new: int, a: float = -0.75) -> np.ndarray:
  """Weights [new, old] of Keys' cubic convolution (1981) between centres, edges repeated."""
  at = (np.arange(new) + 0.5) * old / new - 0.5
  out = np.zeros((new, old))
  for tap in range(-1, 3):
    index = np.floor(at).astype(int) + tap
    t = np.abs(at - index)
    near = ((a + 2) * t - (a + 3)) * t * t + 1  # |t| <= 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a  # 1 < |t| < 2
    out[np.arange(new), np.clip(index, 0, old - 1)] += np.where(t <= 1, near, far)
  return out.astype(np.float32)


def resample_rel_pos_bias(
  table: jax.Array, old: Grid, new: Grid, method: str = "bilinear", extra: int = 3
) -> jax.Array:
  """Relative position biases of grid `old` for grid `new`, one row per offset between two patches.

  [(2h-1)(2w-1) + extra, heads] -> [(2h'-1)(2w'-1) + extra, heads], in float32, whatever the table's
  dtype. The `extra` last rows, those of the class token, stay. The same grid gives the same table,
  bit for bit.

  `method` says where an offset of the old grid lies in the new one:

      bilinear    evenly stretched: offset d of the old grid is d (2h'-1) / (2h-1) of the new, as in
                  transformers and MiDaS 3.1 (arXiv:2307.14460) where they meet another resolution
      geometric   neighbours stay neighbours: the steps between offsets grow by a constant factor
                  from 1 on until the farthest ones meet, interpolated by cubic splines, as BEiT
                  (arXiv:2106.08254) does before fine-tuning at a higher resolution

  Raises:
    UserError: a table of another length, an unknown method.
  """
  sizes, goal = ((2 * h - 1, 2 * w - 1) for h, w in (old, new))
  if table.shape[0] != sizes[0] * sizes[1] + extra:
    raise UserError(
      f"rel_pos_bias has {table.shape[0]} rows; the grid {old[0]} x {old[1]} has "
      f"{sizes[0] * sizes[1]} + {extra}"
    )
  if method not in ("bilinear", "geometric"):
    raise unknown("resample_rel_pos_bias method", method, ("bilinear", "geometric"))
  if tuple(old) == tuple(new):
    return table
  offsets = table[: sizes[0] * sizes[1]].astype(jnp.float32)
  offsets = rearrange(offsets, "(H W) n -> H W n", H=sizes[0])
  if method == "bilinear":
    offsets = jax.image.resize(offsets, (*goal, table.shape[1]), "bilinear", antialias=False)
  else:
    rows, columns = (_geometric(n, m) for n, m in zip(sizes, goal))
    offsets = jnp.einsum("Yy,Xx,yxn->YXn", rows, columns, offsets, precision="highest")
  offsets = rearrange(offsets, "H W n -> (H W) n").astype(table.dtype)
  return jnp.concatenate([offsets, table[sizes[0] * sizes[1] :]])


def _geometric(old: int, new: int) -> np.ndarray:
  """[new, old] weights of the splines through offsets whose steps are 1, q, q^2, ..., odd sizes.

  Beyond the farthest offset, as where the old grid has two patches only, its value is repeated.
  """
  n, m = old // 2, new // 2
  if not n or m < 2:  # one offset for all, or offsets that lie where they lay
    return np.eye(old, dtype=np.float32)[np.clip(np.arange(-m, m + 1), -n, n) + n]
  reach = lambda q: np.sum(q ** np.arange(n))  # of the farthest offset, in the new grid
  low, high = 0.0, float(m + 1)
  while high - low > 1e-9:
    q = (low + high) / 2
    low, high = (low, q) if reach(q) > m else (q, high)
  right = np.cumsum(q ** np.arange(n))
  places = np.concatenate([-right[::-1], [0], right])
  spline = make_interp_spline(places, np.eye(old), k=min(3, old - 1))
  return spline(np.clip(np.arange(-m, m + 1), places[0], places[-1])).astype(np.float32)


def sincos_2d(
  grid: Grid, width: int, temperature: float = 10_000.0, *, endpoint: bool = True
) -> np.ndarray:
  """Fixed table [H*W, D] (MoCo v3, Sec. 4.2): quarters sin x, cos x, sin y, cos y.

  With `endpoint` the slowest frequency is 1 / temperature exactly, as in big_vision; without, the
  D / 4 frequencies stop one short of it, as in MoCo v3 and MAE.

  Raises:
    UserError: width is not a multiple of 4.
  """
  if width % 4:
    raise UserError(f"sincos2d needs a width that is a multiple of 4, found {width}")
  y, x = np.mgrid[: grid[0], : grid[1]].astype(np.float64)
  omega = temperature ** -(np.arange(width // 4) / max(width // 4 - endpoint, 1))
  x, y = (p.reshape(-1, 1) * omega for p in (x, y))
  return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1).astype(np.float32)


def rope_2d(
  grid: Grid,
  head_dim: int,
  *,
  prefix: int = 0,
  temperature: float = 100.0,
  centred: bool = False,
) -> Callable[[jax.Array], jax.Array]:
  """Axial rotary positions (Su et al. 2021, in two dimensions): y in one half, x in the other.

  The result rotates [B, prefix + H*W, heads, d]; the `prefix` tokens (class, registers) stay, and
  so do those past the grid (padding). Coordinates count patches; `centred` takes 2 pi times the
  patch's centre in an image that reaches from -1 to 1 in both directions, whatever its size, as in
  DINOv3 (arXiv:2508.10104).

  Raises:
    UserError: head_dim is not a multiple of 4.
  """
  if head_dim % 4:
    raise UserError(f"rope needs a head size that is a multiple of 4, found {head_dim}")
  omega = temperature ** -(np.arange(head_dim // 4) / (head_dim // 4))
  at = np.mgrid[: grid[0], : grid[1]].reshape(2, -1, 1)
  if centred:
    at = 2 * np.pi * (2 * (at + 0.5) / np.reshape(grid, (2, 1, 1)) - 1)
  y, x = at
  angle = np.concatenate([y * omega, x * omega], axis=1)  # [H*W, d / 2]
  angle = np.concatenate([np.zeros((prefix, head_dim // 2)), angle])

  def rotate(q: jax.Array) -> jax.Array:
    padded = np.pad(angle, ((0, q.shape[1] - len(angle)), (0, 0)))[None, :, None, :]
    sin, cos = (jnp.asarray(f(padded), jnp.float32) for f in (np.sin, np.cos))
    a, b = jnp.split(q.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(q.dtype)

  return rotate


def native_pos_embed(
  table: jax.Array, side: int, positions: jax.Array, grid: jax.Array
) -> jax.Array:
  """A table [side*side, D] at the patches of images of any shape: [B, N, D], in float32.

  What bilinear resampling with antialiasing of the table to each image's own grid gives (NaFlex,
  SigLIP 2, arXiv:2502.14786): along each axis a triangle around the patch's centre in the table,
  as wide as a patch, or as an entry of the table where that is wider.

  Args:
    table: rows first.
    side: entries of the table along each axis.
    positions: int32 [B, N, 2], row and column of each patch.
    grid: int32 [B, 2], rows and columns of each image.
  """
  scale = side / grid.astype(jnp.float32)[:, None, :, None]
  center = (positions.astype(jnp.float32)[..., None] + 0.5) * scale - 0.5
  entries = jnp.arange(side, dtype=jnp.float32)[None, None, None, :]
  distance = jnp.abs(entries - center) / jnp.maximum(scale, 1)
  weights = jnp.maximum(1 - distance, 0)
  weights /= jnp.sum(weights, axis=-1, keepdims=True)
  weights = weights[:, :, 0, :, None] * weights[:, :, 1, None, :]
  return rearrange(weights, "B N h w -> B N (h w)") @ table.astype(jnp.float32)
