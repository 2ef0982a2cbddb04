"""Masks that hold 60 % of the attention, and their overlap with the object, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_mesh

from big_vision_like.config import UserError, wrap
from big_vision_like.evaluators import attention
from big_vision_like.state import State

STATE = State({}, {}, {}, 0)
MESHES = [dict(replica=1, fsdp=1), dict(replica=2, fsdp=2, tensor=2)]


def maps(params, aux, batch, rng=None):
  """Head 0 attends to bright patches of 2 x 2 pixels, head 1 to dark ones, head 2 to all."""
  x = batch["image"].astype(jnp.float32)[..., 0]
  x = x.reshape(len(x), 4, 2, 6, 2).mean((2, 4)) / 255
  x += jnp.linspace(0, 1e-3, 24).reshape(1, 4, 6)  # no ties: they are cut anywhere
  return jnp.stack([x**4, (1 - x) ** 4, jnp.ones_like(x)], axis=1)


def data(folder, n=27):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, size=(n, 8, 12, 1))
  label = (image[..., :1] > 150) * rng.integers(1, 4, size=(n, 1, 1, 1))
  label[:, 0] = 255
  label[2], label[5, 1:] = 0, 0  # no foreground: no counting
  path = folder / "a.npz"
  np.savez(path, image=image.astype(np.uint8), segmentation=label.astype(np.int32))
  return f"arrays('{path}')"


def evaluator(tmp_path, shape=MESHES[1], predict=None, **kwargs):
  base = dict(source=data(tmp_path), pp="", batch_size=8)
  cfg = wrap({"evals": {"x": base | kwargs}}).evals.x
  return attention.Evaluator(cfg, predict or {"attention": maps}, make_mesh(**shape))


def reference(x, label, mass):
  """One head of one image at a time; DINO's way: drop the smallest while they hold 1 - mass."""
  heads = []
  for a in np.asarray(maps(0, 0, {"image": jnp.asarray(x[None])}))[0].astype(np.float64):
    order = np.argsort(a.ravel(), kind="stable")
    dropped = np.cumsum(a.ravel()[order] / a.sum()) <= 1 - mass + 1e-6
    mask = np.ones(a.size, bool)
    mask[order[dropped]] = False
    mask = mask.reshape(a.shape).repeat(2, 0).repeat(2, 1)[1:]
    object_ = label[1:, :, 0] > 0
    heads.append((mask & object_).sum() / (mask | object_).sum())
  return heads


@pytest.mark.parametrize("shape", MESHES)
@pytest.mark.parametrize("mass", [0.6, 0.25])
def test_against_numpy(tmp_path, shape, mass):
  found = evaluator(tmp_path, shape, mass=mass)
  rows = found.split.map(lambda b: {"x": b["image"], "y": b["segmentation"]})
  some = [i for i in range(27) if i not in (2, 5)]
  expected = np.array([reference(rows["x"][i], rows["y"][i], mass)[:2] for i in some])
  found.attention = lambda *args: maps(*args)[:, :2]  # equal shares are cut anywhere
  scores = found.run(STATE)
  assert scores["jaccard"] == pytest.approx(expected.mean(0).max(), abs=1e-6)
  assert scores["best_per_image"] == pytest.approx(expected.max(1).mean(), abs=1e-6)
  assert scores["mean"] == pytest.approx(expected.mean(), abs=1e-6)
  full = [(rows["y"][i, 1:] > 0).mean() for i in some]
  assert scores["all"] == pytest.approx(np.mean(full), abs=1e-6)


def test_top_mass():
  shares = jnp.array([[0.1, 0.4], [0.3, 0.2]])
  masks = {
    m: np.asarray(attention.top_mass(shares * 7, m)).astype(int).tolist() for m in (0.4, 0.6)
  }
  assert masks == {0.4: [[0, 1], [0, 0]], 0.6: [[0, 1], [1, 0]]}
  assert attention.top_mass(shares, 0.7).sum() == 2 and attention.top_mass(shares, 1.0).all()
  assert attention.top_mass(jnp.ones((4, 5)), 0.6).sum() == 12
  assert not attention.top_mass(shares * jnp.nan, 0.6).any()


def test_perfect_maps(tmp_path):
  """Attention that is the object's mask scores 1 with all its mass."""
  seen = lambda p, a, b, rng=None: (b["segmentation"][..., 0] % 255 > 0)[:, None].astype(
    jnp.float32
  )
  scores = evaluator(tmp_path, predict={"attention": seen}, mass=1.0).run(STATE)
  assert scores["jaccard"] == scores["best_per_image"] == pytest.approx(1.0)


def test_mistakes_are_one_line(tmp_path):
  with pytest.raises(UserError, match="has no predict 'attention'; it has image_embed"):
    evaluator(tmp_path, predict={"image_embed": maps})
  with pytest.raises(UserError, match="mass = 60; expected a share, at most 1"):
    evaluator(tmp_path, mass=60)
  with pytest.raises(UserError, match="no image of source has a foreground"):
    evaluator(tmp_path, background=1, pp="", source=empty(tmp_path)).run(STATE)


def empty(folder):
  label = np.array([1, 255], np.int32)[None, None, :, None].repeat(4, 1).repeat(6, 2).repeat(2, 1)
  path = folder / "empty.npz"
  np.savez(path, image=np.zeros((1, 8, 12, 1), np.uint8), segmentation=label)
  return f"arrays('{path}')"
