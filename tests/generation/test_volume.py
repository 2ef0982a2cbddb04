"""Cameras, rays and compositing against cases that can be solved by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from big_vision_like.generation import volume
from big_vision_like.input.sources import solids

F = jnp.float32


def test_pose_looks_at_the_origin():
  camera = np.asarray(volume.pose(F(0.7), F(0.4), F(3.0)))
  np.testing.assert_allclose(camera[:, :3].T @ camera[:, :3], np.eye(3), atol=1e-6)
  assert np.linalg.det(camera[:, :3]) > 0.99
  np.testing.assert_allclose(camera[:, 3], 3 * camera[:, 2], atol=1e-6)
  assert camera[2, 1] > 0 and abs(camera[2, 0]) < 1e-6  # up is up, right is level
  side = volume.pose(F(np.pi / 2), F(0.0), F(2.0))
  np.testing.assert_allclose(side, [[-1, 0, 0, 0], [0, 0, 1, 2], [0, 1, 0, 0]], atol=1e-6)


def test_rays_by_hand():
  camera = volume.pose(F(0.0), F(0.0), F(2.0))  # at x = 2, right is +y
  origins, d = volume.rays(camera, (2, 4), np.pi / 2)  # focal length: 1 pixel
  np.testing.assert_allclose(origins[1, 2], [2, 0, 0], atol=1e-6)
  np.testing.assert_allclose(np.linalg.norm(d, axis=-1), 1, atol=1e-6)
  top_left = np.array([-1, -1.5, 0.5])
  np.testing.assert_allclose(d[0, 0], top_left / np.linalg.norm(top_left), atol=1e-6)


def test_the_same_camera_as_the_solids():
  eye, expected = solids._rays(0.9, 0.5, 12)
  camera = volume.pose(F(0.9), F(0.5), F(solids.DISTANCE))
  origins, d = volume.rays(camera, (12, 12), np.radians(solids.FOV))
  np.testing.assert_allclose(np.asarray(d).reshape(-1, 3), expected, atol=1e-6)
  np.testing.assert_allclose(origins[0, 0], eye, atol=1e-6)


def test_stratified():
  near, far = jnp.full((3, 2), 1.0), jnp.full((3, 2), 5.0)
  t, delta = volume.stratified(None, near, far, 4)
  np.testing.assert_allclose(t[1, 1], [1.5, 2.5, 3.5, 4.5])
  np.testing.assert_allclose(delta[1, 1], [1, 1, 1, 0.5])
  t, delta = volume.stratified(jax.random.key(0), near, far, 4)
  np.testing.assert_array_equal(np.floor(t), np.broadcast_to([1, 2, 3, 4], (3, 2, 4)))
  assert len(np.unique(np.asarray(t) % 1)) == t.size
  np.testing.assert_allclose(t + delta, np.concatenate([t[..., 1:], 5 * np.ones((3, 2, 1))], -1))


def slab(sigma, samples=64, near=1.0, far=4.0, begin=2.0, end=3.0, rng=None):
  """A slab of constant density between two distances."""
  t, delta = volume.stratified(rng, jnp.full((1,), near), jnp.full((1,), far), samples)
  inside = (t >= begin) & (t < end)
  return jnp.where(inside, sigma, 0.0), t, delta


def test_constant_slab():
  """Opacity 1 - exp(-sigma d); the depth of what is seen by its integral."""
  for sigma in (0.3, 2.0, 7.0):
    density, t, delta = slab(sigma, samples=768)
    out = volume.composite(density, jnp.ones((*t.shape, 3)), t, delta, 0.25)
    opacity = 1 - np.exp(-sigma)
    np.testing.assert_allclose(out.opacity[0], opacity, rtol=1e-4)
    np.testing.assert_allclose(out.colour[0], opacity + 0.25 * (1 - opacity), rtol=1e-4)
    last = float(t[0, -1])
    # integral of t sigma exp(-sigma (t - 2)) over 2..3
    mean = (2 + 1 / sigma) - (3 + 1 / sigma) * np.exp(-sigma)
    np.testing.assert_allclose(out.depth[0], mean + (1 - opacity) * last, rtol=2e-3)


def test_samples_by_the_equation():
  rng = np.random.default_rng(0)
  density, delta = rng.exponential(1, (2, 5)), rng.uniform(0.1, 1, (2, 5))
  colour, background = rng.uniform(0, 1, (2, 5, 3)), rng.uniform(0, 1, (2, 3))
  t = np.cumsum(delta, 1)
  expected, left = np.zeros((2, 3)), np.ones(2)
  for i in range(5):
    alpha = 1 - np.exp(-density[:, i] * delta[:, i])
    expected += (left * alpha)[:, None] * colour[:, i]
    left = left * (1 - alpha)
  expected += left[:, None] * background
  out = volume.composite(*map(F, (density, colour, t, delta, background)))
  np.testing.assert_allclose(out.colour, expected, rtol=1e-5)
  np.testing.assert_allclose(out.opacity, 1 - left, rtol=1e-5)
  np.testing.assert_allclose(out.transmittance[:, 0], 1)


def test_opaque_front_plane():
  density, t, delta = slab(3e6, rng=jax.random.key(1))
  front = int(np.flatnonzero(np.asarray(density[0]))[0])
  colour = jnp.where(jnp.arange(64) == front, 1.0, 0.0)[None, :, None] * jnp.ones((1, 64, 3))
  fn = lambda s: volume.composite(s, colour, t, delta, 0.5)
  out = fn(density)
  np.testing.assert_array_equal(out.colour, 1)
  np.testing.assert_array_equal(out.opacity, 1)
  np.testing.assert_allclose(out.depth[0], t[0, front])
  assert np.isfinite(jax.grad(lambda s: fn(s).colour.sum() + fn(s).depth.sum())(density)).all()


def test_empty_space_is_the_background():
  _, t, delta = slab(0.0)
  background = F([[0.1, 0.2, 0.3]])
  out = volume.composite(jnp.zeros_like(t), jnp.ones((1, 64, 3)), t, delta, background)
  np.testing.assert_allclose(out.colour, background)
  assert float(out.opacity[0]) == 0 and float(out.depth[0]) == float(t[0, -1])


def test_lambertian_and_orientation():
  normals = F([[[0, 0, 1], [1, 0, 0]]])
  light = F([[[0, 0, 1], [0, 0, 1]]])
  out = volume.lambertian(jnp.full((1, 2, 3), 0.5), normals, light)
  np.testing.assert_allclose(out[0, :, 0], [0.5, 0.05], rtol=1e-6)
  weights, d = F([[0.25, 0.5]]), F([[0.6, 0, -0.8]])
  np.testing.assert_allclose(
    volume.orientation_penalty(weights, normals, d), [0.5 * 0.36], rtol=1e-6
  )
  grad = jax.grad(lambda w: volume.orientation_penalty(w, normals, d).sum())(weights)
  np.testing.assert_array_equal(grad, 0)
