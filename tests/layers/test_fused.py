"""The hand-written derivatives equal those of jax; parameters equal flax's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_mesh

from big_vision_like import axes
from big_vision_like.layers import attention, fused, mlp

RNG = np.random.default_rng(0)


def normal(*shape, dtype=jnp.float32):
  return jnp.asarray(RNG.normal(size=shape), dtype)


def same_gradients(ours, theirs, *args):
  """Values and gradients of both, weighted by random numbers."""
  weights = normal(*jax.eval_shape(ours, *args).shape)
  numbers = tuple(range(len(args)))
  weighted = lambda fn: jax.value_and_grad(lambda *a: jnp.sum(weights * fn(*a)), numbers)
  got, want = (jax.jit(weighted(fn))(*args) for fn in (ours, theirs))
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5 * float(jnp.max(jnp.abs(b))))


@pytest.mark.parametrize("shape", [(5, 8), (2, 3, 8), (2, 3, 2, 8)])
@pytest.mark.parametrize("use_bias", [True, False])
def test_dense(shape, use_bias):
  ours, theirs = fused.Dense(6, use_bias), nn.Dense(6, use_bias)
  x = normal(*shape)
  params = ours.init(jax.random.key(0), x)
  assert jax.tree.all(jax.tree.map(jnp.array_equal, params, theirs.init(jax.random.key(0), x)))
  params = jax.tree.map(lambda p: normal(*p.shape), params)
  same_gradients(ours.apply, theirs.apply, params, x)


def test_layer_norm():
  ours, theirs = fused.LayerNorm(epsilon=1e-6), nn.LayerNorm(epsilon=1e-6)
  x = 3 * normal(2, 5, 8) + 1
  params = ours.init(jax.random.key(0), x)
  assert jax.tree.all(jax.tree.map(jnp.array_equal, params, theirs.init(jax.random.key(0), x)))
  params = jax.tree.map(lambda p: normal(*p.shape), params)
  same_gradients(ours.apply, theirs.apply, params, x)


def test_gelu():
  same_gradients(fused.gelu_tanh, nn.gelu, jnp.linspace(-6, 6, 101))


def test_attention():
  q, k, v = (normal(2, n, 3, 8) for n in (5, 7, 7))
  same_gradients(fused.attention, jax.nn.dot_product_attention, 2 * q, k, v)
  huge = fused.attention(100 * q, k, v)  # the largest score is taken off before the exponential
  np.testing.assert_allclose(huge, jax.nn.dot_product_attention(100 * q, k, v), atol=1e-5)


def test_where_they_are_used(monkeypatch):
  x = normal(2, 3)
  assert fused.usable(x, None)
  assert not fused.usable(x.astype(jnp.bfloat16))
  with jax.set_mesh(make_mesh(fsdp=2, sequence=2)):
    assert not fused.usable(x)
  with jax.set_mesh(make_mesh(fsdp=2, sequence=1)):
    assert axes.platform() == "cpu"
    assert fused.usable(x)
  calls = []
  for name in ("linear", "gelu_tanh", "attention"):
    plain = getattr(fused, name)
    spy = lambda *args, name=name, plain=plain: calls.append(name) or plain(*args)
    monkeypatch.setattr(fused, name, spy)
  q = normal(2, 5, 2, 8)
  attention.attention(q, q, q)
  mlp.Mlp(8).init(jax.random.key(0), normal(2, 3, 4))
  assert calls == ["attention", "linear", "gelu_tanh", "linear"]
  attention.attention(q, q, q, causal=True)  # masks take the general form
  assert len(calls) == 4


def test_other_platforms_take_the_plain_forms(monkeypatch):
  """In bfloat16 and away from CPUs the modules are flax's own, to the bit."""
  x = normal(2, 3, 8, dtype=jnp.bfloat16)
  for ours, theirs in ((fused.Dense(6), nn.Dense(6)), (fused.LayerNorm(), nn.LayerNorm())):
    params = theirs.init(jax.random.key(0), x)
    np.testing.assert_array_equal(ours.apply(params, x), theirs.apply(params, x))
    monkeypatch.setattr(axes, "platform", lambda: "tpu")
    wide = x.astype(jnp.float32)
    np.testing.assert_array_equal(ours.apply(params, wide), theirs.apply(params, wide))
    monkeypatch.undo()
