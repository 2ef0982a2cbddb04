import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_like import tree
from big_vision_like.config import UserError
from big_vision_like.models import unet

RNG = np.random.default_rng(0)
Z = RNG.normal(size=(2, 8, 8, 1)).astype(np.float32)
T = np.array([3.0, 700.0], np.float32)
LABEL = np.array([1, 4], np.int32)


def tiny(**kwargs):
  return unet.make(
    **dict(
      channels=8,
      channel_mults=(1, 2),
      num_res_blocks=1,
      attention_resolutions=(4,),
      num_heads=2,
      groups=4,
      num_classes=5,
      image_size=8,
      out_channels=1,
      **kwargs,
    )
  )


@pytest.fixture(scope="module")
def params():
  """Random everywhere: at its own initialisation the output is zero."""
  params = jax.eval_shape(tiny().init, jax.random.key(0), Z, T)["params"]
  return tree.map_with_name(
    lambda name, x: (
      np.float32(name.endswith("scale")) + 0.2 * RNG.normal(size=x.shape).astype(np.float32)
    ),
    params,
  )


@pytest.fixture(scope="module")
def apply(params):
  fn = jax.jit(lambda z, t, label: tiny().apply({"params": params}, z, t, label))
  return lambda z=Z, t=T, label=LABEL: fn(z, t, label)


def shapes(model, channels=3):
  size = model.image_size
  z = jax.ShapeDtypeStruct((1, *size, channels), jnp.float32)
  t = jax.ShapeDtypeStruct((1,), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), z, t)["params"]


def test_published_parameter_counts():
  """Ho et al., Appendix B: 35.7 million for CIFAR-10, 114 million for 256 x 256 images."""
  assert tree.num_params(shapes(unet.make(dropout=0.1))) == 35_746_307
  large = unet.make(channel_mults=(1, 1, 2, 2, 4, 4), image_size=256)
  assert tree.num_params(shapes(large)) == 113_673_219
  classes = tree.num_params(shapes(unet.make(num_classes=10)))
  assert classes - 35_746_307 == 11 * 512


def test_attention_stands_where_it_is_asked():
  names = tree.flatten(shapes(unet.make()))
  where = {n.split("/")[0] for n in names if "/attn_" in n}
  assert where == {"down_1", "mid_0", "up_1"}


def test_time_embedding():
  """Sines, then cosines, of t / 10000^(i / (half - 1))."""
  freqs = 10_000.0 ** -(np.arange(4) / 3)
  angles = T.astype(np.float64)[:, None] * freqs[None, :]
  want = np.concatenate([np.sin(angles), np.cos(angles)], -1)
  np.testing.assert_allclose(unet.time_embedding(jnp.asarray(T), 8), want, atol=1e-4)


def groupnorm(x, p, groups):
  y = x.reshape(*x.shape[:3], groups, -1)
  mean, var = (f(y, axis=(1, 2, 4), keepdims=True) for f in (np.mean, np.var))
  return ((y - mean) / np.sqrt(var + 1e-6)).reshape(x.shape) * p["scale"] + p["bias"]


def conv(x, p):
  x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  h, w = x.shape[1] - 2, x.shape[2] - 2
  taps = [(x[:, i : i + h, j : j + w], p["kernel"][i, j]) for i in range(3) for j in range(3)]
  return sum(a @ k for a, k in taps) + p["bias"]


def test_blocks_are_those_of_the_paper(params):
  """A residual block and an attention block in float64 NumPy."""
  silu = lambda x: x / (1 + np.exp(-x))
  x, emb = RNG.normal(size=(2, 4, 4, 8)), RNG.normal(size=(2, 32))
  p = params["down_1"]["resnet_0"]
  h = conv(silu(groupnorm(x, p["norm1"], 4)), p["conv1"])
  h = h + (silu(emb) @ p["time"]["kernel"] + p["time"]["bias"])[:, None, None, :]
  h = conv(silu(groupnorm(h, p["norm2"], 4)), p["conv2"])
  want = x @ p["shortcut"]["kernel"] + p["shortcut"]["bias"] + h
  block = unet.ResBlock(16, 4, 0.0, jnp.float32)
  found = block.apply({"params": p}, jnp.asarray(x), jnp.asarray(emb), False)
  np.testing.assert_allclose(found, want, atol=1e-4)

  x, p = want, params["down_1"]["attn_0"]
  y = groupnorm(x, p["norm"], 4).reshape(2, 16, 16)
  q, k, v = (
    (y @ p[n]["kernel"] + p[n]["bias"]).reshape(2, 16, 2, 8) for n in ("query", "key", "value")
  )
  scores = np.exp(np.einsum("bnhd,bmhd->bhnm", q, k) / np.sqrt(8))
  y = np.einsum("bhnm,bmhd->bnhd", scores / scores.sum(-1, keepdims=True), v).reshape(2, 16, 16)
  want = x + (y @ p["out"]["kernel"] + p["out"]["bias"]).reshape(x.shape)
  found = unet.AttnBlock(2, 4, jnp.float32).apply({"params": p}, jnp.asarray(x))
  np.testing.assert_allclose(found, want, atol=1e-4)


