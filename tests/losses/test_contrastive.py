"""Every form of the losses equals a float64 transcription, in value and all gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_mesh

from big_vision_like.config import UserError
from big_vision_like.losses import contrastive

B, E = 24, 16
MESHES = {
  "none": None,
  "one": dict(replica=1, fsdp=1),
  "odd": dict(replica=1, fsdp=3),
  "eight": dict(replica=1, fsdp=8),
  "both": dict(replica=2, fsdp=2, tensor=2),
}


def inputs(scale=1.5, seed=0):
  rng = np.random.default_rng(seed)
  z = rng.normal(size=(2, B, E))
  z /= np.linalg.norm(z, axis=-1, keepdims=True)
  return z[0], z[1], scale, -2.0


def reference_sigmoid(x, y, scale, bias):
  """Value and gradients in float64, from the definition."""
  t = np.exp(scale)
  dots = x @ y.T
  z = 2 * np.eye(B) - 1
  logits = z * (t * dots + bias)
  value = np.logaddexp(0, -logits).sum() / B
  g = -z * np.exp(-np.logaddexp(0, logits)) / B  # d value / d (t x.y + b)
  return value, (t * g @ y, t * g.T @ x, t * (g * dots).sum(), g.sum())


def reference_softmax(x, y, scale):
  t = np.exp(scale)
  logits = t * x @ y.T

  def lse(a, axis):
    m = a.max(axis, keepdims=True)
    return np.log(np.exp(a - m).sum(axis, keepdims=True)) + m

  rows, columns = lse(logits, 1), lse(logits, 0)
  value = ((rows[:, 0] + columns[0]) / 2 - np.diag(logits)).mean()
  g = ((np.exp(logits - rows) + np.exp(logits - columns)) / 2 - np.eye(B)) / B
  return value, (t * g @ y, t * g.T @ x, (g * logits).sum())


def evaluate(loss, args, impl, mesh):
  args = [jnp.asarray(a, jnp.float32) for a in args]
  fn = jax.jit(jax.value_and_grad(lambda *a: loss(*a, impl=impl), argnums=range(len(args))))
  if MESHES[mesh] is None:
    return fn(*args)
  with jax.set_mesh(make_mesh(**MESHES[mesh])):
    return fn(*args)


def assert_close(found, expected):
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
    np.testing.assert_allclose(a, b, rtol=0, atol=3e-6 * max(1e-3, np.abs(b).max()))


CASES = [(i, m) for i in contrastive.IMPLS for m in MESHES]


@pytest.mark.parametrize("impl, mesh", CASES)
def test_sigmoid(impl, mesh):
  args = inputs()
  assert_close(evaluate(contrastive.sigmoid_loss, args, impl, mesh), reference_sigmoid(*args))


@pytest.mark.parametrize("impl, mesh", CASES)
def test_softmax(impl, mesh):
  args = inputs()[:3]
  assert_close(evaluate(contrastive.softmax_loss, args, impl, mesh), reference_softmax(*args))


@pytest.mark.parametrize("impl", contrastive.IMPLS)
def test_stable_at_large_logits(impl):
  args = inputs(scale=np.log(100.0))
  assert_close(evaluate(contrastive.sigmoid_loss, args, impl, "eight"), reference_sigmoid(*args))
  args = args[:3]
  assert_close(evaluate(contrastive.softmax_loss, args, impl, "eight"), reference_softmax(*args))


def test_unknown_impl():
  with pytest.raises(UserError, match="did you mean ring"):
    evaluate(contrastive.sigmoid_loss, inputs(), "rings", "none")
