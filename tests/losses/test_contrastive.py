"""All forms of both losses: against NumPy in float64, against each other, on several meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_like.config import UserError
from big_vision_like.losses import contrastive
from tests.conftest import make_mesh

MESHES = [
  dict(fsdp=1),
  dict(fsdp=3),
  dict(replica=1, fsdp=8, tensor=1, sequence=1),
  dict(replica=2, fsdp=2, tensor=2, sequence=1),
]


def embeddings(batch, dtype=np.float32, seed=0):
  """Pairs that agree a little, of length 1."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(batch, 16))
  y = x + rng.normal(size=(batch, 16))
  unit = lambda z: (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(dtype)
  return unit(x), unit(y)


def softplus(x):
  return np.logaddexp(0, x)


def sigmoid_reference(x, y, scale, bias):
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  total = 0.0
  for i in range(len(x)):
    for j in range(len(y)):
      z = 1 if i == j else -1
      total += softplus(-z * (np.exp(float(scale)) * x[i] @ y[j] + float(bias)))
  return total / len(x)


def softmax_reference(x, y, scale):
  logits = np.exp(float(scale)) * np.asarray(x, np.float64) @ np.asarray(y, np.float64).T
  lse = lambda a: np.logaddexp.reduce(a, axis=1)
  both = (lse(logits) - np.diag(logits)) / 2 + (lse(logits.T) - np.diag(logits)) / 2
  return both.mean()


LOSSES = {
  "sigmoid": (contrastive.sigmoid_loss, sigmoid_reference, (-10.0,)),
  "softmax": (contrastive.softmax_loss, softmax_reference, ()),
}


def value_and_grad(name, impl, args):
  fn = lambda *a: LOSSES[name][0](*a, impl=impl)
  return jax.jit(jax.value_and_grad(fn, tuple(range(len(args)))))(*args)


LOG_10 = np.log(10.0)


def arguments(name, batch, log_scale=LOG_10, dtype=np.float32):
  x, y = embeddings(batch)
  rest = [jnp.float32(log_scale), *map(jnp.float32, LOSSES[name][2])]
  return [jnp.asarray(x, dtype), jnp.asarray(y, dtype), *rest]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("log_scale", [LOG_10, np.log(100.0)])
def test_value_against_numpy(name, log_scale):
  args = arguments(name, 24, log_scale)
  np.testing.assert_allclose(LOSSES[name][0](*args), LOSSES[name][1](*args), rtol=3e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_against_numpy(name):
  args = arguments(name, 6)
  _, grads = value_and_grad(name, "dense", args)
  host = [np.asarray(a, np.float64) for a in args]
  for k, grad in enumerate(grads):
    for at in list(np.ndindex(host[k].shape))[:20]:
      shifted = []
      for sign in (1, -1):
        moved = [a.copy() for a in host]
        moved[k][at] += sign * 1e-5
        shifted.append(LOSSES[name][1](*moved))
      expected = (shifted[0] - shifted[1]) / 2e-5
      np.testing.assert_allclose(np.asarray(grad)[at], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("impl", ["all_gather", "ring"])
@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_equal_to_dense(name, impl, shape):
  args = arguments(name, 24)
  value, grads = value_and_grad(name, "dense", args)
  with jax.set_mesh(make_mesh(**shape)):
    other, other_grads = value_and_grad(name, impl, args)
  np.testing.assert_allclose(other, value, rtol=3e-6)
  np.testing.assert_allclose(other, LOSSES[name][1](*args), rtol=3e-6)
  for a, b in zip(other_grads, grads):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * float(jnp.max(jnp.abs(b))))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("impl", contrastive.IMPLS)
def test_bfloat16_is_accumulated_in_float32(name, impl):
  args = arguments(name, 24, dtype=jnp.bfloat16)
  with jax.set_mesh(make_mesh(fsdp=8)):
    value, grads = value_and_grad(name, impl, args)
  assert value.dtype == jnp.float32 and grads[0].dtype == jnp.bfloat16
  np.testing.assert_allclose(value, LOSSES[name][1](*args), rtol=3e-6)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("impl", contrastive.IMPLS)
@pytest.mark.parametrize("sign", [1, -1])
def test_logits_of_100(name, impl, sign):
  """All pairs right, or all wrong, at a temperature of 100: finite, and still precise."""
  x = np.eye(16, dtype=np.float32)
  args = [jnp.asarray(x), jnp.asarray(sign * x), jnp.log(jnp.float32(100.0))]
  args += [jnp.float32(-10.0)] if name == "sigmoid" else []
  with jax.set_mesh(make_mesh(fsdp=8)):
    value, grads = value_and_grad(name, impl, args)
  assert all(np.isfinite(g).all() for g in grads)
  np.testing.assert_allclose(value, LOSSES[name][1](*args), rtol=3e-6, atol=1e-30)


@pytest.mark.parametrize("name", LOSSES)
def test_without_a_mesh_all_are_dense(name):
  args = arguments(name, 5)
  values = [float(LOSSES[name][0](*args, impl=impl)) for impl in contrastive.IMPLS]
  assert values[0] == values[1] == values[2]


def test_the_batch_may_be_on_one_axis():
  args = arguments("sigmoid", 8)
  with jax.set_mesh(make_mesh(replica=2, fsdp=2)):
    value = jax.jit(lambda *a: contrastive.sigmoid_loss(*a, impl="ring", axis="fsdp"))(*args)
  np.testing.assert_allclose(value, sigmoid_reference(*args), rtol=3e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_unknown_impl(name):
  with pytest.raises(UserError, match="did you mean ring"):
    LOSSES[name][0](*arguments(name, 4), impl="rings")
