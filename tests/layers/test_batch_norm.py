import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_mesh

from big_vision_like import axes
from big_vision_like.config import UserError
from big_vision_like.layers.batch_norm import BatchNorm

X = np.random.default_rng(0).normal(3.0, 2.0, size=(16, 3, 2, 5)).astype(np.float32)


def run(layer, x, stats=None):
  variables = layer.init(jax.random.key(0), x)
  variables = variables if stats is None else {**variables, "batch_stats": stats}
  y, moved = jax.jit(lambda v, x: layer.apply(v, x, train=True, mutable=["batch_stats"]))(
    variables, x
  )
  return y, moved["batch_stats"]


def by_hand(x, groups):
  """Normalised x and the new statistics' share, in float64."""
  x = x.astype(np.float64)
  parts = np.split(x, groups)
  over = tuple(range(x.ndim - 1))
  y = [(p - p.mean(over)) / np.sqrt(p.var(over) + 1e-5) for p in parts]
  means, variances = (
    [f(p) for p in parts] for f in (lambda p: p.mean(over), lambda p: p.var(over, ddof=1))
  )
  return np.concatenate(y), np.mean(means, 0), np.mean(variances, 0)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("x", [X, X[:, 0, 0]], ids=["image", "vector"])
def test_by_hand(x, groups):
  y, stats = run(BatchNorm(groups=groups), x)
  expected, mean, var = by_hand(x, groups)
  np.testing.assert_allclose(y, expected, atol=2e-5)
  np.testing.assert_allclose(stats["mean"], 0.1 * mean, rtol=1e-5)
  np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * var, rtol=1e-5)


def test_evaluation_uses_the_running_statistics():
  layer = BatchNorm(affine=False)
  stats = {"mean": np.arange(5, dtype=np.float32), "var": np.full(5, 4.0, np.float32)}
  y = layer.apply({"batch_stats": stats}, X)
  np.testing.assert_allclose(y, (X - np.arange(5)) / np.sqrt(4 + 1e-5), rtol=1e-5, atol=1e-6)


def test_a_large_mean_does_not_cancel():
  x = X + 1000
  np.testing.assert_allclose(run(BatchNorm(), x)[0], by_hand(x, 1)[0], atol=1e-3)


def test_bfloat16_keeps_its_statistics_in_float32():
  layer = BatchNorm(dtype=jnp.bfloat16, zero_scale=True)
  y, stats = run(layer, X.astype(jnp.bfloat16))
  assert y.dtype == jnp.bfloat16 and not np.any(np.asarray(y, np.float32))
  assert stats["mean"].dtype == stats["var"].dtype == jnp.float32


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_eight_devices_equal_one(groups):
  layer = BatchNorm(groups=groups)
  mesh = make_mesh(replica=2, fsdp=4)
  variables = layer.init(jax.random.key(0), X)

  @jax.jit
  def loss(variables, x):
    def fn(params, x):
      y, moved = layer.apply(
        {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
      )
      return jnp.mean(y**3), moved

    return jax.value_and_grad(fn, argnums=(0, 1), has_aux=True)(variables["params"], x)

  one = loss(variables, X)
  with jax.set_mesh(mesh):
    eight = loss(variables, axes.put_batch(mesh, {"x": X})["x"])
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
    np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5)


def test_groups_have_to_divide_the_batch():
  with pytest.raises(UserError, match="a batch of 16 does not divide by 3 groups"):
    run(BatchNorm(groups=3), X)
