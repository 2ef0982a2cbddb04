import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_mesh

from big_vision_like import axes, tree
from big_vision_like.config import UserError
from big_vision_like.models import beit

RNG = np.random.default_rng(0)
IMAGE = RNG.normal(size=(4, 16, 24, 3)).astype(np.float32)
MASK = RNG.random((4, 6)) < 0.4


def tiny(**kwargs):
  return beit.make("mu/8", **{"image_size": (16, 24), **kwargs})


def noisy(params):
  """Tables and scales that start from a constant, at random."""
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda x: x + jnp.asarray(rng.normal(size=x.shape) * 0.2, x.dtype), params)


def test_published_parameter_counts():
  """beit-base-patch16-224 (transformers): 86.53M with 1000 classes."""
  model = beit.make("B/16", num_classes=1000)
  image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  p = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
  assert tree.num_params(p) == 86_530_984


def test_masked_patches_are_not_seen():
  model = tiny(mask_token=True, pool="none", num_classes=7, shared_rel_pos_bias=True)
  p = noisy(jax.jit(model.init)(jax.random.key(0), IMAGE)["params"])
  apply = jax.jit(lambda image, mask: model.apply({"params": p}, image, mask=mask)[0])
  y = apply(IMAGE, MASK)
  assert y.shape == (4, 6, 7)
  hidden = np.repeat(np.repeat(MASK.reshape(4, 2, 3), 8, axis=1), 8, axis=2)[..., None]
  np.testing.assert_array_equal(apply(IMAGE + 3 * hidden, MASK), y)
  assert np.abs(apply(IMAGE, ~MASK) - y).max() > 1e-3
  with pytest.raises(UserError, match="BEiT has no mask token"):
    jax.eval_shape(lambda: tiny().init(jax.random.key(0), IMAGE, mask=MASK))


def test_eight_devices_equal_one():
  """Seven tokens over two devices are padded: the padding is not seen and has no bias."""
  model = tiny(shared_rel_pos_bias=True, num_classes=5, remat="full", drop_path=0.1)
  p = noisy(jax.jit(model.init)(jax.random.key(0), IMAGE)["params"])
  loss = lambda p, image: jnp.mean(jnp.square(model.apply({"params": p}, image)[0]))
  want, want_grad = jax.jit(jax.value_and_grad(loss))(p, IMAGE)
  mesh = make_mesh(replica=2, fsdp=1, tensor=2, sequence=2)
  batch = axes.put_batch(mesh, {"image": IMAGE})
  with jax.set_mesh(mesh):
    got, grad = jax.jit(jax.value_and_grad(loss))(p, batch["image"])
  np.testing.assert_allclose(axes.to_host(got), want, rtol=1e-5)
  for name, g in tree.flatten(grad).items():
    np.testing.assert_allclose(
      axes.to_host(g), tree.flatten(want_grad)[name], atol=1e-5, err_msg=name
    )
  assert all(np.any(g) for g in jax.tree.leaves(want_grad))


def test_half_precision_and_training():
  model = tiny(dtype="bfloat16", drop_path=0.5, dropout=0.1, pos_embed="learn", pool="cls")
  p = jax.jit(model.init)(jax.random.key(0), IMAGE)["params"]
  assert {x.dtype for x in jax.tree.leaves(p)} == {jnp.dtype("float32")}
  apply = jax.jit(
    lambda rng: model.apply({"params": p}, IMAGE, train=True, rngs={"dropout": rng})[0]
  )
  y = apply(jax.random.key(0))
  assert y.dtype == jnp.bfloat16 and y.shape == (4, 32)
  assert np.any(np.asarray(y != apply(jax.random.key(1))))


@pytest.mark.parametrize(
  "kwargs, message",
  [
    (dict(variant="X/8"), "variant 'X' is unknown"),
    (dict(variant="mu/x"), "the patch is not a number"),
    (dict(variant="mu/8", pool="map"), "pool 'map' is unknown"),
    (dict(variant="mu/8", pos_embed="rope"), "pos_embed 'rope' is unknown"),
    (dict(variant="mu/8", image_size=20), "image 20 x 20 is not a multiple"),
    (dict(variant="mu/8", layerscale=1.0), "'layerscale' is unknown; did you mean layer_scale"),
  ],
)
def test_mistakes(kwargs, message):
  with pytest.raises(UserError, match=message):
    beit.make(**kwargs)
