"""Samplers of diffusion models: from noise to images under `lax.scan`.

    sampler(denoise, rng, shape, schedule, steps, **options) -> x float32 of `shape`

`denoise(z, t)` is the network's estimate of the clean image for z [B, ...] at times t [B] of the
schedule (`diffusion.to_x0` makes it from any target); guidance and clipping are composed into it.
The times are `schedule.grid(steps)` but for EDM's, and the last step leads to the clean image. The
network is called once a step, by Heun's method twice.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from big_vision_like import axes
from big_vision_like.config import unknown
from big_vision_like.generation.diffusion import Schedule, alpha_sigma, posterior

Denoise = Callable[[jax.Array, jax.Array], jax.Array]


def _run(
  step: Callable, rng: jax.Array, shape: tuple[int, ...], schedule: Schedule, times: np.ndarray
) -> jax.Array:
  """Scans `z, memory, i, rng, times (now, next), levels (now, next) -> z, memory` over `times`.

  `memory` is of the shape of z and starts as zeros. The next level of the last step is +inf.
  """
  first, later = jax.random.split(rng)
  times = jnp.asarray(times)
  levels = schedule.log_snr(times)
  # The clean image has no time; its level is what steps look at.
  next_times = jnp.append(times[1:], times[-1])
  next_levels = jnp.append(levels[1:], jnp.inf)

  def body(carry, at):
    i, t, level = at
    z, memory = step(*carry, i, jax.random.fold_in(later, i), t, level)
    return (axes.constrain(z, axes.BATCH), axes.constrain(memory, axes.BATCH)), None

  z = axes.constrain(jax.random.normal(first, shape), axes.BATCH)
  at = (jnp.arange(len(times)), (times, next_times), (levels, next_levels))
  return jax.lax.scan(body, (z, jnp.zeros_like(z)), at)[0][0]


def _fill(t: jax.Array, z: jax.Array) -> jax.Array:
  return jnp.full(z.shape[:1], t)


def ancestral(
  denoise: Denoise,
  rng: jax.Array,
  shape: tuple[int, ...],
  schedule: Schedule,
  steps: int,
  *,
  variance: str = "small",
) -> jax.Array:
  """DDPM's sampler (arXiv:2006.11239, Algorithm 2), on any subset of the times.

  `variance` is that of the posterior, "small" (beta-tilde), or "large" (beta). No noise is added in
  the last step.
  """
  if variance not in ("small", "large"):
    raise unknown("sampler: variance", variance, ("small", "large"))

  def step(z, memory, i, rng, t, level):
    (now, then) = level
    mean, var = posterior(z, denoise(z, _fill(t[0], z)), now, then)
    if variance == "large":
      var = jnp.where(jnp.isinf(then), 0.0, jax.nn.sigmoid(-now) * -jnp.expm1(now - then))
    return mean + jnp.sqrt(var) * jax.random.normal(rng, z.shape), memory

  return _run(step, rng, shape, schedule, schedule.grid(steps))


def ddim(
  denoise: Denoise,
  rng: jax.Array,
  shape: tuple[int, ...],
  schedule: Schedule,
  steps: int,
  *,
  eta: float = 0.0,
) -> jax.Array:
  """DDIM (Song et al., arXiv:2010.02502, Eq. 12 and 16): eta = 0 adds no noise, 1 is ancestral."""

  def step(z, memory, i, rng, t, level):
    (now, then) = level
    (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(now), alpha_sigma(then)
    x = denoise(z, _fill(t[0], z))
    eps = (z - alpha_t * x) / sigma_t
    var = eta**2 * posterior(z, x, now, then)[1]
    z = alpha_s * x + jnp.sqrt(jnp.maximum(jnp.square(sigma_s) - var, 0.0)) * eps
    if eta:
      z = z + jnp.sqrt(var) * jax.random.normal(rng, z.shape)
    return z, memory

  return _run(step, rng, shape, schedule, schedule.grid(steps))


def dpmpp_2m(
  denoise: Denoise, rng: jax.Array, shape: tuple[int, ...], schedule: Schedule, steps: int
) -> jax.Array:
  """DPM-Solver++(2M) (Lu et al., arXiv:2211.01095, Algorithm 2); `memory` is the estimate before.

  Of first order in the first and in the last step, whose length in log-SNR is infinite.
  """

  def step(z, before, i, rng, t, level):
    (now, then) = level
    (_, sigma_t), (alpha_s, sigma_s) = alpha_sigma(now), alpha_sigma(then)
    x = denoise(z, _fill(t[0], z))
    # h of this step over h of the last one; their halves (log-SNR is 2 log(alpha / sigma)) cancel.
    ratio = (then - now) / (now - last_level(i))
    ratio = jnp.where((i == 0) | jnp.isinf(then), 0.0, ratio)
    estimate = x + 0.5 * ratio * (x - before)
    z = (sigma_s / sigma_t) * z - alpha_s * jnp.expm1((now - then) / 2) * estimate
    return z, x

  levels = schedule.log_snr(jnp.asarray(schedule.grid(steps)))
  last_level = lambda i: levels[jnp.maximum(i - 1, 0)]
  return _run(step, rng, shape, schedule, schedule.grid(steps))


def heun(
  denoise: Denoise,
  rng: jax.Array,
  shape: tuple[int, ...],
  schedule: Schedule,
  steps: int,
  *,
  sigma_min: float = 0.002,
  sigma_max: float = 80.0,
  rho: float = 7.0,
) -> jax.Array:
  """EDM's second order method (Karras et al., arXiv:2206.00364, Algorithm 1, without churn).

  In y = z / alpha and s = sigma / alpha the flow is dy / ds = eps. Its Euler step is one of DDIM;
  the correction is left out in the last step. The levels are the paper's, Eq. 5, at the nearest
  times that the schedule has.
  """

  def step(z, memory, i, rng, t, level):
    (now, then) = level
    (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(now), alpha_sigma(then)
    x = denoise(z, _fill(t[0], z))
    eps = (z - alpha_t * x) / sigma_t
    euler = alpha_s * x + sigma_s * eps
    last = jnp.isinf(then)
    eps_next = (euler - alpha_s * denoise(euler, _fill(t[1], z))) / jnp.where(last, 1.0, sigma_s)
    length = jnp.where(last, 0.0, sigma_s - alpha_s * sigma_t / alpha_t)  # alpha_s (s_next - s)
    return euler + 0.5 * length * (eps_next - eps), memory

  schedule.grid(steps)  # checks the number
  ramp = np.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), steps) ** rho
  return _run(step, rng, shape, schedule, schedule.nearest(-2.0 * np.log(ramp)))


SAMPLERS = {"ancestral": ancestral, "ddim": ddim, "dpmpp_2m": dpmpp_2m, "heun": heun}


def find(name: str, where: str = "sampler") -> Callable[..., Any]:
  """`SAMPLERS[name]`, or a `UserError` that names the known ones."""
  if name not in SAMPLERS:
    raise unknown(where, name, tuple(SAMPLERS))
  return SAMPLERS[name]
