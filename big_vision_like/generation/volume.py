"""Cameras, rays and volume rendering (NeRF, Mildenhall et al., arXiv:2003.08934, Sec. 4).

    C(r) = sum_i T_i (1 - exp(-sigma_i delta_i)) c_i                        (Eq. 3)
    T_i = exp(-sum_{j<i} sigma_j delta_j)

The world has z up; cameras look at the origin from a sphere around it. Angles are in radians.
Cameras are described one by one (`jax.vmap` makes many); the rest takes any leading dimensions.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


class Rendered(NamedTuple):
  """What a ray has seen.

  Attributes:
    colour: [..., C], on the background.
    weights: [..., S], T_i (1 - exp(-sigma_i delta_i)): how much of each sample is seen.
    transmittance: [..., S], T_i: how much of the light passes all samples before.
    opacity: [...], the sum of the weights, 0 to 1.
    depth: [...], mean distance over the weights; that of the last sample where nothing is hit.
  """

  colour: Float[Array, "... C"]
  weights: Float[Array, "... S"]
  transmittance: Float[Array, "... S"]
  opacity: Float[Array, "..."]
  depth: Float[Array, "..."]


def direction(azimuth: Float[Array, ""], elevation: Float[Array, ""]) -> Float[Array, "3"]:
  """Unit vector; azimuth 0 is the x axis, elevation pi / 2 the z axis."""
  flat = jnp.cos(elevation)
  return jnp.stack([flat * jnp.cos(azimuth), flat * jnp.sin(azimuth), jnp.sin(elevation)])


def pose(
  azimuth: Float[Array, ""], elevation: Float[Array, ""], distance: Float[Array, ""]
) -> Float[Array, "3 4"]:
  """Camera to world: columns right, up, back (the camera looks along -back), position."""
  back = direction(azimuth, elevation)
  right = direction(azimuth + math.pi / 2, jnp.zeros_like(elevation))
  return jnp.stack([right, jnp.cross(back, right), back, distance * back], axis=1)


def rays(
  camera: Float[Array, "3 4"], size: tuple[int, int], fov: float | Float[Array, ""]
) -> tuple[Float[Array, "H W 3"], Float[Array, "H W 3"]]:
  """Origins and unit directions through the centres of the pixels, rows from top to bottom.

  A pinhole in the middle of square pixels; `fov` is the angle over the height of the image, so the
  focal length in pixels is H / 2 / tan(fov / 2).
  """
  height, width = size
  focal = height / 2 / jnp.tan(jnp.asarray(fov) / 2)
  x = jnp.broadcast_to((jnp.arange(width) + 0.5 - width / 2)[None, :] / focal, size)
  y = jnp.broadcast_to((height / 2 - jnp.arange(height) - 0.5)[:, None] / focal, size)
  ahead = jnp.stack([x, y, -jnp.ones(size)], axis=-1) @ camera[:, :3].T
  ahead = ahead / jnp.linalg.norm(ahead, axis=-1, keepdims=True)
  return jnp.broadcast_to(camera[:, 3], ahead.shape), ahead


def stratified(
  rng: Key[Array, ""] | None,
  near: Float[Array, "..."],
  far: Float[Array, "..."],
  num_samples: int,
) -> tuple[Float[Array, "... S"], Float[Array, "... S"]]:
  """Distances t_i, one from each of S equal bins (Eq. 2), and delta_i = t_{i+1} - t_i.

  The last sample reaches to `far`. Without `rng` it is the middle of each bin.
  """
  shape = (*near.shape, num_samples)
  place = jnp.full(shape, 0.5) if rng is None else jax.random.uniform(rng, shape)
  place = (place + jax.lax.broadcasted_iota(jnp.float32, shape, len(shape) - 1)) / num_samples
  t = near[..., None] + (far - near)[..., None] * place
  return t, jnp.diff(t, axis=-1, append=far[..., None])


def composite(
  density: Float[Array, "... S"],
  colour: Float[Array, "... S C"],
  t: Float[Array, "... S"],
  delta: Float[Array, "... S"],
  background: Float[Array, "... C"] | float = 0.0,
) -> Rendered:
  """Eq. 3; the light that no sample stops comes from `background`."""
  optical = density * delta
  before = jnp.cumsum(optical[..., :-1], axis=-1)
  before = jnp.concatenate([jnp.zeros_like(optical[..., :1]), before], axis=-1)
  transmittance = jnp.exp(-before)
  weights = -jnp.expm1(-optical) * transmittance
  opacity = jnp.sum(weights, axis=-1)
  seen = jnp.sum(weights[..., None] * colour, axis=-2)
  depth = jnp.sum(weights * t, axis=-1) + (1 - opacity) * t[..., -1]
  return Rendered(
    seen + (1 - opacity)[..., None] * background, weights, transmittance, opacity, depth
  )


def lambertian(
  albedo: Float[Array, "... 3"],
  normals: Float[Array, "... 3"],
  to_light: Float[Array, "... 3"],
  diffuse: float = 0.9,
  ambient: float = 0.1,
) -> Float[Array, "... 3"]:
  """albedo (diffuse max(0, n . l) + ambient), l the unit vector to the lamp (arXiv:2209.14988)."""
  facing = jnp.maximum(jnp.sum(normals * to_light, axis=-1, keepdims=True), 0.0)
  return albedo * (diffuse * facing + ambient)


def orientation_penalty(
  weights: Float[Array, "... S"],
  normals: Float[Array, "... S 3"],
  directions: Float[Array, "... 3"],
) -> Float[Array, "..."]:
  """sum_i w_i max(0, n_i . d)^2 of each ray: normals that are seen should face the camera.

  Ref-NeRF (Verbin et al., arXiv:2112.03907, Eq. 11). The weights get no gradient, so that the
  penalty turns surfaces and does not make them transparent.
  """
  away = jnp.maximum(jnp.sum(normals * directions[..., None, :], axis=-1), 0.0)
  return jnp.sum(jax.lax.stop_gradient(weights) * jnp.square(away), axis=-1)
