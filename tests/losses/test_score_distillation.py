"""The gradient is the paper's Eq. 3, without the network's Jacobian; its mode is the data's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_like.generation import diffusion
from big_vision_like.losses import score_distillation

B, N, K = 4, 6, 3


def case():
  rng = np.random.default_rng(0)
  generator = rng.normal(size=(B, N, K))  # x_b = A_b theta
  theta, eps, w = rng.normal(size=K), rng.normal(size=(B, N)), rng.uniform(0.1, 1, B)
  log_snr = rng.normal(size=B)
  network = rng.normal(size=(N, N))  # eps_hat = tanh(z M)
  return generator, theta, eps, w, log_snr, network


def loss(theta, generator, eps, w, log_snr, network):
  x = jnp.einsum("bnk,k->bn", generator, theta)
  z = diffusion.diffuse(x, eps, log_snr)
  return score_distillation.sds(x, jnp.tanh(z @ network), eps, w)


def test_gradient_is_the_formula():
  generator, theta, eps, w, log_snr, network = case()
  value, grad = jax.value_and_grad(loss)(
    *(jnp.float32(v) for v in (theta, generator, eps, w, log_snr, network))
  )
  alpha = np.sqrt(1 / (1 + np.exp(-log_snr)))[:, None]
  sigma = np.sqrt(1 / (1 + np.exp(log_snr)))[:, None]
  x = generator @ theta
  g = w[:, None] * (np.tanh((alpha * x + sigma * eps) @ network) - eps)
  expected = sum(g[b] @ generator[b] for b in range(B)) / B
  np.testing.assert_allclose(grad, expected, rtol=2e-5)
  np.testing.assert_allclose(value, 0.5 * (g**2).sum() / B, rtol=2e-5)


def test_the_network_has_no_part_in_the_gradient():
  """The full gradient of the diffusion loss has the factor d eps_hat / d x, and differs."""
  args = [jnp.float32(v) for v in case()]
  generator, theta, eps, w, log_snr, network = args

  def full(theta):
    x = jnp.einsum("bnk,k->bn", generator, theta)
    z = diffusion.diffuse(x, eps, log_snr)
    return 0.5 * jnp.sum(w[:, None] * jnp.square(jnp.tanh(z @ network) - eps)) / B

  order = (theta, generator, eps, w, log_snr, network)
  of_theta = jax.grad(loss)(*order)
  assert np.linalg.norm(of_theta - jax.grad(full)(theta)) > 0.1 * np.linalg.norm(of_theta)
  for argument in (2, 3, 5):  # noise, weights, the network's parameters
    np.testing.assert_array_equal(jax.grad(loss, argument)(*order), 0)


def test_a_small_residual_is_not_lost_beside_large_images():
  x, g = jnp.full((1, 2), 1e4), jnp.float32([[3e-5, -2e-5]])
  grad = jax.grad(lambda x: score_distillation.sds(x, g, jnp.zeros((1, 2)), jnp.ones(1)))(x)
  np.testing.assert_array_equal(grad, g)


@pytest.mark.parametrize("spread", [0.1, 0.7])
def test_pixels_find_the_mode_of_a_gaussian(spread):
  """With the exact denoiser of N(mean, spread^2), pixels go to the mean, whatever the spread."""
  mean = jnp.float32([0.5, -0.3, 0.9])

  def step(x, rng):
    k1, k2 = jax.random.split(rng)
    log_snr = jax.random.uniform(k1, (64,), minval=-4.0, maxval=4.0)
    alpha, sigma = (v[:, None] for v in diffusion.alpha_sigma(log_snr))
    eps = jax.random.normal(k2, (64, 3))

    def loss(x):
      images = jnp.broadcast_to(x[None, :], (64, 3))
      z = alpha * images + sigma * eps
      eps_hat = sigma * (z - alpha * mean[None, :]) / (alpha**2 * spread**2 + sigma**2)
      return score_distillation.sds(images, eps_hat, eps, sigma[:, 0] ** 2)

    return x - 0.3 * jax.grad(loss)(x), None

  rngs = jax.random.split(jax.random.key(0), 400)
  x, _ = jax.jit(lambda: jax.lax.scan(step, jnp.full((3,), -2.0), rngs))()
  np.testing.assert_allclose(x, mean, atol=0.1)
