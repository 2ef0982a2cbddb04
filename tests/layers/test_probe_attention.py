"""One shared query: the numbers, parameters and gradients of the general attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from big_vision_like import flops
from big_vision_like.layers.attention import MultiHeadAttention
from big_vision_like.layers.probe_attention import ProbeAttention

RNG = np.random.default_rng(0)
PROBE = jnp.asarray(RNG.normal(size=(1, 16)), jnp.float32)
X = jnp.asarray(RNG.normal(size=(4, 6, 16)), jnp.float32)
OURS, GENERAL = ProbeAttention(num_heads=2), MultiHeadAttention(num_heads=2)


def general(params, probe, x, mask):
  probe = jnp.broadcast_to(probe[None], (x.shape[0], 1, x.shape[-1]))
  return GENERAL.apply(params, probe, x, mask=mask)[:, 0]


@pytest.fixture(scope="module")
def params():
  """Moved off the initial zeros, so that every one counts."""
  params = OURS.init(jax.random.key(0), PROBE, X)
  want = GENERAL.init(jax.random.key(0), jnp.zeros((4, 1, 16)), X)
  assert jax.tree.all(jax.tree.map(jnp.array_equal, params, want))
  move = lambda p: p + jnp.asarray(RNG.normal(size=p.shape), jnp.float32)
  return jax.tree.map(move, params)


@pytest.mark.parametrize("masked", [False, True])
def test_equals_general_attention(params, masked):
  mask = jnp.asarray(RNG.random((4, 1, 1, 6)) < 0.6).at[..., 0].set(True) if masked else None
  weights = jnp.asarray(RNG.normal(size=(4, 16)), jnp.float32)
  run = lambda fn: jax.value_and_grad(lambda *a: jnp.sum(weights * fn(*a, mask)), (0, 1, 2))
  got = jax.jit(run(OURS.apply))(params, PROBE, X)
  want = jax.jit(run(general))(params, PROBE, X)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
  assert not jnp.any(got[1][0]["params"]["key"]["bias"])


def test_tensor_parallel_equals_one_device(params):
  mesh = make_mesh(fsdp=2, tensor=2)
  want = OURS.apply(params, PROBE, X)
  put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, P(*spec)))
  with jax.set_mesh(mesh):
    split = jax.tree_util.tree_map_with_path(
      lambda path, p: (
        put(p, None, "tensor")
        if path[1].key in ("query", "key", "value") and p.ndim == 2
        else put(p)
      ),
      params,
    )
    got = jax.jit(OURS.apply)(split, put(PROBE), put(X, "fsdp"))
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_no_projection_of_tokens(params):
  """Over many tokens a fraction of the general form's FLOPs."""
  x = jax.ShapeDtypeStruct((1, 1024, 16), jnp.float32)
  few = flops.count(OURS.apply, params, PROBE, x)
  many = flops.count(general, params, PROBE, x, None)
  assert few < many / 4
