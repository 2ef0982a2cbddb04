import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_mesh

from big_vision_like import axes, models, tree
from big_vision_like.config import UserError, wrap
from big_vision_like.models import bert, t5, two_towers

TOKENS = np.array([[3, 9, 4, 1, 2], [7, 2, 8, 0, 0]], np.int32)
TINY = {
  "bert": dict(name="bert", variant="mu", vocab_size=11, max_len=6),
  "t5": dict(
    name="t5", width=32, depth=2, mlp_dim=48, num_heads=2, head_dim=12, vocab_size=11, num_buckets=8
  ),
}


@pytest.mark.parametrize("name", list(TINY))
def test_padding_is_not_seen(name):
  """What stands in places that do not count changes nothing elsewhere, nor the mean."""
  model = models.make({**TINY[name], "pool": "gap", "pad_id": 0})
  p = jax.jit(model.init)(jax.random.key(0), TOKENS)["params"]
  apply = jax.jit(lambda tokens, mask=None: model.apply({"params": p}, tokens, mask))
  y, out = apply(TOKENS)
  mask = TOKENS != 0
  other = np.where(mask, TOKENS, 5)
  z, masked = apply(other, mask)
  np.testing.assert_allclose(y, z, atol=1e-6)
  np.testing.assert_allclose(out["tokens"][mask], masked["tokens"][mask], atol=1e-6)
  np.testing.assert_allclose(y[1], np.mean(out["tokens"][1, :3], axis=0), atol=1e-6)
  assert np.abs(apply(other)[0] - z).max() > 1e-3
  short = apply(TOKENS[1:, :3])[0]
  np.testing.assert_allclose(short[0], y[1], atol=1e-5)


def test_pools_and_heads():
  shapes = lambda model: (
    jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), TOKENS)[0][0]).shape
  )
  for name in TINY:
    make = lambda _name=name, **kwargs: models.make({**TINY[_name], **kwargs})
    assert shapes(make(pool="none")) == (2, 5, 32)
    assert shapes(make(pool="first")) == (2, 32)
    assert shapes(make(pool="gap", num_classes=7)) == (2, 7)
  assert shapes(models.make({**TINY["bert"], "mlm": True, "pool": "none"})) == (2, 5, 11)


def test_published_parameter_counts():
  """bert-base-uncased 109.5M; t5-small's encoder 35.3M, flan-t5-base's 109.6M (transformers)."""
  count = lambda model: tree.num_params(
    jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8), jnp.int32))
  )
  assert count(bert.make("B")) == 109_482_240
  assert count(t5.make("small")) == 35_330_816
  assert count(t5.make("base", mlp_dim=2048, gated=True, activation="tanh")) == 109_628_544


@pytest.mark.parametrize("name", list(TINY))
def test_as_a_text_tower_on_eight_devices(name):
  """`config.model.text.name`; five tokens over two devices are padded."""
  image = {"variant": "mu/8", "image_size": (16, 16)}
  text = {**TINY[name], "pad_id": 0, "pool": "gap"}
  model = two_towers.make(wrap({"image": image, "text": text}))
  tokens = np.tile(TOKENS, (2, 1))
  variables = jax.jit(model.init)(jax.random.key(0), np.zeros((4, 16, 16, 3), np.float32), tokens)
  apply = lambda tokens: model.apply(variables, None, tokens)[1]
  want = jax.jit(apply)(tokens)
  assert want.shape == (4, 32)
  mesh = make_mesh(replica=2, fsdp=1, tensor=2, sequence=2)
  batch = axes.put_batch(mesh, {"text": tokens})
  with jax.set_mesh(mesh):
    got = jax.jit(apply)(batch["text"])
  np.testing.assert_allclose(axes.to_host(got), want, atol=1e-5)


@pytest.mark.parametrize("name", list(TINY))
def test_half_precision(name):
  model = models.make({**TINY[name], "dtype": "bfloat16", "dropout": 0.1, "remat": "up"})
  p = jax.eval_shape(model.init, jax.random.key(0), TOKENS)["params"]

  def loss(p):
    y, _ = model.apply({"params": p}, TOKENS, train=True, rngs={"dropout": jax.random.key(1)})
    assert y.dtype == jnp.bfloat16
    return jnp.mean(jnp.square(y.astype(jnp.float32)))

  grads = jax.eval_shape(jax.grad(loss), p)
  assert {x.dtype for x in jax.tree.leaves(grads)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
  "make, kwargs, message",
  [
    (bert.make, dict(variant="X"), "BERT variant 'X' is unknown"),
    (bert.make, dict(variant="mu", pool="last"), "BERT pool 'last' is unknown"),
    (bert.make, dict(variant="mu", mlm=True, num_classes=3), "choose one head"),
    (t5.make, dict(variant="tiny"), "T5 variant 'tiny' is unknown"),
    (t5.make, dict(variant="small", activation="gelu"), "T5 activation 'gelu' is unknown"),
    (t5.make, dict(variant="small", dtype="int8"), "T5 dtype 'int8' is unknown"),
  ],
)
def test_mistakes(make, kwargs, message):
  with pytest.raises(UserError, match=message):
    make(**kwargs)


def test_a_long_text():
  with pytest.raises(UserError, match="text of 7 tokens is longer than max_len = 6"):
    x = jax.ShapeDtypeStruct((1, 7), jnp.int32)
    jax.eval_shape(models.make(TINY["bert"]).init, jax.random.key(0), x)
