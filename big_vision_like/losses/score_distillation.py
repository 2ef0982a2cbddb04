"""Score distillation sampling (DreamFusion, Poole et al., arXiv:2209.14988, Eq. 3)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def sds(
  x: Float[Array, "B ..."],
  eps_hat: Float[Array, "B ..."],
  eps: Float[Array, "B ..."],
  weight: Float[Array, "B"],
) -> Float[Array, ""]:
  """A scalar whose gradient is  E_{t, eps}[ w(t) (eps_hat - eps) dx / dtheta ]  (Eq. 3).

  With g = w(t) (eps_hat - eps) cut off from differentiation, the derivative of sum g x / B in x is
  g / B: the Jacobian of the network that made `eps_hat` from x is left out, for whoever computes
  `eps_hat` inside the same function. SDS has no objective whose value it could return; the value
  here is half the mean of ||g||^2, how far the images are from where the distillation rests.

  Args:
    x: the images g(theta), with gradient.
    eps_hat: the noise that the frozen model sees in alpha x + sigma eps.
    eps: the noise that was put there.
    weight: w(t) of each example.
  """
  spread = weight.reshape(weight.shape + (1,) * (x.ndim - 1))
  g = jax.lax.stop_gradient(spread * (eps_hat - eps))
  zero = x - jax.lax.stop_gradient(x)  # in value; its derivative is the identity
  return jnp.sum(0.5 * jnp.square(g) + g * zero) / x.shape[0]
