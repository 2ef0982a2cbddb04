"""Losses of image labels: one class of K, or any number of them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Logits = Float[Array, "B K"]
Labels = Int[Array, " B"] | Float[Array, "B K"]
PerExample = Float[Array, " B"]


def targets(label: Labels, classes: int) -> Float[Array, "B {classes}"]:
  """Class numbers as rows of 0 and 1; what has rows already (after mixup) stays."""
  return jax.nn.one_hot(label, classes) if label.ndim == 1 else label.astype(jnp.float32)


def softmax_xent(logits: Logits, label: Labels, label_smoothing: float = 0.0) -> PerExample:
  """-sum_k q_k log softmax(logits)_k, q = (1 - s) label + s / K (arXiv:1512.00567, Sec. 7).

  Args:
    logits: any float type; computed in float32.
    label: class numbers, or probabilities.
    label_smoothing: s.
  """
  logits = logits.astype(jnp.float32)
  q = (1 - label_smoothing) * targets(label, logits.shape[1]) + label_smoothing / logits.shape[1]
  return -jnp.sum(q * jax.nn.log_softmax(logits), axis=1)


def sigmoid_xent(logits: Logits, label: Labels, label_smoothing: float = 0.0) -> PerExample:
  """-sum_k q_k log sigmoid(logits_k) + (1 - q_k) log sigmoid(-logits_k), q as above.

  Each class is a question of its own: images of JFT and ImageNet-21k carry several labels. The sum
  over classes starts at about 1 where the head's bias starts at -log K (arXiv:2006.07159, Sec. 3).
  """
  logits = logits.astype(jnp.float32)
  q = (1 - label_smoothing) * targets(label, logits.shape[1]) + label_smoothing / logits.shape[1]
  # softplus(-x) = -log sigmoid(x), and softplus(x) = softplus(-x) + x.
  return jnp.sum(jax.nn.softplus(logits) - q * logits, axis=1)
