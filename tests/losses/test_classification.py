"""Label losses against NumPy in float64, and hand-worked cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_like.losses import classification

LOGITS = np.random.default_rng(0).normal(0, 3, size=(5, 4)).astype(np.float32)
LABEL = np.array([0, 3, 1, 1, 2], np.int32)
SEVERAL = np.array([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0.3, 0.7, 0], [0, 0, 0, 1]])


def softmax_by_hand(logits, q):
  z = logits.astype(np.float64)
  return -(q * (z - np.log(np.exp(z).sum(1, keepdims=True)))).sum(1)


def sigmoid_by_hand(logits, q):
  p = 1 / (1 + np.exp(-logits.astype(np.float64)))
  return -(q * np.log(p) + (1 - q) * np.log(1 - p)).sum(1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("label", [LABEL, SEVERAL.astype(np.float32)], ids=["one", "several"])
@pytest.mark.parametrize(
  "fn, by_hand",
  [
    (classification.softmax_xent, softmax_by_hand),
    (classification.sigmoid_xent, sigmoid_by_hand),
  ],
  ids=["softmax", "sigmoid"],
)
def test_values_and_gradients(fn, by_hand, label, smoothing):
  q = np.eye(4)[label] if label.ndim == 1 else label.astype(np.float64)
  q = (1 - smoothing) * q + smoothing / 4
  found = fn(jnp.asarray(LOGITS), jnp.asarray(label), smoothing)
  np.testing.assert_allclose(found, by_hand(LOGITS, q), rtol=1e-5, atol=1e-5)
  grad = jax.grad(lambda z: fn(z, jnp.asarray(label), smoothing).sum())(jnp.asarray(LOGITS))
  for i in range(5):
    for k in range(4):
      step = np.zeros_like(LOGITS, np.float64)
      step[i, k] = 1e-4
      slope = (by_hand(LOGITS + step, q) - by_hand(LOGITS - step, q)).sum() / 2e-4
      np.testing.assert_allclose(grad[i, k], slope, atol=1e-4)


def test_large_logits_in_bfloat16_stay_finite():
  logits = jnp.array([[300.0, -300.0, 0.0]], jnp.bfloat16)
  for fn, expected in ((classification.softmax_xent, 600.0), (classification.sigmoid_xent, 600.7)):
    found = fn(logits, jnp.array([1]))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=0.1)


def test_shapes_are_checked():
  with pytest.raises(Exception, match="label"):
    classification.softmax_xent(jnp.asarray(LOGITS), jnp.zeros((5, 4, 1)))
