import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_like.config import UserError
from big_vision_like.models import text_transformer

TOKENS = np.array([[3, 9, 4, 1, 0], [7, 2, 8, 5, 6]], np.int32)


def tiny(**kwargs):
  return text_transformer.make("mu", **{"vocab_size": 11, "max_len": 6, **kwargs})


@pytest.fixture(scope="module")
def params():
  return jax.jit(tiny().init)(jax.random.key(0), TOKENS)["params"]


def test_pools(params):
  """Each pool is the token, or the mean, that it names."""
  want, _ = jax.jit(tiny(pool="none").apply)({"params": params}, TOKENS)
  assert want.shape == (2, 5, 32)
  picks = {
    "first": want[:, 0],
    "last": want[:, -1],
    "gap": want.mean(axis=1),
    "argmax": want[np.arange(2), [1, 2]],
  }
  for pool, value in picks.items():
    y, out = jax.jit(tiny(pool=pool).apply)({"params": params}, TOKENS)
    np.testing.assert_allclose(y, value, atol=1e-5, err_msg=pool)
    np.testing.assert_array_equal(out["pooled"], y)


def test_head_and_map_pool():
  model = tiny(pool="map", num_classes=7)
  p = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
  y, out = jax.eval_shape(model.apply, p, TOKENS)
  assert y.shape == (2, 7) and out["pooled"].shape == (2, 32)
  assert p["params"]["pool"]["probe"].shape == (1, 1, 32)
  assert p["params"]["embed"]["embedding"].shape == (11, 32)


@pytest.mark.parametrize("causal", [True, False])
def test_causal_text_does_not_see_the_future(params, causal):
  model = tiny(causal=causal, pool="none")
  other = TOKENS.copy()
  other[:, 3] = 10
  apply = jax.jit(lambda t: model.apply({"params": params}, t)[0])
  change = np.abs(apply(other) - apply(TOKENS)).max(axis=(0, 2))
  assert (change[3:] > 1e-4).all()
  assert (change[:3] == 0).all() if causal else (change[:3] > 1e-4).all()


def test_mistakes():
  with pytest.raises(UserError, match="text of 7 tokens is longer than max_len = 6"):
    x = jax.ShapeDtypeStruct((1, 7), jnp.int32)
    jax.eval_shape(tiny().init, jax.random.key(0), x)
  with pytest.raises(UserError, match="pool 'lst' is unknown; did you mean last"):
    tiny(pool="lst")
  with pytest.raises(UserError, match="key 'vocab' is unknown; did you mean vocab_size"):
    tiny(vocab=11)
  with pytest.raises(UserError, match="width 32 is not a multiple of 5 heads"):
    tiny(num_heads=5)
