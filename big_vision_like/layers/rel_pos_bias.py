"""Relative positions as numbers added to the scores of attention, learned for each head."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from big_vision_like.layers.pos_embed import Grid, resample_rel_pos_bias


def rel_pos_index(grid: Grid) -> np.ndarray:
  """The row of BEiT's table that each pair (query, key) reads, int32 [1 + N, 1 + N], N = H*W.

  Row (dy + H - 1) (2W - 1) + dx + W - 1 for a query that lies dy below and dx right of its key;
  the last three: class token to patch, patch to class token, class token to itself.
  """
  height, width = grid
  y, x = np.mgrid[:height, :width].reshape(2, -1)
  dy, dx = y[:, None] - y + height - 1, x[:, None] - x + width - 1
  count = (2 * height - 1) * (2 * width - 1)
  index = np.empty((1 + len(y), 1 + len(y)), np.int32)
  index[0, :], index[:, 0], index[0, 0] = count, count + 1, count + 2
  index[1:, 1:] = dy * (2 * width - 1) + dx
  return index


class RelPosBias(nn.Module):
  """BEiT's biases (arXiv:2106.08254, Sec. 2.5). Parameter table [(2H-1)(2W-1) + 3, heads].

  Attributes:
    table_grid: the (H, W) of the table.
    grid: the (H, W) of this input; another than the table's resamples it, evenly stretched.
  """

  num_heads: int
  table_grid: Grid
  grid: Grid

  @nn.compact
  def __call__(self, length: int) -> jax.Array:
    """[1, heads, length, length]; tokens past the class token and the grid (padding) have 0."""
    rows = (2 * self.table_grid[0] - 1) * (2 * self.table_grid[1] - 1) + 3
    table = self.param("table", nn.initializers.zeros, (rows, self.num_heads))
    table = resample_rel_pos_bias(table, self.table_grid, self.grid)
    bias = jnp.moveaxis(table[rel_pos_index(self.grid)], -1, 0)[None]
    extra = (0, length - bias.shape[-1])
    return jnp.pad(bias, ((0, 0), (0, 0), extra, extra)) if extra[1] else bias


def buckets(length: int, num_buckets: int = 32, max_distance: int = 128) -> np.ndarray:
  """T5's buckets of key - query, both ways, int32 [length, length] (arXiv:1910.10683, Sec. 2.1).

  Half of them for keys after the query. Of each half, half for the distances 0, 1, 2, ...; the rest
  grow logarithmically up to `max_distance`, and the last one has all beyond.
  """
  offset = np.arange(length)[None, :] - np.arange(length)[:, None]
  half, exact = num_buckets // 2, num_buckets // 4
  distance = np.abs(offset)
  far = np.log(np.maximum(distance, 1).astype(np.float32) / exact)
  far = exact + (far / np.float32(math.log(max_distance / exact)) * (half - exact)).astype(np.int32)
  bucket = np.where(distance < exact, distance, np.minimum(far, half - 1))
  return (bucket + half * (offset > 0)).astype(np.int32)
