"""All forms of both losses: against NumPy in float64, against each other, on several meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from big_vision_like import flops
from big_vision_like.config import UserError
from big_vision_like.losses import contrastive, ring
from tests.conftest import make_mesh

MESHES = [
  dict(fsdp=1),
  dict(fsdp=2),
  dict(fsdp=3),
  dict(replica=2, fsdp=3),
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


def sigmoid_reference(x, y, scale, bias, labels=None):
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  labels = np.arange(len(x)) if labels is None else labels
  total = 0.0
  for i in range(len(x)):
    for j in range(len(y)):
      z = 1 if labels[i] == labels[j] else -1
      total += softplus(-z * (np.exp(float(scale)) * x[i] @ y[j] + float(bias)))
  return total / len(x)


def softmax_reference(x, y, scale, labels=None, beta=0.0):
  """UniCL's loss with the weights of HN-NCE, a row at a time."""
  logits = np.exp(float(scale)) * np.asarray(x, np.float64) @ np.asarray(y, np.float64).T
  labels = np.arange(len(x)) if labels is None else np.asarray(labels)
  total = 0.0
  for rows in (logits, logits.T):
    for i, row in enumerate(rows):
      own, other = row[labels == labels[i]], row[labels != labels[i]]
      weights = len(other) * np.exp(beta * other) / np.exp(beta * other).sum()
      total += np.log(np.exp(own).sum() + (weights * np.exp(other)).sum()) - own.mean()
  return total / (2 * len(x))


LOSSES = {
  "sigmoid": (contrastive.sigmoid_loss, sigmoid_reference, (-10.0,)),
  "softmax": (contrastive.softmax_loss, softmax_reference, ()),
}


def value_and_grad(name, impl, args):
  fn = lambda *a: LOSSES[name][0](*a, impl=impl)
  return jax.jit(jax.value_and_grad(fn, tuple(range(len(args)))))(*args)


def assert_gradients(found, expected, tolerance=1e-5):
  """Largest difference at the scale of each gradient."""
  for a, b in zip(found, expected, strict=True):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert np.max(np.abs(a - b)) <= tolerance * np.max(np.abs(b))


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
  assert_gradients(other_grads, grads)


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
def test_without_a_mesh(name):
  args = arguments(name, 5)
  value, grads = value_and_grad(name, "dense", args)
  for impl in ("all_gather", "ring"):
    other, other_grads = value_and_grad(name, impl, args)
    np.testing.assert_allclose(other, value, rtol=3e-6)
    assert_gradients(other_grads, grads)


LABELS = np.array([0, 1, 0, 2, 3, 3, 3, 4, 5, 6, 7, 0, 8, 9, 9, 10, 1, 11, 12, 13, 14, 3, 15, 16])
MORE = {
  "sigmoid, labels": (sigmoid_reference, (-10.0,), (LABELS,)),
  "softmax, labels": (softmax_reference, (), (LABELS,)),
  "softmax, hard": (softmax_reference, (), (None, 0.5)),
  "softmax, labels, hard": (softmax_reference, (), (LABELS, 0.5)),
}


@pytest.mark.parametrize("name", MORE)
@pytest.mark.parametrize("impl", contrastive.IMPLS)
def test_labels_and_hard_negatives(name, impl):
  """Pairs of one label are positives wherever they lie, negatives weigh by their logits."""
  reference, rest, (labels, *beta) = MORE[name]
  args = [*arguments("softmax", 24), *map(jnp.float32, rest)]
  options = dict(labels=None if labels is None else jnp.asarray(labels))
  if beta:
    options["hardness"] = beta[0]
  loss = LOSSES[name.split(",")[0]][0]

  def value_and_grad(impl):
    fn = lambda *a: loss(*a, **options, impl=impl, tile=3)
    return jax.jit(jax.value_and_grad(fn, tuple(range(len(args)))))(*args)

  with jax.set_mesh(make_mesh(fsdp=4, tensor=2)):
    value, grads = value_and_grad(impl)
  np.testing.assert_allclose(value, reference(*args, labels, *beta), rtol=3e-6)
  _, expected = value_and_grad("dense")
  assert_gradients(grads, expected)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("batch, devices, tile", [(24, 2, 2), (15, 5, 2), (14, 2, 4), (22, 2, 4)])
def test_ring_of_many_tiles(name, batch, devices, tile):
  """Both ways round, one way where the local batch is odd, and tiles that do not divide it."""
  args = arguments(name, batch)
  loss = LOSSES[name][0]
  fn = lambda *a: loss(*a, impl="ring", tile=tile)
  with jax.set_mesh(make_mesh(fsdp=devices)):
    value, grads = jax.jit(jax.value_and_grad(fn, (0, 1, 2)))(*args)
  expected, expected_grads = value_and_grad(name, "dense", args)
  np.testing.assert_allclose(value, expected, rtol=3e-6)
  assert_gradients(grads, expected_grads[:3])


