"""Samplers on a Gaussian, whose best denoiser is known, and against the papers' own formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_like.config import UserError
from big_vision_like.generation import diffusion, samplers

MEAN, STD = 0.7, 0.4  # of the data
SCHEDULES = {
  name: diffusion.make_schedule(name) for name in ("linear", "cosine", "continuous_cosine")
}
LINEAR = SCHEDULES["linear"]
KEY = jax.random.key(0)


def gaussian(schedule):
  """E[x | z] for x of N(MEAN, STD^2)."""

  def denoise(z, t):
    alpha, sigma = (v[:, None] for v in diffusion.alpha_sigma(schedule.log_snr(t)))
    gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
    return MEAN + gain * (z - alpha * MEAN)

  return denoise


def sample(name, schedule, steps, shape=(4000, 4), **options):
  run = lambda rng: samplers.find(name)(gaussian(schedule), rng, shape, schedule, steps, **options)
  return np.asarray(jax.jit(run)(KEY), np.float64)


def start(shape=(4000, 4)):
  return np.asarray(jax.random.normal(jax.random.split(KEY)[0], shape), np.float64)


def exact_flow(schedule):
  """Where the probability flow ODE leads from the noise: standardised values stay."""
  alpha, sigma = diffusion.alpha_sigma(schedule.log_snr(jnp.asarray(schedule.grid(1)[0])))
  alpha, sigma = float(alpha), float(sigma)
  return MEAN + STD * (start() - alpha * MEAN) / np.sqrt(alpha**2 * STD**2 + sigma**2)


@pytest.mark.parametrize(
  "schedule, name, options",
  [
    ("linear", "ancestral", {}),
    ("linear", "ancestral", {"variance": "large"}),
    ("linear", "ddim", {}),
    ("linear", "ddim", {"eta": 1.0}),
    ("linear", "dpmpp_2m", {}),
    ("linear", "heun", {}),
    ("cosine", "ancestral", {}),
    ("cosine", "dpmpp_2m", {}),
    ("continuous_cosine", "ancestral", {}),
    ("continuous_cosine", "heun", {}),
  ],
)
def test_mean_and_variance_of_the_data_are_recovered(name, options, schedule):
  steps = 400 if options or name == "ancestral" else 100
  x = sample(name, SCHEDULES[schedule], steps, **options)
  assert x.mean() == pytest.approx(MEAN, abs=0.01)
  assert x.std() == pytest.approx(STD, abs=0.012)


@pytest.mark.parametrize(
  "name, at_most, half", [("ddim", 0.14, 0.6), ("dpmpp_2m", 0.02, 0.3), ("heun", 0.02, 0.3)]
)
def test_deterministic_samplers_follow_the_flow(name, at_most, half):
  """Half the step is half the error of DDIM, and about a quarter of the second order methods'."""
  error = [np.abs(sample(name, LINEAR, n) - exact_flow(LINEAR)).max() for n in (20, 40)]
  assert error[1] < at_most and error[1] < half * error[0]


def nonlinear(z, t):
  """A denoiser with nothing Gaussian about it."""
  return np.tanh(z) * (1 - t[:, None] / 2000) + 0.1


BAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))


def levels(steps):
  times = np.round(1000 * (1 - np.arange(steps) / steps)).astype(int) - 1
  return times, BAR[times], np.append(BAR[times[1:]], 1.0)


def run(name, steps, **options):
  denoise = lambda z, t: jnp.tanh(z) * (1 - t[:, None] / 2000) + 0.1
  fn = lambda rng: samplers.find(name)(denoise, rng, (8, 3), LINEAR, steps, **options)
  return jax.jit(fn)(KEY)


