"""The two players' losses of a generative adversarial network (Goodfellow et al., arXiv:1406.2661).

With D = sigmoid(logit), -log D = softplus(-logit) and -log(1 - D) = softplus(logit): written so,
neither overflows nor loses its gradient, whatever the logit.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Logits = Float[Array, "B"]
Scalar = Float[Array, ""]


def discriminator_loss(real: Logits, fake: Logits) -> Scalar:
  """-E log D(real) - E log(1 - D(fake)), Eq. 1 of the paper as a minimisation.

  Args:
    real, fake: logits of the discriminator on real and on generated examples.
  """
  return jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(fake))


def generator_loss(fake: Logits) -> Scalar:
  """-E log D(fake): the non-saturating form (Sec. 3), whose gradient lives while D wins.

  Args:
    fake: logits of a discriminator that is held fixed (its parameters behind `stop_gradient`).
  """
  return jnp.mean(jax.nn.softplus(-fake))


def discriminator_accuracy(real: Logits, fake: Logits) -> Scalar:
  """How often D is right: mean over real (logit > 0) and fake (logit < 0); 0.5 where G has won."""
  right = jnp.mean(real > 0, dtype=jnp.float32) + jnp.mean(fake < 0, dtype=jnp.float32)
  return right / 2
