"""Masks hide what they say they hide, for all seeds and shapes."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from big_vision_like.config import UserError
from big_vision_like.input import ops
from big_vision_like.input.ops import masks

SIDES = st.integers(1, 20)
SEEDS = st.integers(0, 2**32)
few = settings(max_examples=60, deadline=None, derandomize=True)


def drawn(op, seed=0):
  return op({}, np.random.default_rng(seed))


@few
@given(SIDES, SIDES, st.floats(0, 1), SEEDS)
def test_random_mask_hides_exactly_so_many(height, width, ratio, seed):
  mask = drawn(masks.random_mask((height, width), ratio), seed)["mask"]
  assert mask.dtype == bool and mask.shape == (height, width)
  assert mask.sum() == round(ratio * height * width)


def test_random_mask_is_maes_and_even():
  op = masks.random_mask(14)
  assert drawn(op)["mask"].sum() == 147  # 49 of 196 stay
  share = np.mean([drawn(masks.random_mask(4), s)["mask"] for s in range(400)], 0)
  np.testing.assert_allclose(share, 0.75, atol=0.1)
  assert drawn(masks.random_mask((7,), 0.5))["mask"].shape == (7,)
  assert drawn(masks.random_mask((2, 3, 4), 0.5))["mask"].shape == (2, 3, 4)


@few
@given(SIDES, SIDES, st.data())
def test_block_mask_hides_exactly_so_many(height, width, data):
  count = data.draw(st.integers(0, height * width))
  smallest = data.draw(st.integers(1, 30))
  largest = data.draw(st.none() | st.integers(smallest, 60))
  op = masks.block_mask((height, width), count, smallest, largest)
  mask = drawn(op, data.draw(SEEDS))["mask"]
  assert mask.dtype == bool and mask.shape == (height, width)
  assert mask.sum() == count


def test_block_mask_has_blocks():
  """Neighbours share their fate more often than in a random mask."""

  def alike(op):
    found = [drawn(op, s)["mask"] for s in range(50)]
    return np.mean([(m[1:] == m[:-1]).mean() for m in found])

  assert alike(masks.block_mask(14, 75)) > 0.8
  assert alike(masks.random_mask(14, 75 / 196)) < 0.6
  one = drawn(masks.block_mask(14, 16, 16, aspect=1), 3)["mask"]
  rows, columns = one.any(1).sum(), one.any(0).sum()
  assert (rows, columns) == (4, 4)


@few
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.floats(0, 1), SEEDS)
def test_grid_mask_hides_whole_units(rows, columns, unit, ratio, seed):
  shape = (rows * unit, columns * unit)
  for kind, count in (
    ("checkerboard", rows * columns // 2),
    ("quarter", rows * columns - math.ceil(rows / 2) * math.ceil(columns / 2)),
    ("random", math.ceil(ratio * rows * columns)),
  ):
    mask = drawn(masks.grid_mask(shape, kind, unit, ratio), seed)["mask"]
    units = mask.reshape(rows, unit, columns, unit).transpose(0, 2, 1, 3).reshape(-1, unit**2)
    assert mask.shape == shape and (units.all(1) == units.any(1)).all()
    assert units.all(1).sum() == count


def test_regular_grids_draw_nothing():
  [[a, b], [c, d]] = masks.grid_mask(2)({}, None)["mask"]
  assert (a, b, c, d) == (False, True, True, False)
  np.testing.assert_array_equal(
    masks.grid_mask(4, "quarter")({}, None)["mask"][::2, ::2], np.zeros((2, 2))
  )


@few
@given(st.integers(1, 8), SIDES, SIDES, st.floats(0, 1), SEEDS)
def test_tubes_are_the_same_in_every_frame(frames, height, width, ratio, seed):
  mask = drawn(masks.tube_mask(frames, (height, width), ratio), seed)["mask"]
  assert mask.dtype == bool and mask.shape == (frames, height, width)
  assert (mask == mask[0]).all()
  assert mask[0].sum() == round(ratio * height * width)


@few
@given(SIDES, SIDES, st.integers(1, 5), SEEDS)
def test_context_and_targets_never_overlap(height, width, targets, seed):
  out = drawn(masks.multi_block_mask((height, width), targets, min_context=1), seed)
  context, target = out["context_mask"], out["target_masks"]
  assert context.shape == (height * width,) and target.shape == (targets, height * width)
  assert context.dtype == target.dtype == bool
  assert not (context & target.any(0)).any() and target.any(1).all()
  for t in target.reshape(targets, height, width):
    assert t.sum() == t.any(0).sum() * t.any(1).sum()  # a rectangle


def test_multi_block_mask_has_the_papers_sizes():
  out = [drawn(masks.multi_block_mask(14), s) for s in range(100)]
  area = np.array([o["target_masks"].sum(1) for o in out]) / 196
  assert area.min() > 0.12 and area.max() < 0.23 and 0.16 < area.mean() < 0.19
  context = np.array([o["context_mask"].sum() for o in out])
  assert context.min() >= 10 and 0.3 < context.mean() / 196 < 0.7


@pytest.mark.parametrize(
  "spec, message",
  [
    ("random_mask(0)", "grid = 0"),
    ("random_mask('a')", "grid = 'a'"),
    ("random_mask(14, 75)", "ratio = 75"),
    ("block_mask(14, 200)", "count = 200; the grid has 196"),
    ("block_mask(14, 75, aspect=2)", "aspect = 2"),
    ("block_mask(14, 75, aspect=0)", "aspect = 0"),
    ("block_mask(14, 75, 16, 8)", "max_size = 8"),
    ("grid_mask(14, 'checkers')", "did you mean checkerboard"),
    ("grid_mask(14, unit=3)", "unit = 3 does not divide"),
    ("tube_mask(0, 14)", "frames = 0"),
    ("multi_block_mask(14, target_scale=(0.2, 1.5))", "target_scale = (0.2, 1.5)"),
    ("multi_block_mask(2)", "min_context = 10; the grid has 4"),
  ],
)
def test_mistakes(spec, message):
  with pytest.raises(UserError) as error:
    ops.build(spec)
  assert message in str(error.value)
