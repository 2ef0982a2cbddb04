"""Images of any shape as patches."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from big_vision_like.config import UserError
from big_vision_like.input import ops
from big_vision_like.input.bad import BadExample
from big_vision_like.input.ops import patches


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 32), st.integers(1, 1024))
def test_the_grid_is_the_largest_that_fits(height, width, patch, most):
  rows, columns = patches._native_grid(height, width, patch, most)
  assert 1 <= rows * columns <= most
  # Any larger scale starts another row or column: with that one the patches are too many.
  next_row, next_column = rows * patch / height, columns * patch / width
  more = (rows + (next_row <= next_column)) * (columns + (next_column <= next_row))
  assert more > most


@pytest.mark.parametrize(
  "height, width, grid",
  # By hand: 500 x 375 at s = 0.576 is 18 rows and 13.5 columns; any larger is 19 x 14 = 266.
  [(224, 224, (16, 16)), (500, 375, (18, 14)), (100, 10000, (2, 128)), (1, 10000, (1, 256))],
)
def test_known_grids(height, width, grid):
  assert patches._native_grid(height, width, 16, 256) == grid


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_patches_are_those_of_the_image(dtype):
  image = np.random.default_rng(0).integers(0, 256, (8, 12, 3)).astype(dtype)
  out = ops.build("patchify_native(4, 6)")({"image": image, "label": 1}, None)
  assert out.keys() == {"label", "patches", "patch_mask", "patch_positions", "patch_grid"}
  assert out["patches"].dtype == dtype and out["patches"].shape == (6, 48)
  assert out["patch_grid"].tolist() == [2, 3] and out["patch_mask"].all()
  for patch, (i, j) in zip(out["patches"], out["patch_positions"]):
    here = image[4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
    np.testing.assert_array_equal(patch.reshape(4, 4, 3), here)


def test_padding_is_zeros_and_shapes_are_static():
  op = ops.build("patchify_native(8, 10)")
  for height, width in ((8, 8), (30, 7), (5, 40), (100, 99)):
    out = op({"image": np.full((height, width, 1), 7, np.uint8)}, None)
    mask = out["patch_mask"]
    assert mask.sum() == out["patch_grid"].prod() <= 10
    assert (np.diff(mask.astype(int)) <= 0).all()
    assert (out["patches"][mask] == 7).all() and not out["patches"][~mask].any()
    assert out["patches"].shape == (10, 64) and not out["patch_positions"][~mask].any()
    assert out["patch_positions"][mask].max(0).tolist() == (out["patch_grid"] - 1).tolist()


def test_mistakes_and_empty_images():
  with pytest.raises(UserError, match="max_tokens = 0"):
    ops.build("patchify_native(16, 0)")
  with pytest.raises(UserError, match="did you mean bicubic"):
    ops.build("patchify_native(16, 4, bicubicc)")
  with pytest.raises(BadExample, match="0 x 3"):
    ops.build("patchify_native()")({"image": np.zeros((0, 3, 3), np.uint8)}, None)
