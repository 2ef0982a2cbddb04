"""Both players' losses against the paper's logarithms in float64, and where those overflow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_like.losses import adversarial

RNG = np.random.default_rng(0)
REAL, FAKE = RNG.normal(size=(2, 9)) * 3


def sigmoid(x):
  return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def f32(*xs):
  return [jnp.asarray(x, jnp.float32) for x in xs]


def test_values_and_gradients_against_numpy():
  """d/dlogit of -log D is D - 1, of -log(1 - D) is D, each over the batch."""
  value, grads = jax.value_and_grad(adversarial.discriminator_loss, (0, 1))(*f32(REAL, FAKE))
  expected = -np.mean(np.log(sigmoid(REAL))) - np.mean(np.log(1 - sigmoid(FAKE)))
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  np.testing.assert_allclose(grads[0], (sigmoid(REAL) - 1) / 9, rtol=1e-5)
  np.testing.assert_allclose(grads[1], sigmoid(FAKE) / 9, rtol=1e-5)

  value, grad = jax.value_and_grad(adversarial.generator_loss)(*f32(FAKE))
  np.testing.assert_allclose(value, -np.mean(np.log(sigmoid(FAKE))), rtol=1e-6)
  np.testing.assert_allclose(grad, (sigmoid(FAKE) - 1) / 9, rtol=1e-5)


def test_logits_of_1000():
  """The logarithms of the equation are infinite there; the losses are exact and still pull."""
  sure = jnp.full((4,), 1000.0)
  assert adversarial.discriminator_loss(sure, -sure) == 0
  assert adversarial.discriminator_loss(-sure, sure) == 2000
  value, grad = jax.value_and_grad(adversarial.generator_loss)(-sure)
  assert value == 1000 and np.all(grad == -0.25)


def test_an_undecided_discriminator():
  """At the equilibrium of the game D = 1/2 everywhere: 2 log 2 (arXiv:1406.2661, Theorem 1)."""
  zeros = jnp.zeros((3,))
  np.testing.assert_allclose(adversarial.discriminator_loss(zeros, zeros), np.log(4), rtol=1e-6)


@pytest.mark.parametrize(
  "real, fake, expected",
  [([1, 2], [-1, -2], 1.0), ([-1, 1], [-1, 1], 0.5), ([-1, -1], [1, 1], 0.0), ([0], [0], 0.0)],
)
def test_accuracy(real, fake, expected):
  assert adversarial.discriminator_accuracy(*f32(real, fake)) == expected
