import jax
import numpy as np
import pytest

from big_vision_like.layers.masking import by_noise, num_visible, random_masking


def test_by_hand():
  noise = np.array([[0.3, 0.9, 0.1, 0.5], [0.8, 0.2, 0.7, 0.6]], np.float32)
  masking = by_noise(noise, 0.5)
  np.testing.assert_array_equal(masking.keep, [[2, 0], [1, 3]])
  np.testing.assert_array_equal(masking.restore, [[1, 3, 0, 2], [3, 0, 2, 1]])
  np.testing.assert_array_equal(masking.mask, [[0, 1, 0, 1], [1, 0, 1, 0]])


@pytest.mark.parametrize("count, ratio, visible", [(196, 0.75, 49), (196, 0.8, 39), (36, 0.75, 9)])
def test_equally_many_are_hidden_and_every_example_has_its_own(count, ratio, visible):
  assert num_visible(count, ratio) == visible
  masking = random_masking(jax.random.key(0), 64, count, ratio)
  assert masking.keep.shape == (64, visible)
  np.testing.assert_array_equal(masking.mask.sum(axis=1), count - visible)
  assert len(np.unique(masking.mask, axis=0)) == 64
  kept = np.take_along_axis(np.asarray(masking.mask), np.asarray(masking.keep), axis=1)
  assert not kept.any()
  # Every patch is hidden in about `ratio` of the examples.
  assert abs(masking.mask.mean(axis=0) - ratio).max() < 6 * (ratio * (1 - ratio) / 64) ** 0.5
