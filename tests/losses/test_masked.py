"""Against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from big_vision_like.losses import masked

RNG = np.random.default_rng(0)
PRED, TARGET = RNG.normal(size=(2, 3, 6, 12))
MASK = np.array([[1, 1, 0, 0, 1, 0], [0, 1, 1, 1, 0, 0], [1, 0, 0, 0, 1, 1]], np.float64)
F32 = [jnp.asarray(x, jnp.float32) for x in (PRED, TARGET, MASK)]


def test_value_and_gradient():
  """L = 1 / (B M) sum over hidden patches of |pred - target|^2 / P."""
  value, grad = jax.value_and_grad(masked.masked_mse)(*F32)
  total = sum(
    np.sum((PRED[b, i] - TARGET[b, i]) ** 2) / 12 for b in range(3) for i in range(6) if MASK[b, i]
  )
  np.testing.assert_allclose(value, total / 9, rtol=1e-6)
  np.testing.assert_allclose(
    grad, 2 * (PRED - TARGET) * MASK[..., None] / (9 * 12), rtol=1e-5, atol=1e-9
  )
  assert not np.asarray(grad)[0, 2].any()  # a visible patch


def test_each_example_alone():
  found = masked.masked_mse_per_example(*F32)
  for b in range(3):
    hidden = MASK[b] > 0
    np.testing.assert_allclose(
      found[b], np.mean((PRED[b, hidden] - TARGET[b, hidden]) ** 2), rtol=1e-6
    )


def test_normalize_patches():
  x = TARGET * 3 + 5
  out, mean, std = masked.normalize_patches(jnp.asarray(x, jnp.float32))
  want_std = np.sqrt(x.var(axis=-1, ddof=1, keepdims=True) + 1e-6)
  np.testing.assert_allclose(mean, x.mean(axis=-1, keepdims=True), rtol=1e-5)
  np.testing.assert_allclose(std, want_std, rtol=1e-5)
  np.testing.assert_allclose(out, (x - x.mean(axis=-1, keepdims=True)) / want_std, atol=1e-5)
  flat, _, std = masked.normalize_patches(jnp.full((1, 2, 4), 0.5))
  assert not np.asarray(flat).any() and np.allclose(std, 1e-3)


def test_masked_cross_entropy():
  """-log softmax at the label, mean over the places of the mask; no place gives 0."""
  logits = RNG.normal(size=(3, 6, 5))
  labels = RNG.integers(0, 5, (3, 6))
  args = (jnp.asarray(logits, jnp.float32), jnp.asarray(labels))
  log_p = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
  picked = -np.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]
  got = masked.masked_cross_entropy(*args, F32[2])
  np.testing.assert_allclose(got, picked[MASK > 0].mean(), rtol=1e-6)
  assert masked.masked_cross_entropy(*args, jnp.zeros((3, 6))) == 0
