"""Errors of depth by hand, and a depth that a linear layer can learn."""

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_mesh

from big_vision_like.config import UserError, wrap
from big_vision_like.evaluators import linear_depth
from big_vision_like.state import State

STATE = State({}, {}, {}, 0)
MESHES = [dict(replica=1, fsdp=1), dict(replica=2, fsdp=2, tensor=2)]


def data(folder, n, seed):
  """Log depth is linear in the colour of a pixel; the last row is unknown, image 3 altogether."""
  rng = np.random.default_rng(seed)
  image = rng.integers(0, 256, size=(n, 2, 3, 3))
  depth = np.exp((image @ [0.5, -0.2, 0.3]) / 100.0 + 0.5)[..., None].repeat(4, 1).repeat(4, 2)
  depth[:, -1] = 0.0
  depth[3] = 0.0
  image = image.repeat(4, 1).repeat(4, 2)
  arrays = dict(image=image.astype(np.uint8), depth=depth.astype(np.float32))
  np.savez(folder / f"{seed}.npz", **arrays)
  return f"arrays('{folder}/{seed}.npz')"


def evaluator(tmp_path, shape=MESHES[1], **kwargs):
  base = dict(source_train=data(tmp_path, 60, 0), source=data(tmp_path, 27, 1))
  base |= dict(pp="value_range(-1, 1)", batch_size=8, epochs=10, lr=0.03)
  cfg = wrap({"evals": {"x": base | kwargs}}).evals.x
  every = lambda p, a, b, rng=None: b["image"][:, ::4, ::4]
  return linear_depth.Evaluator(cfg, {"image_tokens": every}, make_mesh(**shape))


def test_by_hand():
  pred = jnp.array([[[1.0, 2.0], [4.0, 9.0]], [[1.0, 1.0], [1.0, 1.0]]])
  true = jnp.array([[[1.0, 4.0], [5.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
  found = linear_depth.errors(pred, true, true > 0)
  np.testing.assert_allclose(found["rmse"], [np.sqrt((0 + 4 + 1) / 3), 0], rtol=1e-6)
  np.testing.assert_allclose(found["absrel"], [(0 + 0.5 + 0.2) / 3, 0], rtol=1e-6)
  np.testing.assert_allclose(found["delta1"], [1 / 3, 0], rtol=1e-6)  # 5 / 4 is not below 1.25
  np.testing.assert_array_equal(found["pixels"], [3, 0])


@pytest.mark.parametrize("shape", MESHES)
def test_means_over_images(tmp_path, shape):
  """A constant prediction: e, the same in NumPy; image 3 has no known pixel and does not count."""
  found = evaluator(tmp_path, shape, head="linear", max_depth=10.0)
  zero = np.zeros((3, 1), np.float32)
  constant = dict(mean=zero[:, 0], std=zero[:, 0] + 1, kernel=zero, bias=np.ones(1, np.float32))
  found.trained.fit = lambda *args: constant
  scores, expected = found.run(STATE), []
  true = found.test.map(lambda b: {"y": b["depth"]})["y"][..., 0].astype(np.float64)
  for y in true:
    y = y[(y >= 1e-3) & (y <= 10)]
    if len(y):
      delta = np.maximum(np.e / y, y / np.e) < 1.25
      expected.append([np.sqrt(((np.e - y) ** 2).mean()), (abs(np.e - y) / y).mean(), delta.mean()])
  assert len(expected) == 26
  expected = dict(zip(("rmse", "absrel", "delta1"), np.mean(expected, axis=0)))
  assert scores == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("head, least", [("linear", 0.6), ("bins", 0.5)])
def test_learns_the_same_on_any_mesh(tmp_path, head, least):
  one, eight = (evaluator(tmp_path, shape, head=head, bins=32).run(STATE) for shape in MESHES)
  assert one == pytest.approx(eight, abs=2e-2)
  untrained = evaluator(tmp_path, head=head, bins=32, epochs=0.1, lr=1e-6).run(STATE)
  assert one["delta1"] > least and one["delta1"] > untrained["delta1"] + 0.1
  assert one["absrel"] < 0.5 * untrained["absrel"]


def test_mistakes_are_one_line(tmp_path):
  with pytest.raises(UserError, match="head 'bin' is unknown; did you mean bins"):
    evaluator(tmp_path, head="bin")
  with pytest.raises(UserError, match="max_depth = 1; expected a number > 2"):
    evaluator(tmp_path, min_depth=2, max_depth=1)
  with pytest.raises(UserError, match="no pixel of source has a depth from 1000 to 2000"):
    evaluator(tmp_path, min_depth=1000, max_depth=2000, epochs=0.1).run(STATE)
