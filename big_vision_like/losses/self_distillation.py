"""Self-distillation without labels: DINO's loss over pairs of views, centering and sharpening.

Caron et al., arXiv:2104.14294, Sec. 3.1. Views come first: V of the student, of which the first G
are also the teacher's; K prototypes. Everything is float32, whatever the model computes in.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Scalar = Float[Array, ""]


def teacher_probs(
  logits: Float[Array, "G B K"], center: Float[Array, " K"], temperature: Scalar | float
) -> Float[Array, "G B K"]:
  """softmax((logits - center) / temperature), without a gradient.

  The center keeps one prototype from winning everywhere, the low temperature keeps the answer from
  becoming uniform; either alone collapses (Sec. 5.3). The paper's text adds c; its Algorithm 1
  subtracts, and so do we.
  """
  centered = logits.astype(jnp.float32) - center[None, None, :]
  return jax.lax.stop_gradient(jax.nn.softmax(centered / temperature))


def update_center(
  center: Float[Array, " K"], logits: Float[Array, "G B K"], momentum: float
) -> Float[Array, " K"]:
  """Eq. 4: m c + (1 - m) times the mean of the teacher's logits over the global batch."""
  mean = jnp.mean(logits.astype(jnp.float32), axis=(0, 1))
  return jax.lax.stop_gradient(momentum * center + (1 - momentum) * mean)


def cross_view_loss(
  student: Float[Array, "V B K"], teacher: Float[Array, "G B K"], temperature: float
) -> Scalar:
  """Eq. 3: mean over the examples and over all pairs g != v of H(P_t(g), P_s(v)).

  Args:
    student: logits of all views, the teacher's views first.
    teacher: `teacher_probs` of the global views.
    temperature: tau_s of the student.
  """
  log_probs = jax.nn.log_softmax(student.astype(jnp.float32) / temperature)
  pairs = -jnp.einsum("GBK,VBK->GV", teacher, log_probs) / student.shape[1]
  other = 1.0 - jnp.eye(*pairs.shape)
  return jnp.sum(pairs * other) / jnp.sum(other)


def entropy(probs: Float[Array, "G B K"]) -> Scalar:
  """Mean entropy of the distributions; log K where uniform, 0 where one prototype has all."""
  return -jnp.mean(jnp.sum(jax.scipy.special.xlogy(probs, probs), axis=-1))
