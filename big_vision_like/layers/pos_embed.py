"""Positions: learned tables and their resampling, sin-cos, and rotary, all for H x W grids."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from scipy.interpolate import make_interp_spline

from big_vision_like.config import UserError, unknown

Grid = tuple[int, int]


def resample_pos_embed(table: jax.Array, old: Grid, new: Grid) -> jax.Array:
  """A table [H*W, D] of grid `old` -> [H'*W', D] of grid `new`, bicubic with antialiasing.

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
  image = jax.image.resize(image, (*new, table.shape[-1]), "bicubic", antialias=True)
  return rearrange(image, "H W D -> (H W) D").astype(table.dtype)


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
  grid: Grid, head_dim: int, *, prefix: int = 0, temperature: float = 100.0
) -> Callable[[jax.Array], jax.Array]:
  """Axial rotary positions (Su et al. 2021, in two dimensions): y in one half, x in the other.

  The result rotates [B, prefix + H*W, heads, d]; the `prefix` tokens (class, registers) stay, and
  so do those past the grid (padding).

  Raises:
    UserError: head_dim is not a multiple of 4.
  """
  if head_dim % 4:
    raise UserError(f"rope needs a head size that is a multiple of 4, found {head_dim}")
  omega = temperature ** -(np.arange(head_dim // 4) / (head_dim // 4))
  y, x = np.mgrid[: grid[0], : grid[1]].reshape(2, -1, 1)
  angle = np.concatenate([y * omega, x * omega], axis=1)  # [H*W, d / 2]
  angle = np.concatenate([np.zeros((prefix, head_dim // 2)), angle])

  def rotate(q: jax.Array) -> jax.Array:
    padded = np.pad(angle, ((0, q.shape[1] - len(angle)), (0, 0)))[None, :, None, :]
    sin, cos = (jnp.asarray(f(padded), jnp.float32) for f in (np.sin, np.cos))
    a, b = jnp.split(q.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(q.dtype)

  return rotate
