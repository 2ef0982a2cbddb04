"""The field against its equations by hand; normals against a field whose gradient is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_like.config import UserError
from big_vision_like.models import nerf

F = jnp.float32


def test_positional_encoding():
  x = F([[0.25, -0.5]])
  expected = [0.25, -0.5]
  for fn in (np.sin, np.cos):
    for k in range(3):
      expected += [fn(2**k * np.pi * 0.25), fn(2**k * np.pi * -0.5)]
  np.testing.assert_allclose(nerf.positional_encoding(x, 3)[0], expected, atol=1e-6)


def layer_norm(x, p):
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  return x * p["scale"] + p["bias"]


def test_forward_by_hand():
  model = nerf.make(width=8, depth=2, frequencies=2, blob=3.0, blob_std=0.3, density_bias=-1.0)
  points = jax.random.uniform(jax.random.key(0), (2, 5, 3), minval=-0.8, maxval=0.8)
  params = model.init(jax.random.key(1), points)["params"]
  keys = iter(jax.random.split(jax.random.key(2), 100))
  params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(next(keys), p.shape), params)
  (density, albedo), out = model.apply({"params": params}, points)
  assert density.shape == (2, 5) and albedo.shape == (2, 5, 3) and out["encoded"].shape == (2, 5, 8)

  p, host = jax.tree.map(lambda x: np.asarray(x, np.float64), (params, points))
  dense = lambda x, d: x @ d["kernel"] + d["bias"]
  silu = lambda x: x / (1 + np.exp(-x))
  x = dense(np.asarray(nerf.positional_encoding(points, 2), np.float64), p["stem"])
  for i in range(2):
    block = p[f"block_{i}"]
    x = x + dense(silu(dense(silu(layer_norm(x, block["norm"])), block["up"])), block["down"])
  head = dense(silu(layer_norm(x, p["norm"])), p["head"])
  square = (host**2).sum(-1)
  expected = np.exp(head[..., 0] - 1 + 3 * np.exp(-square / (2 * 0.09))) * (square < 1)
  assert (square >= 1).any() and (square < 1).any()
  np.testing.assert_allclose(density, expected, rtol=2e-4, atol=1e-6)
  np.testing.assert_allclose(albedo, 1 / (1 + np.exp(-head[..., 1:])), rtol=2e-4)


def test_the_blob_is_in_the_middle():
  model = nerf.make(width=8, depth=1, frequencies=2)
  points = F([[[0, 0, 0.0], [0.5, 0, 0], [0, 0, 0.99], [0, 0.8, 0.8]]])
  params = model.init(jax.random.key(0), points)
  (density, _), _ = model.apply(params, points)
  centre, middle, edge, outside = np.asarray(density[0])
  assert centre > 20 * middle > 0 and edge > 0 and outside == 0
  huge = nerf.make(width=8, depth=1, frequencies=2, blob=1e4)
  assert np.isfinite(huge.apply(params, points)[0][0]).all()


def test_normals_of_a_ball():
  """log density -|x|^2: normals point outwards, also where the density has vanished."""

  def field(points):
    log_density = -jnp.sum(points**2, axis=-1)
    return (jnp.exp(100 * log_density), points), {"log_density": log_density}

  points = jax.random.normal(jax.random.key(0), (2, 7, 3))
  (out, _), normals = nerf.normals(field, points)
  np.testing.assert_allclose(
    normals, points / jnp.linalg.norm(points, axis=-1, keepdims=True), rtol=1e-5
  )
  np.testing.assert_allclose(out[1], points)
  at_centre = jax.grad(lambda p: nerf.normals(field, p)[1].sum())(jnp.zeros((1, 1, 3)))
  assert np.isfinite(at_centre).all()


@pytest.mark.parametrize(
  "kwargs, message",
  [
    (dict(widht=3), "'widht' is unknown; did you mean width"),
    (dict(depth=0), "depth = 0; expected a number > 0"),
  ],
)
def test_mistakes(kwargs, message):
  with pytest.raises(UserError, match=message):
    nerf.make(**kwargs)
