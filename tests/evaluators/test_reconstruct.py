"""Errors of filled-in pixels against NumPy: on 8 devices too, with a last batch half full."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_mesh

from big_vision_like.config import UserError, wrap
from big_vision_like.evaluators import reconstruct
from big_vision_like.input.sources.digits import digits
from big_vision_like.state import State

STATE = State({}, {}, {}, 0)
MESHES = [dict(replica=1, fsdp=1), dict(replica=2, fsdp=2, tensor=2)]
CONFIG = dict(source="digits(split='test')", pp="drop(text)|value_range(0, 1)", batch_size=100)


def left_hidden(params, aux, batch, rng):
  """The left 3 columns are hidden and filled with 0.25; where the image shows, it is pasted."""
  image = batch["image"]
  mask = jnp.broadcast_to((jnp.arange(8) < 3)[None, None, :, None], (*image.shape[:3], 1))
  mask = mask.astype(jnp.float32)
  fill = lambda value: jnp.where(mask > 0, value, image)
  return {"image": fill(0.25), "mask": mask, "target": image, "baseline": fill(0.5)}


def cfg(**kwargs):
  return wrap({"evals": {"x": CONFIG | kwargs}}).evals.x


def edges(x):
  """Within the hidden 3 columns, and between the last of them and the first visible one."""
  return np.sum(np.diff(x[:, :, :3], axis=1) ** 2) + np.sum(np.diff(x[:, :, :4], axis=2) ** 2)


@pytest.mark.parametrize("shape", MESHES)
def test_errors(shape):
  predict = {"reconstruct": jax.jit(left_hidden)}
  found = reconstruct.Evaluator(cfg(), predict, make_mesh(**shape)).run(STATE)
  x = np.stack([e["image"] for e in digits("test")]).astype(np.float64) / 255
  assert len(x) % 100  # the last batch is not full
  hidden, seen = x[:, :, :3], x[:, :, 3:]
  expected = {
    "mse": np.mean((hidden - 0.25) ** 2),
    "baseline": np.mean((hidden - 0.5) ** 2),
    "mean_fill": np.mean((hidden - seen.mean(axis=(1, 2), keepdims=True)) ** 2),
    "mean_image": np.mean((hidden - hidden.mean(axis=0)[None]) ** 2),
    "sharpness": edges(np.where(np.arange(8)[None, None, :, None] < 3, 0.25, x)) / edges(x),
  }
  assert found == {k: pytest.approx(v, rel=1e-5) for k, v in expected.items()}


def test_without_a_baseline_of_the_method():
  fn = lambda *args: {k: v for k, v in left_hidden(*args).items() if k != "baseline"}
  found = reconstruct.Evaluator(cfg(), {"reconstruct": fn}, make_mesh(fsdp=1)).run(STATE)
  assert found.keys() == {"mse", "mean_fill", "mean_image", "sharpness"}


def test_every_batch_has_its_own_masks():
  keys = []

  def record(params, aux, batch, rng):
    keys.append(jax.random.key_data(rng).tolist())
    return left_hidden(params, aux, batch, rng)

  reconstruct.Evaluator(cfg(), {"reconstruct": record}, make_mesh(fsdp=1)).run(STATE)
  assert len(keys) > 2 and len({tuple(k) for k in keys}) == len(keys)


def test_picture():
  predict = {"reconstruct": jax.jit(left_hidden)}
  picture = reconstruct.Evaluator(cfg(rows=5), predict, make_mesh(fsdp=1)).pictures(STATE)
  tiles = picture["reconstruction"].reshape(5, 68, 3, 68, 1)[:, 2:-2, :, 2:-2]
  assert tiles.dtype == np.uint8 and (tiles[:, :, 1, :24] == 128).all()  # grey
  images = np.stack([e["image"] for e in digits("test")])[:5].repeat(8, 1).repeat(8, 2)
  np.testing.assert_allclose(tiles[:, :, 0], images, atol=1)
  np.testing.assert_allclose(tiles[:, :, 1:, 24:], images[:, :, None, 24:].repeat(2, 2), atol=1)
  np.testing.assert_allclose(tiles[:, :, 2, :24], 64)


def test_needs_reconstruct():
  with pytest.raises(UserError, match="has no predict 'reconstruct'"):
    reconstruct.Evaluator(cfg(), {"logits": left_hidden}, make_mesh(fsdp=1))