def noise(i):
  later = jax.random.split(KEY)[1]
  return np.asarray(jax.random.normal(jax.random.fold_in(later, i), (8, 3)), np.float64)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_ancestral_is_algorithm_2(variance):
  """All 1000 steps in DDPM's own letters: beta, alpha-bar and eps; Sec. 3.2 has both variances."""
  beta, z = np.linspace(1e-4, 0.02, 1000), start((8, 3))
  bar = BAR
  for i, t in enumerate(range(999, -1, -1)):
    x = nonlinear(z, np.full(8, t))
    eps = (z - np.sqrt(bar[t]) * x) / np.sqrt(1 - bar[t])
    z = (z - beta[t] / np.sqrt(1 - bar[t]) * eps) / np.sqrt(1 - beta[t])
    if t > 0:
      small = (1 - bar[t - 1]) / (1 - bar[t]) * beta[t]
      z = z + np.sqrt(small if variance == "small" else beta[t]) * noise(i)
  np.testing.assert_allclose(run("ancestral", 1000, variance=variance), z, atol=5e-4)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_is_equation_12(eta):
  z = start((8, 3))
  for i, (t, bar, after) in enumerate(zip(*levels(25))):
    x = nonlinear(z, np.full(8, t))
    eps = (z - np.sqrt(bar) * x) / np.sqrt(1 - bar)
    sigma = eta * np.sqrt((1 - after) / (1 - bar)) * np.sqrt(1 - bar / after)  # Eq. 16
    z = np.sqrt(after) * x + np.sqrt(1 - after - sigma**2) * eps + sigma * noise(i)
  np.testing.assert_allclose(run("ddim", 25, eta=eta), z, atol=2e-4)


def test_ddim_with_eta_one_is_ancestral():
  """Of one formula in two forms, with the posterior's variance and the same noise."""
  np.testing.assert_allclose(run("ddim", 50, eta=1.0), run("ancestral", 50), atol=1e-4)


def test_dpmpp_2m_is_algorithm_2():
  z, before, last = start((8, 3)), None, None
  for t, bar, after in zip(*levels(12)):
    x = nonlinear(z, np.full(8, t))
    if after == 1.0:  # infinitely far in lambda: e^-h = 0, first order
      z = x
      break
    lam = lambda b: np.log(np.sqrt(b) / np.sqrt(1 - b))
    h = lam(after) - lam(bar)
    d = x if before is None else (1 + h / (2 * last)) * x - h / (2 * last) * before
    z = np.sqrt((1 - after) / (1 - bar)) * z - np.sqrt(after) * (np.exp(-h) - 1) * d
    before, last = x, h
  np.testing.assert_allclose(run("dpmpp_2m", 12), z, atol=2e-4)


def test_heun_is_algorithm_1():
  """In the paper's variables y = z / alpha and s = sigma / alpha."""
  s = lambda bar: np.sqrt((1 - bar) / bar)
  ramp = (80 ** (1 / 7) + np.arange(12) / 11 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
  times = np.array([np.argmin(np.abs(np.log(s(BAR)) - np.log(r))) for r in ramp])
  bars, nexts = BAR[times], np.append(BAR[times[1:]], 1.0)
  d = lambda y, bar, t: (y - nonlinear(np.sqrt(bar) * y, np.full(8, t))) / s(bar)
  y = start((8, 3)) / np.sqrt(bars[0])
  for t, after_t, bar, after in zip(times, [*times[1:], None], bars, nexts):
    slope = d(y, bar, t)
    euler = y + (s(after) - s(bar)) * slope
    if after < 1:
      slope = (slope + d(euler, after, after_t)) / 2
    y = y + (s(after) - s(bar)) * slope
  np.testing.assert_allclose(run("heun", 12), y, atol=5e-3)


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_zero_terminal_snr(name):
  """Finite from noise alone on, and near the same distribution."""
  schedule = diffusion.make_schedule("linear", zero_terminal_snr=True)
  x = sample(name, schedule, 200)
  assert np.isfinite(x).all()
  assert x.mean() == pytest.approx(MEAN, abs=0.02) and x.std() == pytest.approx(STD, abs=0.03)


@pytest.mark.parametrize("name", ["ancestral", "ddim", "dpmpp_2m"])  # EDM starts at its own level
def test_one_step_is_the_first_estimate(name):
  denoise = gaussian(LINEAR)
  z = jnp.asarray(start(), jnp.float32)
  want = denoise(z, jnp.full(len(z), 999))
  np.testing.assert_allclose(sample(name, LINEAR, 1), want, atol=1e-6)


def test_mistakes():
  with pytest.raises(UserError, match="sampler 'dim' is unknown; did you mean ddim"):
    samplers.find("dim")
  with pytest.raises(UserError, match="variance 'big' is unknown; known: large, small"):
    samplers.ancestral(nonlinear, KEY, (1, 1), LINEAR, 2, variance="big")
