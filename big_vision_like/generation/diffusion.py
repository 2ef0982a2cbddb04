"""Gaussian diffusion: noise schedules, the forward process, targets, loss weights, guidance.

    z_t = alpha_t x + sigma_t eps,   alpha_t^2 + sigma_t^2 = 1

DDPM (Ho et al., arXiv:2006.11239) writes alpha_t = sqrt(alpha-bar_t). The noise level is carried as
log-SNR lambda_t = log(alpha_t^2 / sigma_t^2) (Kingma et al., arXiv:2107.00630), which is exact at
both ends: +inf is the clean image, -inf is noise alone. Functions of a level take lambda [B], or a
scalar, beside arrays [B, ...].
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Num

from big_vision_like.config import UserError, call, unknown

TARGETS = ("eps", "x0", "v", "previous")
WEIGHTS = ("simple", "snr", "truncated_snr", "min_snr", "sigma2")


# -------------------------------------------------------------------------------------- schedules


class Schedule(NamedTuple):
  """lambda as a function of time.

  Attributes:
    log_snr: times of any shape -> lambda_t float32, falling in t.
    num_steps: T where time is one of 0..T-1 (0 is the least noise, not the clean image), else None:
      time is a number of [0, 1].
  """

  log_snr: Callable[[Num[Array, "..."]], Float[Array, "..."]]
  num_steps: int | None

  def timestep(self, t: Num[Array, "..."]) -> Float[Array, "..."]:
    """The number a network sees for time t: t itself, or 1000 t for continuous time."""
    return jnp.asarray(t, jnp.float32) * (1.0 if self.num_steps else 1000.0)

  def previous(self, t: Int[Array, "..."]) -> Float[Array, "..."]:
    """lambda one discrete step earlier, which for t = 0 is that of the clean image."""
    return jnp.where(t > 0, self.log_snr(jnp.maximum(t - 1, 0)), jnp.inf)

  def draw(self, rng: Key[Array, ""], count: int) -> Num[Array, "B"]:
    """Uniform times, for training."""
    if self.num_steps:
      return jax.random.randint(rng, (count,), 0, self.num_steps)
    return jax.random.uniform(rng, (count,))

  def grid(self, steps: int) -> np.ndarray:
    """[steps] falling times that a sampler visits, evenly spaced, from the last time on.

    "Trailing" spacing (Lin et al., arXiv:2305.08891, Sec. 3.3): the first one is pure noise.

    Raises:
      UserError: no step, or more than the schedule has.
    """
    if not isinstance(steps, int) or steps < 1 or steps > (self.num_steps or math.inf):
      most = f" to {self.num_steps}" if self.num_steps else " on"
      raise UserError(f"sampler: steps = {steps!r}; expected a whole number from 1{most}")
    left = 1.0 - np.arange(steps) / steps
    if self.num_steps:
      return np.round(self.num_steps * left).astype(np.int32) - 1
    return left.astype(np.float32)

  def nearest(self, log_snr: np.ndarray) -> np.ndarray:
    """The times whose levels are nearest to those asked for."""
    times = np.arange(self.num_steps) if self.num_steps else np.linspace(0, 1, 10_001)
    times = times.astype(np.int32 if self.num_steps else np.float32)
    with jax.ensure_compile_time_eval():
      table = np.asarray(self.log_snr(jnp.asarray(times)))
    return times[np.argmin(np.abs(table[None, :] - log_snr[:, None]), axis=1)]


def _discrete(alpha_bar: np.ndarray, zero_terminal_snr: bool) -> Schedule:
  """From alpha-bar float64 [T]; the table of lambda is made in float64."""
  if zero_terminal_snr:  # Lin et al., arXiv:2305.08891, Algorithm 1
    root = np.sqrt(alpha_bar)
    alpha_bar = np.square((root - root[-1]) * (root[0] / (root[0] - root[-1])))
  with np.errstate(divide="ignore"):
    table = (np.log(alpha_bar) - np.log1p(-alpha_bar)).astype(np.float32)
  return Schedule(lambda t: jnp.asarray(table)[jnp.asarray(t)], len(table))


def _linear(
  *,
  num_steps: int = 1000,
  beta_start: float = 1e-4,
  beta_end: float = 0.02,
  zero_terminal_snr: bool = False,
) -> Schedule:
  """Variances beta of q(z_t | z_{t-1}) on a line (DDPM, Sec. 4)."""
  betas = np.linspace(beta_start, beta_end, num_steps, dtype=np.float64)
  return _discrete(np.cumprod(1.0 - betas), zero_terminal_snr)


def _cosine(
  *,
  num_steps: int = 1000,
  offset: float = 0.008,
  max_beta: float = 0.999,
  zero_terminal_snr: bool = False,
) -> Schedule:
  """alpha-bar = cos^2 of time, betas clipped (Nichol and Dhariwal, arXiv:2102.09672, Eq. 17)."""
  f = np.cos((np.arange(num_steps + 1) / num_steps + offset) / (1 + offset) * np.pi / 2) ** 2
  betas = np.minimum(1.0 - f[1:] / f[:-1], max_beta)
  return _discrete(np.cumprod(1.0 - betas), zero_terminal_snr)


def _continuous_cosine(*, log_snr_max: float = 20.0, log_snr_min: float = -20.0) -> Schedule:
  """alpha = cos, sigma = sin of an angle linear in t, cut to those log-SNRs (arXiv:2301.11093)."""
  low, high = (math.atan(math.exp(-x / 2)) for x in (log_snr_max, log_snr_min))
  return Schedule(lambda t: -2.0 * jnp.log(jnp.tan(low + jnp.asarray(t) * (high - low))), None)


def _continuous_linear() -> Schedule:
  """-log(exp(1e-4 + 10 t^2) - 1): the linear schedule in continuous time (arXiv:2107.00630)."""
  return Schedule(lambda t: -jnp.log(jnp.expm1(1e-4 + 10.0 * jnp.square(t))), None)


SCHEDULES = {
  "linear": _linear,
  "cosine": _cosine,
  "continuous_linear": _continuous_linear,
  "continuous_cosine": _continuous_cosine,
}


def make_schedule(name: str = "linear", *, where: str = "schedule", **kwargs: Any) -> Schedule:
  """One of `SCHEDULES`; `num_steps` is T of the discrete ones.

  Raises:
    UserError: an unknown name or key, a number out of range.
  """
  if name not in SCHEDULES:
    raise unknown(f"{where}.name", name, tuple(SCHEDULES))
  if kwargs.get("num_steps", 2) < 2:
    raise UserError(f"{where}.num_steps = {kwargs['num_steps']}; expected at least 2")
  low, high = kwargs.get("beta_start", 1e-4), kwargs.get("beta_end", 0.02)
  if not 0 < low <= high < 1:
    raise UserError(f"{where}: beta from {low} to {high}; expected 0 < beta_start <= beta_end < 1")
  return call(SCHEDULES[name], kwargs, where)


# ------------------------------------------------------------------------------- forward process


def alpha_sigma(log_snr: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
  """lambda -> (alpha, sigma): alpha^2 = sigmoid(lambda), sigma^2 = sigmoid(-lambda)."""
  return jnp.sqrt(jax.nn.sigmoid(log_snr)), jnp.sqrt(jax.nn.sigmoid(-log_snr))


def _spread(level: jax.Array, like: jax.Array) -> jax.Array:
  """[B] -> [B, 1, ...], so that it multiplies `like` [B, ...]; a scalar stays one."""
  return level.reshape(level.shape + (1,) * (like.ndim - 1)) if level.ndim else level


def _alpha_sigma_like(log_snr: jax.Array, like: jax.Array) -> tuple[jax.Array, jax.Array]:
  return alpha_sigma(_spread(jnp.asarray(log_snr, jnp.float32), like))


def diffuse(x: jax.Array, eps: jax.Array, log_snr: jax.Array) -> jax.Array:
  """q(z_t | x): alpha x + sigma eps (DDPM, Eq. 4)."""
  alpha, sigma = _alpha_sigma_like(log_snr, x)
  return alpha * x + sigma * eps


def posterior(
  z: jax.Array, x: jax.Array, log_snr: jax.Array, log_snr_next: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Mean [B, ...] and variance of q(z_s | z_t, x) for a level s of less noise (DDPM, Eq. 6 and 7).

  With c = 1 - exp(lambda_t - lambda_s): mean a z + b x, a = alpha_t / alpha_s sigma_s^2 /
  sigma_t^2, b = alpha_s c; variance sigma_s^2 c. s may be the clean image, t noise alone.
  """
  a, b, variance = _posterior(log_snr, log_snr_next, z)
  return a * z + b * x, variance


