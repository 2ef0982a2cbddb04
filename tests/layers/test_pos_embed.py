import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_like.config import UserError
from big_vision_like.layers.patch_embed import PatchEmbed, patchify, unpatchify
from big_vision_like.layers.pos_embed import RESAMPLE, resample_pos_embed, rope_2d, sincos_2d


@pytest.mark.parametrize("how", RESAMPLE)
@pytest.mark.parametrize("new", [(2, 3), (8, 8), (7, 5)])
def test_resample_keeps_a_constant(new, how):
  table = jnp.broadcast_to(jnp.arange(6.0)[None], (16, 6))
  out = resample_pos_embed(table, (4, 4), new, how)
  assert out.shape == (new[0] * new[1], 6)
  np.testing.assert_allclose(out, np.broadcast_to(np.arange(6.0), out.shape), atol=1e-5)


def test_resample_keeps_rows_and_columns_apart():
  """A table that depends on the row only stays so, and grows downwards; likewise columns."""
  y, x = np.mgrid[:4, :6].astype(np.float32)
  table = jnp.stack([y.ravel(), x.ravel()], axis=1)
  out = np.asarray(resample_pos_embed(table, (4, 6), (8, 3))).reshape(8, 3, 2)
  np.testing.assert_allclose(out[..., 0], np.broadcast_to(out[:, :1, 0], (8, 3)), atol=1e-5)
  np.testing.assert_allclose(out[..., 1], np.broadcast_to(out[:1, :, 1], (8, 3)), atol=1e-5)
  assert (np.diff(out[:, 0, 0]) > 0).all() and (np.diff(out[0, :, 1]) > 0).all()


def test_resample_same_grid_and_wrong_table():
  table = jnp.ones((12, 2), jnp.bfloat16)
  assert resample_pos_embed(table, (3, 4), (3, 4)) is table
  assert resample_pos_embed(table, (3, 4), (4, 4)).dtype == jnp.bfloat16
  with pytest.raises(UserError, match="pos_embed has 12 rows; the grid 4 x 4 has 16"):
    resample_pos_embed(table, (4, 4), (2, 2))


def test_bicubic_by_hand():
  """a = -0.75 a quarter of a patch past a centre: w(1.25), w(0.25), w(0.75), w(1.75)."""
  out = resample_pos_embed(jnp.eye(4), (1, 4), (1, 8), "bicubic")
  np.testing.assert_allclose(out[3], [-0.10546875, 0.87890625, 0.26171875, -0.03515625], rtol=1e-6)
  np.testing.assert_allclose(out[0], [1.10546875, -0.10546875, 0, 0], rtol=1e-6)
  half = resample_pos_embed(jnp.eye(4), (4, 1), (2, 1), "bicubic")  # no wider than four patches
  np.testing.assert_allclose(half[1], [0, -0.09375, 0.59375, 0.5], atol=1e-6)


def test_sincos_2d():
  table = sincos_2d((3, 5), 16).reshape(3, 5, 4, 4)
  np.testing.assert_array_equal(table[:, :, :2], np.broadcast_to(table[:1, :, :2], (3, 5, 2, 4)))
  np.testing.assert_array_equal(table[:, :, 2:], np.broadcast_to(table[:, :1, 2:], (3, 5, 2, 4)))
  np.testing.assert_allclose(table[2, 3, 0], np.sin(3 * 1e4 ** -(np.arange(4) / 3)), rtol=1e-6)
  np.testing.assert_allclose(table[2, 3, 3], np.cos(2 * 1e4 ** -(np.arange(4) / 3)), rtol=1e-6)
  table = sincos_2d((3, 5), 16, endpoint=False).reshape(3, 5, 4, 4)  # as in MoCo v3
  np.testing.assert_allclose(table[2, 3, 0], np.sin(3 * 1e4 ** -(np.arange(4) / 4)), rtol=1e-6)
  with pytest.raises(UserError, match="multiple of 4, found 18"):
    sincos_2d((2, 2), 18)


def test_rope_centred():
  """A grid of 2 x 1 has its centres at -1/2 and 1/2 down and 0 across; angles are 2 pi times those.

  Pairs (0, 4) and (1, 5) turn by y, with frequencies 1 and 1/10, pairs (2, 6) and (3, 7) by x.
  """
  rotate = rope_2d((2, 1), 8, centred=True)
  turned = lambda i: np.asarray(rotate(jnp.broadcast_to(jnp.eye(8)[i], (1, 2, 1, 8))))[0, :, 0]
  np.testing.assert_allclose(turned(0)[:, 0], [-1, -1], atol=1e-6)
  cos, sin = np.cos(np.pi / 10), np.sin(np.pi / 10)
  np.testing.assert_allclose(turned(1)[:, [1, 5]], [[cos, -sin], [cos, sin]], atol=1e-6)
  np.testing.assert_allclose(turned(2), np.broadcast_to(np.eye(8)[2], (2, 8)), atol=1e-6)


def test_rope_is_relative():
  """<R_p q, R_p+s k> depends on the shift s only, in both directions, and s is seen in both."""
  h, w, d = 4, 5, 8
  rng = np.random.default_rng(0)
  q, k = (np.broadcast_to(rng.normal(size=d), (1, h * w, 1, d)) for _ in range(2))
  rotate = rope_2d((h, w), d)
  q, k = (np.asarray(rotate(jnp.asarray(x, jnp.float32))).reshape(h, w, d) for x in (q, k))
  dot = np.einsum("yxd,YXd->yxYX", q, k)
  for dy, dx in [(1, 0), (0, 2), (2, 3)]:
    same = [dot[y, x, y + dy, x + dx] for y in range(h - dy) for x in range(w - dx)]
    np.testing.assert_allclose(same, same[0], rtol=1e-4, atol=1e-5)
    assert abs(same[0] - dot[0, 0, 0, 0]) > 1e-2
  assert abs(dot[0, 0, 1, 0] - dot[0, 0, 0, 1]) > 1e-2


def test_rope_leaves_the_prefix_and_the_norm():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3 + 4, 2, 8)), jnp.bfloat16)
  y = rope_2d((2, 2), 8, prefix=3)(x)
  assert y.dtype == jnp.bfloat16
  np.testing.assert_array_equal(y[:, :4], x[:, :4])  # the prefix, and the patch at (0, 0)
  norms = [np.linalg.norm(np.asarray(a, np.float32), axis=-1) for a in (x, y)]
  np.testing.assert_allclose(*norms, rtol=2e-2)
  with pytest.raises(UserError, match="multiple of 4, found 6"):
    rope_2d((2, 2), 6)


def test_patch_embed_is_the_convolution():
  image = np.random.default_rng(0).normal(size=(2, 8, 12, 3)).astype(np.float32)
  module = PatchEmbed(5, (4, 2))
  params = module.init(jax.random.key(0), image)["params"]
  kernel = params["proj"]["kernel"].reshape(4, 2, 3, 5)
  conv = jax.lax.conv_general_dilated(
    image, kernel, (4, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  out = module.apply({"params": params}, image)
  np.testing.assert_allclose(out, conv.reshape(2, 12, 5), atol=1e-5)
  back = unpatchify(patchify(image, (4, 2)), (2, 6), (4, 2))
  np.testing.assert_array_equal(back, image)
