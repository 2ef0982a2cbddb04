"""What a student is told by a teacher: its probabilities, or where it puts an image."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def kl(
  teacher: Float[Array, "B K"], student: Float[Array, "B K"], temperature: float = 1.0
) -> Float[Array, ""]:
  """T^2 mean_B KL(softmax(teacher / T) || softmax(student / T)); Hinton et al. 2015, Sec. 2.

  T^2 keeps the size of the gradient as T grows. Logits of any float type, computed in float32.
  """
  log_p, log_q = (
    jax.nn.log_softmax(z.astype(jnp.float32) / temperature, axis=-1) for z in (teacher, student)
  )
  return temperature**2 * jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1))


def cosine_distance(x: Float[Array, "B E"], y: Float[Array, "B E"]) -> Float[Array, ""]:
  """mean_B 1 - cos(x, y), from 0 to 2; vectors need not have length 1."""
  x, y = (z.astype(jnp.float32) for z in (x, y))
  length = lambda z: jnp.sqrt(jnp.sum(z * z, axis=-1) + 1e-12)
  return jnp.mean(1.0 - jnp.sum(x * y, axis=-1) / (length(x) * length(y)))
