"""Schedules, forward process, targets and weights against float64 transcriptions of the papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_like.config import UserError
from big_vision_like.generation import diffusion

RNG = np.random.default_rng(0)
X, EPS = RNG.normal(size=(2, 4, 3, 3, 2))
BETAS = np.linspace(1e-4, 0.02, 1000)
ALPHA_BAR = np.cumprod(1 - BETAS)
T = np.array([0, 1, 500, 999])


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def alpha_bar(schedule, t):
  return np.asarray(diffusion.alpha_sigma(schedule.log_snr(jnp.asarray(t)))[0], np.float64) ** 2


def test_linear_schedule():
  schedule = diffusion.make_schedule("linear")
  assert schedule.num_steps == 1000
  t = np.arange(1000)
  np.testing.assert_allclose(alpha_bar(schedule, t), ALPHA_BAR, rtol=2e-6)
  sigma = diffusion.alpha_sigma(schedule.log_snr(jnp.asarray(t)))[1]
  np.testing.assert_allclose(np.asarray(sigma) ** 2, 1 - ALPHA_BAR, rtol=2e-6)
  assert float(schedule.timestep(7)) == 7.0


def test_cosine_schedule():
  """Nichol and Dhariwal, Eq. 17, with betas of at most 0.999."""
  f = lambda t: np.cos((t / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
  betas = np.array([min(1 - f(t) / f(t - 1), 0.999) for t in range(1, 1001)])
  schedule = diffusion.make_schedule("cosine")
  np.testing.assert_allclose(alpha_bar(schedule, np.arange(1000)), np.cumprod(1 - betas), rtol=3e-6)


def test_zero_terminal_snr():
  """Ends in noise alone, starts as before, and keeps the ratio of the others."""
  schedule = diffusion.make_schedule("linear", zero_terminal_snr=True)
  found = alpha_bar(schedule, np.arange(1000))
  assert found[-1] == 0 and float(schedule.log_snr(999)) == -np.inf
  root, plain = np.sqrt(found), np.sqrt(ALPHA_BAR)
  np.testing.assert_allclose(found[0], ALPHA_BAR[0], rtol=1e-6)
  np.testing.assert_allclose(
    root, (plain - plain[-1]) * plain[0] / (plain[0] - plain[-1]), rtol=1e-5, atol=1e-7
  )


def test_continuous_schedules():
  t = np.linspace(0, 1, 11).astype(np.float32)
  cosine = np.asarray(diffusion.make_schedule("continuous_cosine").log_snr(jnp.asarray(t)))
  assert cosine[0] == pytest.approx(20, rel=1e-4) and cosine[-1] == pytest.approx(-20, rel=1e-2)
  assert (np.diff(cosine) < 0).all() and abs(cosine[5]) < 1e-5
  # Far from the ends alpha is cos(pi t / 2).
  alpha = np.asarray(diffusion.alpha_sigma(jnp.asarray(cosine))[0])
  np.testing.assert_allclose(alpha[1:-1], np.cos(np.pi * t[1:-1] / 2), atol=1e-4)
  # The continuous limit of DDPM's betas: -log alpha-bar = int beta = 1e-4 T t + (0.0199 T / 2) t^2.
  linear = diffusion.make_schedule("continuous_linear").log_snr(jnp.asarray(t[1:]))
  discrete = diffusion.make_schedule("linear").log_snr(jnp.asarray(np.round(t[1:] * 1000 - 1), int))
  np.testing.assert_allclose(linear, discrete, atol=0.12)


def test_the_forward_process_composes():
  """A thousand steps of q(z_t | z_{t-1}) in closed form equal diffuse: mean and variance."""
  mean, var = 1.0, 0.0
  for beta in BETAS:
    mean, var = np.sqrt(1 - beta) * mean, (1 - beta) * var + beta
  level = diffusion.make_schedule("linear").log_snr(jnp.full(4, 999))
  ones, zeros = jnp.ones(X.shape), jnp.zeros(X.shape)
  np.testing.assert_allclose(diffusion.diffuse(ones, zeros, level), mean, rtol=1e-5)
  np.testing.assert_allclose(diffusion.diffuse(zeros, ones, level), np.sqrt(var), rtol=1e-6)


def test_posterior():
  """DDPM Eq. 7 in its own letters, and the clean image after t = 0."""
  schedule = diffusion.make_schedule("linear")
  t = np.array([1, 2, 500, 999])
  before, now, beta = (v[:, None, None, None] for v in (ALPHA_BAR[t - 1], ALPHA_BAR[t], BETAS[t]))
  want = np.sqrt(before) * beta / (1 - now) * X + np.sqrt(1 - beta) * (1 - before) / (1 - now) * EPS
  levels = schedule.log_snr(jnp.asarray(t)), schedule.previous(jnp.asarray(t))
  mean, var = diffusion.posterior(jnp.asarray(EPS), jnp.asarray(X), *levels)
  np.testing.assert_allclose(mean, want, rtol=1e-3, atol=2e-4)
  np.testing.assert_allclose(var, (1 - before) / (1 - now) * beta, rtol=2e-3)
  first = jnp.zeros(4, int)
  assert np.isposinf(schedule.previous(first)).all()
  mean, var = diffusion.posterior(
    jnp.asarray(EPS), jnp.asarray(X), schedule.log_snr(first), schedule.previous(first)
  )
  np.testing.assert_allclose(mean, X, rtol=1e-6)
  assert not np.asarray(var).any()


@pytest.mark.parametrize("kind", diffusion.TARGETS)
def test_conversions_there_and_back(kind):
  """target -> image and noise, at every level, float64 formulas in between."""
  schedule = diffusion.make_schedule("linear")
  t = jnp.asarray(T)
  level, previous = schedule.log_snr(t), schedule.previous(t)
  x, eps = jnp.asarray(X, jnp.float32), jnp.asarray(EPS, jnp.float32)
  z = diffusion.diffuse(x, eps, level)
  wanted = diffusion.target(kind, x, eps, level, previous)
  a = np.sqrt(ALPHA_BAR[T])[:, None, None, None]
  s = np.sqrt(1 - ALPHA_BAR[T])[:, None, None, None]
  if kind != "previous":
    formula = {"eps": EPS, "x0": X, "v": a * EPS - s * X}[kind]
    np.testing.assert_allclose(wanted, formula, atol=1e-5)
  # eps at noise alone (alpha = 0.006), x0 at the clean end and a step of 1e-4 lose digits.
  tolerance = {"eps": 1e-4, "x0": 1e-4, "v": 1e-5, "previous": 5e-2}[kind]
  args = (kind, wanted, z, level, previous)
  np.testing.assert_allclose(diffusion.to_x0(*args), X, atol=tolerance)
  np.testing.assert_allclose(diffusion.to_eps(*args), EPS, atol=tolerance)


def test_noise_alone_has_a_finite_image_under_v_and_x0():
  level = jnp.float32(-jnp.inf)
  x, eps = jnp.asarray(X), jnp.asarray(EPS)
  z = diffusion.diffuse(x, eps, level)
  np.testing.assert_array_equal(z, eps)
  for kind in ("v", "x0"):
    wanted = diffusion.target(kind, x, eps, level)
    np.testing.assert_array_equal(diffusion.to_x0(kind, wanted, z, level), x)
    np.testing.assert_array_equal(diffusion.to_eps(kind, wanted, z, level), eps)
  schedule = diffusion.make_schedule("linear", zero_terminal_snr=True)
  assert diffusion.check_target("v", schedule, "here") == "v"
  with pytest.raises(UserError, match="'eps' has no image at zero terminal SNR; write 'v'"):
    diffusion.check_target("eps", schedule, "here")


@pytest.mark.parametrize("kind", diffusion.TARGETS)
@pytest.mark.parametrize("name", diffusion.WEIGHTS[1:])
def test_a_weight_means_the_same_for_every_target(kind, name):
  """w(t) ||target - prediction||^2 depends on the estimate of the image alone."""
  schedule = diffusion.make_schedule("cosine")
  t = jnp.asarray([10, 300, 600, 900])
  level, previous = schedule.log_snr(t), schedule.previous(t)
  x, eps = jnp.asarray(X, jnp.float32), jnp.asarray(EPS, jnp.float32)
  guess = jnp.asarray(X + RNG.normal(size=X.shape), jnp.float32)
  z = diffusion.diffuse(x, eps, level)
  noise = diffusion.to_eps("x0", guess, z, level)
  weight = diffusion.loss_weight(name, kind, level, previous=previous)
  found = diffusion.weighted_error(
    diffusion.target(kind, guess, noise, level, previous),
    diffusion.target(kind, x, eps, level, previous),
    weight,
  )
  snr = np.exp(np.asarray(level, np.float64))
  of_x0 = {
    "snr": snr,
    "truncated_snr": np.maximum(snr, 1),
    "min_snr": np.minimum(snr, 5),
    "sigma2": snr * sigmoid(-np.log(snr)),
  }[name]
  error = np.mean((np.asarray(guess, np.float64) - X) ** 2, axis=(1, 2, 3))
  np.testing.assert_allclose(found, of_x0 * error, rtol=5e-3)


def test_simple_weight_is_one():
  assert (np.asarray(diffusion.loss_weight("simple", "v", jnp.arange(3.0))) == 1).all()


def test_guidance_is_the_same_for_every_target():
  """(1 + w) cond - w uncond (CFG, Eq. 6), and scales 0 and 1 by hand."""
  cond, uncond = jnp.asarray(X), jnp.asarray(EPS)
  np.testing.assert_allclose(diffusion.guide(cond, uncond, 3.0), 3 * X - 2 * EPS, rtol=1e-5)
  np.testing.assert_array_equal(diffusion.guide(cond, uncond, 0.0), uncond)
  np.testing.assert_allclose(diffusion.guide(cond, uncond, 1.0), cond, atol=1e-6)
  level, z = jnp.float32(0.3), jnp.ones(X.shape)
  image = lambda eps: diffusion.to_x0("eps", eps, z, level)
  np.testing.assert_allclose(
    image(diffusion.guide(cond, uncond, 3.0)),
    diffusion.guide(image(cond), image(uncond), 3.0),
    atol=1e-4,
  )


def test_times():
  schedule = diffusion.make_schedule("linear")
  assert list(schedule.grid(4)) == [999, 749, 499, 249]
  assert list(schedule.grid(1000)) == list(range(999, -1, -1))
  continuous = diffusion.make_schedule("continuous_cosine")
  np.testing.assert_allclose(continuous.grid(4), [1, 0.75, 0.5, 0.25])
  assert float(continuous.timestep(jnp.float32(0.5))) == 500
  t = np.asarray(schedule.draw(jax.random.key(0), 4000))
  assert t.min() < 5 and t.max() > 994 and abs(t.mean() - 499.5) < 20
  assert t.dtype == np.int32 and len(np.unique(t)) > 900


@pytest.mark.parametrize(
  "call, message",
  [
    (lambda: diffusion.make_schedule("lineal"), "'lineal' is unknown; did you mean linear"),
    (lambda: diffusion.make_schedule("cosine", beta=1), "key 'beta' is unknown"),
    (lambda: diffusion.make_schedule(num_steps=1), "num_steps = 1; expected at least 2"),
    (lambda: diffusion.make_schedule(beta_end=2.0), "beta from 0.0001 to 2.0; expected 0 <"),
    (lambda: diffusion.make_schedule().grid(2000), "steps = 2000; expected .* from 1 to 1000"),
    (lambda: diffusion.make_schedule("continuous_cosine").grid(0), "steps = 0; .* from 1 on"),
    (lambda: diffusion.check_target("epsilon", diffusion.make_schedule(), "x"), "x 'epsilon' is"),
    (
      lambda: diffusion.check_target("previous", diffusion.make_schedule("continuous_linear"), "x"),
      "needs a schedule of discrete steps",
    ),
    (lambda: diffusion.loss_weight("min", "x0", jnp.ones(2)), "weight 'min' is unknown; did you"),
  ],
)
def test_mistakes(call, message):
  with pytest.raises(UserError, match=message):
    call()
