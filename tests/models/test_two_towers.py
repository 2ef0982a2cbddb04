import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from big_vision_like import axes, tree
from big_vision_like.config import UserError, wrap
from big_vision_like.models import two_towers

RNG = np.random.default_rng(0)
IMAGE = RNG.normal(size=(8, 16, 16, 3)).astype(np.float32)
TEXT = RNG.integers(0, 11, (8, 6)).astype(np.int32)


def config(image=(), text=(), **kwargs):
  return wrap(
    {
      "image": {"variant": "mu/8", "image_size": (16, 16), "pool": "map", **dict(image)},
      "text": {"variant": "mu", "vocab_size": 11, "max_len": 6, **dict(text)},
      **kwargs,
    }
  )


@pytest.fixture(scope="module")
def params():
  return jax.jit(two_towers.make(config()).init)(jax.random.key(0), IMAGE, TEXT)["params"]


def counts(cfg, size=224, length=64):
  image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  text = jax.ShapeDtypeStruct((1, length), jnp.int32)
  shapes = jax.eval_shape(two_towers.make(cfg).init, jax.random.key(0), image, text)["params"]
  return {k: tree.num_params(v) for k, v in shapes.items()}


def test_published_parameter_counts():
  """SigLIP (released checkpoints): B/16 at 224, 203M; So400m/14 at 224, 878M."""
  text = dict(variant="B", vocab_size=32_000, max_len=64)
  got = counts(wrap({"image": {"variant": "B/16", "pool": "map"}, "text": text}))
  assert got == {"image": 92_884_224, "text": 110_271_744, "logit_scale": 1, "logit_bias": 1}
  text = dict(variant="So400m", vocab_size=32_000, max_len=16)
  got = counts(wrap({"image": {"variant": "So400m/14", "pool": "map"}, "text": text}), length=16)
  assert sum(got.values()) == 877_360_306


def test_embeddings_and_intermediates(params):
  apply = jax.jit(two_towers.make(config()).apply)
  zimg, ztxt, out = apply({"params": params}, IMAGE, TEXT)
  for z in (zimg, ztxt):
    assert z.shape == (8, 32) and z.dtype == jnp.float32
    np.testing.assert_allclose(np.linalg.norm(z, axis=-1), 1, rtol=1e-5)
  np.testing.assert_allclose(out["logit_scale"], np.log(10), rtol=1e-6)
  np.testing.assert_allclose(out["logit_bias"], -10)
  assert {"image/tokens", "image/pooled", "text/tokens", "text/pooled"} <= set(out)
  assert set(params) == {"image", "text", "logit_scale", "logit_bias"}
  assert "head" in params["text"] and "head" not in params["image"]

  only, none, _ = apply({"params": params}, IMAGE, None)
  np.testing.assert_allclose(only, zimg, atol=1e-6)
  assert none is None
  none, only, out = apply({"params": params}, None, TEXT)
  np.testing.assert_allclose(only, ztxt, atol=1e-6)
  assert none is None and not any(k.startswith("image/") for k in out)


def test_embed_dim_projects_both_towers():
  cfg = config(embed_dim=12, bias_init=None, temperature_init=1 / 0.07)
  model = two_towers.make(cfg)
  assert model.image.num_classes == model.text.num_classes == 12
  shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGE, TEXT)["params"]
  assert "logit_bias" not in shapes
  assert not cfg.unread()
  assert two_towers.make(config(image={"num_classes": 9})).text.num_classes == 9


@pytest.mark.parametrize(
  "cfg, message",
  [
    (
      dict(temprature_init=1.0),
      "config.model: key 'temprature_init' is unknown; did you mean temp",
    ),
    (dict(temperature_init=0), "temperature_init = 0; expected a number > 0"),
    (dict(text={"num_classes": 5}), "image ends in 32 and text in 5 dimensions"),
    (dict(image={"pool": "none"}), "config.model.image.pool = 'none'; two towers need one vector"),
    (dict(image={"variant": "B16"}), "variant 'B16' is unknown"),
  ],
)
def test_mistakes(cfg, message):
  with pytest.raises(UserError, match=message):
    two_towers.make(config(**cfg))
  with pytest.raises(UserError, match="missing a required argument: 'text'"):
    two_towers.make(wrap({"image": {"variant": "mu/8"}}))


def test_eight_devices_equal_one(params):
  """Parameters split over fsdp and tensor, batch over replica and fsdp: the same embeddings."""
  model = two_towers.make(config(image={"remat": "full"}))
  apply = lambda p, image, text: model.apply({"params": p}, image, text)[:2]
  want = jax.jit(apply)(params, IMAGE, TEXT)
  mesh = make_mesh(replica=2, fsdp=2, tensor=2, sequence=1)

  def spec(name, x):
    if tree.matches("(query|key|value|up)/kernel", name):
      return P(*[None] * (x.ndim - 2), "fsdp", "tensor")
    if tree.matches("(out|down)/kernel", name):
      return P(*[None] * (x.ndim - 2), "tensor", "fsdp")
    return P(*[None] * (x.ndim - 1), "fsdp") if x.ndim and x.shape[-1] % 2 == 0 else P()

  put = lambda name, x: jax.device_put(x, NamedSharding(mesh, spec(name, x)))
  sharded = tree.map_with_name(put, params)
  batch = axes.put_batch(mesh, {"image": IMAGE, "text": TEXT})
  with jax.set_mesh(mesh):
    got = jax.jit(apply)(sharded, batch["image"], batch["text"])
  for a, b in zip(got, want):
    np.testing.assert_allclose(axes.to_host(a), b, atol=1e-5)
    assert a.sharding.spec[0] == ("replica", "fsdp")