def _posterior(log_snr: jax.Array, log_snr_next: jax.Array, like: jax.Array):
  now, then = (_spread(jnp.asarray(v, jnp.float32), like) for v in (log_snr, log_snr_next))
  (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(now), alpha_sigma(then)
  c = -jnp.expm1(now - then)
  return (alpha_t / alpha_s) * jnp.square(sigma_s / sigma_t), alpha_s * c, jnp.square(sigma_s) * c


# ----------------------------------------------------------------------------------------- targets


def check_target(kind: str, schedule: Schedule, where: str) -> str:
  """`kind`, or a `UserError`: unknown, or one that the schedule cannot have."""
  if kind not in TARGETS:
    raise unknown(where, kind, TARGETS)
  if kind == "previous" and not schedule.num_steps:
    raise UserError(f"{where} = 'previous' needs a schedule of discrete steps")
  if kind == "eps" and schedule.num_steps:
    with jax.ensure_compile_time_eval():
      last = float(schedule.log_snr(schedule.num_steps - 1))
    if last == -math.inf:
      raise UserError(f"{where} = 'eps' has no image at zero terminal SNR; write 'v' or 'x0'")
  return kind


def target(
  kind: str,
  x: jax.Array,
  eps: jax.Array,
  log_snr: jax.Array,
  previous: jax.Array | None = None,
) -> jax.Array:
  """What a network is to predict from z_t: all of the shape of x.

  eps       the noise (DDPM, Eq. 14)
  x0        the image
  v         alpha eps - sigma x (Salimans and Ho, arXiv:2202.00512, Appendix D)
  previous  z_{t-1}, in its mean over q(z_{t-1} | z_t, x) (DDPM, Eq. 8); needs the level
            `previous` of that step
  """
  if kind == "eps":
    return eps
  if kind == "x0":
    return x
  alpha, sigma = _alpha_sigma_like(log_snr, x)
  if kind == "v":
    return alpha * eps - sigma * x
  return posterior(alpha * x + sigma * eps, x, log_snr, previous)[0]


def to_x0(
  kind: str,
  prediction: jax.Array,
  z: jax.Array,
  log_snr: jax.Array,
  previous: jax.Array | None = None,
) -> jax.Array:
  """The image that a prediction of `kind` at z_t stands for."""
  alpha, sigma = _alpha_sigma_like(log_snr, z)
  if kind == "eps":
    return (z - sigma * prediction) / alpha
  if kind == "x0":
    return prediction
  if kind == "v":
    return alpha * z - sigma * prediction
  a, b, _ = _posterior(log_snr, previous, z)
  return (prediction - a * z) / b


def to_eps(
  kind: str,
  prediction: jax.Array,
  z: jax.Array,
  log_snr: jax.Array,
  previous: jax.Array | None = None,
) -> jax.Array:
  """The noise that a prediction of `kind` at z_t stands for."""
  alpha, sigma = _alpha_sigma_like(log_snr, z)
  if kind == "eps":
    return prediction
  if kind == "v":
    return alpha * prediction + sigma * z
  return (z - alpha * to_x0(kind, prediction, z, log_snr, previous)) / sigma


# -------------------------------------------------------------------------------- loss and guidance


def loss_weight(
  name: str,
  kind: str,
  log_snr: Float[Array, "B"],
  *,
  gamma: float = 5.0,
  previous: Float[Array, "B"] | None = None,
) -> Float[Array, "B"]:
  """w(t), the factor of ||target - prediction||^2 for a target of `kind`.

  simple         1 in the target at hand (DDPM, Eq. 14)
  snr            SNR ||x - x^||^2, which is the simple loss of eps
  truncated_snr  max(SNR, 1) ||x - x^||^2 (arXiv:2202.00512, Sec. 4)
  min_snr        min(SNR, gamma) ||x - x^||^2 (Hang et al., arXiv:2303.09556, Eq. 7)
  sigma2         sigma^2 ||eps - eps^||^2 (DreamFusion's w(t), arXiv:2209.14988)
  """
  if name not in WEIGHTS:
    raise unknown("config.loss.weight", name, WEIGHTS)
  if name == "simple":
    return jnp.ones_like(log_snr)
  snr = jnp.exp(log_snr)
  of_x0 = {
    "snr": snr,
    "truncated_snr": jnp.maximum(snr, 1.0),
    "min_snr": jnp.minimum(snr, gamma),
    "sigma2": jax.nn.sigmoid(log_snr),
  }[name]
  if kind == "x0":
    return of_x0
  if kind == "eps":  # ||eps - eps^||^2 = SNR ||x - x^||^2
    return of_x0 / snr
  if kind == "v":  # ||v - v^||^2 = ||x - x^||^2 / sigma^2
    return of_x0 * jax.nn.sigmoid(-log_snr)
  return of_x0 / jnp.square(_posterior(log_snr, previous, log_snr)[1])


def weighted_error(
  prediction: Float[Array, "B ..."], wanted: Float[Array, "B ..."], weight: Float[Array, "B"]
) -> Float[Array, "B"]:
  """w ||wanted - prediction||^2 of each example, as a mean over its numbers."""
  error = jnp.square(wanted - prediction.astype(jnp.float32))
  return weight * jnp.mean(error, axis=tuple(range(1, error.ndim)))


def guide(cond: jax.Array, uncond: jax.Array, scale: float) -> jax.Array:
  """Classifier-free guidance: uncond + scale (cond - uncond) (Ho and Salimans, arXiv:2207.12598).

  0 ignores the condition, 1 follows it; the paper's Eq. 6 has w = scale - 1. The same for eps, x0
  and v, since they are affine in each other.
  """
  return uncond + scale * (cond - uncond)
