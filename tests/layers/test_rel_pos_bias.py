import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import RectBivariateSpline

from big_vision_like.config import UserError
from big_vision_like.layers import rel_pos_bias
from big_vision_like.layers.pos_embed import resample_rel_pos_bias

RNG = np.random.default_rng(0)


def table(grid, heads=2):
  rows = (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3
  return jnp.asarray(RNG.normal(size=(rows, heads)), jnp.float32)


def test_index_by_hand():
  """Two patches beside each other: offsets -1, 0, 1, then the class token's three."""
  want = [[5, 3, 3], [4, 1, 0], [4, 2, 1]]
  np.testing.assert_array_equal(rel_pos_bias.rel_pos_index((1, 2)), want)
  np.testing.assert_array_equal(rel_pos_bias.rel_pos_index((2, 1)), want)


def test_a_pair_reads_the_row_of_its_offset():
  grid = (2, 3)
  values = table(grid)
  bias = rel_pos_bias.RelPosBias(2, grid, grid).apply({"params": {"table": values}}, 9)
  assert bias.shape == (1, 2, 9, 9) and not np.any(bias[:, :, 7:]) and not np.any(bias[..., 7:])
  square = np.asarray(values[:15]).reshape(3, 5, 2)
  for i in range(6):
    for j in range(6):
      dy, dx = i // 3 - j // 3, i % 3 - j % 3
      np.testing.assert_array_equal(bias[0, :, 1 + i, 1 + j], square[1 + dy, 2 + dx])
  np.testing.assert_array_equal(bias[0, :, 0, 1:7], np.tile(values[15][:, None], 6))
  np.testing.assert_array_equal(bias[0, :, 1:7, 0], np.tile(values[16][:, None], 6))
  np.testing.assert_array_equal(bias[0, :, 0, 0], values[17])


@pytest.mark.parametrize("method", ["bilinear", "geometric"])
def test_resampling(method):
  """The class token's rows stay, the middle stays, a mirrored table gives the mirrored one."""
  old, new = (3, 4), (5, 6)
  x = table(old)
  assert resample_rel_pos_bias(x, old, old, method) is x
  y = np.asarray(jax.jit(lambda x: resample_rel_pos_bias(x, old, new, method))(x))
  assert y.shape == (9 * 11 + 3, 2)
  np.testing.assert_array_equal(y[-3:], x[-3:])
  square = lambda v, g: np.asarray(v[:-3]).reshape(2 * g[0] - 1, 2 * g[1] - 1, 2)
  np.testing.assert_allclose(square(y, new)[4, 5], square(x, old)[2, 3], atol=1e-6)
  flip = jnp.concatenate([x[:-3][::-1], x[-3:]])
  flipped = np.asarray(resample_rel_pos_bias(flip, old, new, method))
  np.testing.assert_allclose(flipped[:-3], y[:-3][::-1], atol=2e-6)
  assert resample_rel_pos_bias(x, old, (1, 2), method).shape == (3 + 3, 2)
  wide = np.asarray(resample_rel_pos_bias(table((1, 2)), (1, 2), (2, 4), method))
  assert wide.shape == (3 * 7 + 3, 2) and np.abs(wide).max() < 4


def test_geometric_by_hand():
  """3 x 3 -> 4 x 4: offsets 0, 1, 2 lie at 0, 1, 1 + q = 3 and are splined, so q = 2."""
  x = table((3, 3))
  y = np.asarray(resample_rel_pos_bias(x, (3, 3), (4, 4), "geometric"))
  old, new = np.asarray(x[:-3]).reshape(5, 5, 2), y[:-3].reshape(7, 7, 2)
  at = [-3, -1, 0, 1, 3]
  np.testing.assert_allclose(new[np.ix_([0, 2, 3, 4, 6], [0, 2, 3, 4, 6])], old, atol=1e-5)
  for head in range(2):
    want = RectBivariateSpline(at, at, old[:, :, head])(range(-3, 4), range(-3, 4))
    np.testing.assert_allclose(new[:, :, head], want, atol=1e-5)


def test_resampling_mistakes():
  with pytest.raises(UserError, match=r"has 18 rows; the grid 3 x 3 has 25 \+ 3"):
    resample_rel_pos_bias(table((2, 3)), (3, 3), (4, 4))
  with pytest.raises(UserError, match="method 'cubic' is unknown"):
    resample_rel_pos_bias(table((2, 3)), (2, 3), (4, 4), "cubic")


def test_buckets_by_hand():
  """8 buckets: 4 for each direction; 0 and 1 alone, then 2 up to sqrt(2 * 8) = 4, then the rest."""
  first = rel_pos_bias.buckets(7, num_buckets=8, max_distance=8)
  np.testing.assert_array_equal(first[0], [0, 5, 6, 6, 7, 7, 7])
  np.testing.assert_array_equal(first[:, 0], [0, 1, 2, 2, 3, 3, 3])
  far = rel_pos_bias.buckets(300)[0]
  assert far[7] == 23 and far[8] == 24 and far[127] == 31 and far[299] == 31