def test_outputs_and_intermediates(apply):
  out, named = apply()
  assert out.shape == Z.shape and out.dtype == jnp.float32
  assert {k: v.shape[1:] for k, v in named.items()} == {
    "embedding": (32,),
    "down_0": (8, 8, 8),
    "down_1": (4, 4, 16),
    "mid": (4, 4, 16),
    "up_1": (8, 8, 16),
    "up_0": (8, 8, 8),
  }


def test_time_and_label_matter_and_no_label_is_the_null_class(apply):
  out = apply()[0]
  assert np.abs(apply(t=T + 50)[0] - out).max() > 1e-3
  assert np.abs(apply(label=LABEL - 1)[0] - out).max() > 1e-3
  np.testing.assert_allclose(apply(label=None)[0], apply(label=np.full(2, 5))[0], atol=1e-5)
  # Of one example's own time and label only.
  other = apply(t=np.array([3.0, 100.0], np.float32), label=np.array([1, 0]))[0]
  np.testing.assert_allclose(other[0], out[0], atol=1e-5)


def test_blocks_start_as_the_identity():
  x, emb = jnp.asarray(RNG.normal(size=(2, 4, 4, 8)), jnp.float32), jnp.ones((2, 32))
  for block, args in (
    (unet.ResBlock(8, 4, 0.0, jnp.float32), (emb, False)),
    (unet.AttnBlock(2, 4, jnp.float32), ()),
  ):
    found = block.init_with_output(jax.random.key(0), x, *args)[0]
    np.testing.assert_array_equal(found, x)


def test_bfloat16_computes_near_float32(params, apply):
  want = apply()[0]
  half = jax.jit(lambda: tiny(dtype="bfloat16").apply({"params": params}, Z, T, LABEL)[0])()
  assert half.dtype == jnp.float32
  np.testing.assert_allclose(half, want, atol=0.05 * np.abs(want).max())


def test_remat_gives_the_same_gradient(params):
  x, emb = jnp.asarray(RNG.normal(size=(2, 4, 4, 8)), jnp.float32), jnp.ones((2, 32))

  def grads(remat):
    stage = unet.Stage(16, 1, True, 2, 4, 0.0, remat, jnp.float32)
    out = lambda p: stage.apply({"params": p}, x, emb, None, True)[0]
    return jax.jit(jax.grad(lambda p: jnp.sum(jnp.square(out(p)))))(params["down_1"])

  for a, b in zip(*(jax.tree.leaves(grads(r)) for r in ("none", "full"))):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(a).max() + 1e-6)


@pytest.mark.parametrize(
  "kwargs, message",
  [
    (dict(chanels=8), "key 'chanels' is unknown; did you mean channels"),
    (dict(image_size=20), "image 20 x 20 does not halve 3 times.*multiple of 8"),
    (dict(groups=48), "groups = 48 does not divide 128 channels"),
    (dict(num_heads=3), "num_heads = 3 does not divide 128"),
    (dict(remat="al"), "remat 'al' is unknown"),
    (dict(dtype="bf16"), "dtype 'bf16' is unknown"),
    (dict(channel_mults=()), r"channel_mults = \(\); expected"),
  ],
)
def test_mistakes(kwargs, message):
  with pytest.raises(UserError, match=message):
    unet.make(**kwargs)


def test_mistakes_of_a_call():
  with pytest.raises(UserError, match="without num_classes was given labels"):
    unet.make(image_size=32).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), T[:1], LABEL[:1])
  with pytest.raises(UserError, match="image 9 x 8 does not halve"):
    tiny().init(jax.random.key(0), jnp.zeros((1, 9, 8, 1)), T[:1])