def test_ring_for_evaluation_has_one_product_per_tile():
  """Without a gradient nothing but logits is computed; with one, twice as much again."""
  args = arguments("sigmoid", 24)
  loss = lambda *a: contrastive.sigmoid_loss(*a, impl="ring", tile=4)
  logits = 2 * 24 * 24 * 16
  with jax.set_mesh(make_mesh(fsdp=2)):
    assert flops.count(loss, *args) == logits
    assert flops.count(jax.grad(loss, (0, 1, 2, 3)), *args) == 3 * logits
    text = jax.jit(loss).lower(*args).as_text()
  assert text.count("stablehlo.collective_permute") == 4  # texts and their ids, both ways


@pytest.mark.parametrize("n, wanted, found", [(512, 128, 128), (96, 128, 96), (100, 30, 25)])
def test_divisor_near(n, wanted, found):
  assert ring.divisor_near(n, wanted) == found
  assert ring.divisor_near(4099, 128) == 4099  # a prime: one tile rather than 4099


def test_logit_statistics():
  x, y, scale, bias = arguments("sigmoid", 24)
  logits = np.exp(float(scale)) * np.asarray(x, np.float64) @ np.asarray(y, np.float64).T - 10
  found = contrastive.logit_statistics(x, y, scale, bias)
  diagonal = np.eye(24, dtype=bool)
  np.testing.assert_allclose(found["positive_logit"], logits[diagonal].mean(), rtol=1e-5)
  np.testing.assert_allclose(found["negative_logit"], logits[~diagonal].mean(), rtol=1e-5)


def test_the_batch_may_be_on_one_axis():
  args = arguments("sigmoid", 8)
  with jax.set_mesh(make_mesh(replica=2, fsdp=2)):
    value = jax.jit(lambda *a: contrastive.sigmoid_loss(*a, impl="ring", axis="fsdp"))(*args)
  np.testing.assert_allclose(value, sigmoid_reference(*args), rtol=3e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_unknown_impl(name):
  with pytest.raises(UserError, match="did you mean ring"):
    LOSSES[name][0](*arguments(name, 4), impl="rings")


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 3e-6), (jnp.bfloat16, 1e-2)], ids=str)
@pytest.mark.parametrize("scale", [10.0, 100.0])
def test_precision_of_the_ring(dtype, tolerance, scale):
  """Loss and all four gradients against float64 on the same embeddings."""
  args = arguments("sigmoid", 1024, np.log(scale), dtype)
  x, y, log_scale, bias = (np.asarray(a, np.float64) for a in args)
  t, z = np.exp(log_scale), 2 * np.eye(1024) - 1
  logits = t * x @ y.T + bias
  slope = -z / (1 + np.exp(z * logits)) / 1024
  expected = (t * slope @ y, t * slope.T @ x, np.sum(slope * (logits - bias)), np.sum(slope))
  with jax.set_mesh(make_mesh(fsdp=8)):
    value, grads = value_and_grad("sigmoid", "ring", args)
  np.testing.assert_allclose(value, np.logaddexp(0, -z * logits).sum() / 1024, rtol=3e-6)
  assert_gradients(grads, expected, tolerance)


# ----------------------------------------------------------------------------------------- memory

MIB = 2**20
DENSE_MIB = {16_384: 416, 32_768: 1_600, 2**20: 1_574_912}  # the formula of arXiv:2303.15343


def temporaries(loss, batch, devices=8, width=512, **options):
  """Bytes a device needs beside arguments and results of value and all gradients; compiles only."""
  mesh = make_mesh(fsdp=devices)
  shape = lambda dims, *spec: jax.ShapeDtypeStruct(
    dims, jnp.float32, sharding=NamedSharding(mesh, P(*spec))
  )
  args = [shape((batch, width), "fsdp")] * 2 + [shape(())] * (2 if loss == "sigmoid" else 1)
  fn = lambda *a: LOSSES[loss][0](*a, impl="ring", **options)
  with jax.set_mesh(mesh):
    compiled = jax.jit(jax.value_and_grad(fn, tuple(range(len(args))))).lower(*args).compile()
  local = batch // devices * width * 4
  return compiled.memory_analysis().temp_size_in_bytes, local


@pytest.mark.parametrize("loss, most", [("sigmoid", 2.05), ("softmax", 4.0)])
def test_memory_is_a_few_copies_of_the_local_embeddings(loss, most):
  found, local = temporaries(loss, 32_768)
  assert found <= most * local
  few, many = (temporaries(loss, 512 * n, n, width=64)[0] for n in (2, 8))
  assert many <= 1.0 * few  # flat in the number of devices


@pytest.mark.parametrize("batch, factor", [(16_384, 40), (32_768, 80), (2**20, 2_500)])
def test_memory_against_the_dense_formula(batch, factor):
  found, _ = temporaries("sigmoid", batch)
  assert found * factor <= DENSE_MIB[batch] * MIB
