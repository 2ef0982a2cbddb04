"""Attention over split tokens: equal to one device, padded where it must be, and really split."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_like import flops, tree
from big_vision_like.config import UserError
from big_vision_like.layers import attention as attention_lib
from big_vision_like.layers.attention import attention, pick
from big_vision_like.layers.decoder import AttentionalPool, Decoder
from big_vision_like.layers.pos_embed import rope_2d
from big_vision_like.layers.sequence import pad_tokens
from big_vision_like.layers.transformer import Encoder, MapPool
from tests.conftest import make_mesh


def qkv(n=8, m=8, heads=4, d=8, batch=2, scale=1.0):
  rng = np.random.default_rng(0)
  shapes = ((batch, n, heads, d), (batch, m, heads, d), (batch, m, heads, d))
  return [scale * rng.normal(size=s).astype(np.float32) for s in shapes]


def some(*shape):
  """A mask; every row sees something, but the last row of the last example sees nothing."""
  mask = np.random.default_rng(1).random(shape) < 0.5
  mask[..., 0] = True
  mask[-1, -1, -1] = False
  return mask


CASES = {  # arrays, mask, causal
  "plain": (qkv(), None, False),
  "causal": (qkv(), None, True),
  "padding": (qkv(), np.arange(8)[None, None, None] < 6, False),
  "per example": (qkv(), some(2, 1, 8, 8), False),
  "per head, causal": (qkv(), some(1, 4, 8, 8) | np.eye(8, dtype=bool), True),
  "cross": (qkv(m=12), some(2, 1, 8, 12), False),
  "large logits": (qkv(scale=6.0), None, False),
}


def values_and_gradients(impl):
  """All cases in one compile."""

  def of(q, k, v, mask, causal):
    fn = lambda q, k, v: attention(q, k, v, mask=mask, causal=causal, impl=impl)
    y, pullback = jax.vjp(fn, q, k, v)
    return y, *pullback(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

  return jax.jit(
    lambda: {name: of(*map(jnp.asarray, a), m, c) for name, (a, m, c) in CASES.items()}
  )


@pytest.fixture(scope="module")
def on_one_device():
  return values_and_gradients("xla")()


@pytest.mark.parametrize("impl", ["ring", "all_gather"])
@pytest.mark.parametrize(
  "shape", [dict(tensor=2, sequence=4), dict(fsdp=2, tensor=3, sequence=1)], ids=str
)
def test_equals_one_device(on_one_device, impl, shape):
  """Output and gradients; heads over `tensor` where they divide (4 over 2, not over 3)."""
  with jax.set_mesh(make_mesh(**shape)):
    split = values_and_gradients(impl)()
  for name, want in on_one_device.items():
    for part, a, b in zip(("y", "dq", "dk", "dv"), want, split[name]):
      scale = np.abs(a).max()
      np.testing.assert_allclose(b, a, atol=5e-6 * scale, err_msg=f"{name}: {part}")


def test_batch_and_heads_stay_split():
  """No collective but the ring's own: batch over fsdp, heads over tensor, tokens over sequence."""
  mesh = make_mesh(fsdp=2, tensor=2, sequence=2)
  split = jax.NamedSharding(mesh, jax.P("fsdp", "sequence", "tensor"))
  args = [jax.ShapeDtypeStruct((2, 8, 4, 8), jnp.float32, sharding=split)] * 3
  with jax.set_mesh(mesh):
    ring = jax.jit(lambda *x: attention(*x, impl="ring")).lower(*args).compile()
    gather = jax.jit(lambda *x: attention(*x, impl="all_gather")).lower(*args).compile()
  text = ring.as_text()
  assert "collective-permute" in text and "all-gather" not in text and "all-reduce" not in text
  assert "all-gather" in gather.as_text() and "collective-permute" not in gather.as_text()
  for compiled in (ring, gather):
    assert compiled.output_shardings.is_equivalent_to(split, 4)


def test_ring_of_half_precision_keeps_float32_sums():
  """600 equal scores on each of four devices: in bf16 a sum of ones stops growing at 256."""
  q, k = jnp.zeros((1, 4, 1, 8), jnp.bfloat16), jnp.zeros((1, 2400, 1, 8), jnp.bfloat16)
  with jax.set_mesh(make_mesh(sequence=4)):
    y = jax.jit(lambda q, k, v: attention(q, k, v, impl="ring"))(q, k, jnp.ones_like(k))
  assert y.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.asarray(y, np.float32), 1.0, rtol=1e-2)


@pytest.mark.parametrize(
  "n, m, dtype, masked, backend, want",
  [
    (1024, 1024, "float32", False, "cpu", "ring"),
    (1024, 1024, "float32", True, "tpu", "ring"),
    (256, 256, "float32", False, "tpu", "all_gather"),  # short
    (1024, 1026, "bfloat16", False, "tpu", "all_gather"),  # keys do not divide
    (1, 1024, "bfloat16", False, "gpu", "xla"),  # a probe
    (1024, 1024, "bfloat16", False, "gpu", "all_gather"),  # cuDNN on each device
    (1028, 1028, "bfloat16", True, "gpu", "ring"),  # 257 queries a device: no cuDNN
  ],
)
def test_pick(n, m, dtype, masked, backend, want):
  q, k = (jax.ShapeDtypeStruct((2, s, 4, 64), dtype) for s in (n, m))
  mask = jax.ShapeDtypeStruct((2, 1, n, m), "bool") if masked else None
  with jax.set_mesh(make_mesh(fsdp=2, sequence=4)):
    assert pick(q, k, mask, backend) == want


def test_mistakes():
  with jax.set_mesh(make_mesh(sequence=4)):
    with pytest.raises(UserError, match="impl 'rink' is unknown; did you mean ring"):
      attention(*qkv(), impl="rink")
    with pytest.raises(UserError, match=r"7 queries do not divide .* sequence = 4; pad them to 8"):
      attention(*qkv(n=7), impl="all_gather")
    with pytest.raises(UserError, match="6 keys do not divide"):
      attention(*qkv(m=6), impl="ring")


# ---------------------------------------------------------------------------------------- layers

X = np.random.default_rng(0).normal(size=(2, 7, 16)).astype(np.float32)
CONTEXT = np.random.default_rng(1).normal(size=(2, 5, 16)).astype(np.float32)
SIZE = dict(depth=2, num_heads=2, mlp_dim=32)


def layers():
  """Name -> (module, arguments, keywords) whose 7 tokens and context of 5 do not divide by 4."""
  mask = some(2, 1, 7, 7) | np.eye(7, dtype=bool)
  return {
    "encoder": (Encoder(**SIZE), (X,), dict(rope=rope_2d((2, 3), 8, prefix=1))),
    "DINOv3's encoder": (
      Encoder(**SIZE, gelu="silu", layer_scale=0.5, gated=True, key_bias=False),
      (X,),
      dict(rope=rope_2d((2, 3), 8, prefix=1, centred=True)),
    ),
    "masked encoder": (Encoder(**SIZE, scan=False), (X,), dict(mask=jnp.asarray(mask))),
    "causal encoder": (Encoder(**SIZE), (X,), dict(causal=True)),
    "decoder": (Decoder(**SIZE), (X, CONTEXT), dict(mask=jnp.asarray(mask))),
    "map": (MapPool(2, 32), (X,), {}),
    "attentional pool": (AttentionalPool(16, 2, 4), (X,), {}),
  }


def outputs_and_gradients(params):
  def of(name):
    module, args, kwargs = layers()[name]
    fn = lambda p, x: module.apply({"params": p}, x, *args[1:], **kwargs)
    y, pullback = jax.vjp(fn, params[name], args[0])
    return y, *pullback(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

  return jax.jit(lambda: {name: of(name) for name in params})()


@pytest.mark.parametrize("ring_from", [0, 512])
def test_padded_layers_equal_one_device(monkeypatch, ring_from):
  params = jax.jit(
    lambda: {n: m.init(jax.random.key(0), *a, **k)["params"] for n, (m, a, k) in layers().items()}
  )()
  monkeypatch.setattr(attention_lib, "RING_FROM", ring_from)
  one = outputs_and_gradients(params)
  with jax.set_mesh(make_mesh(fsdp=2, sequence=4)):
    split = outputs_and_gradients(params)
  one, split = tree.flatten(one), tree.flatten(split)
  assert one.keys() == split.keys()
  for name, want in one.items():
    # Relative to the layer's scale: a key's bias has a gradient of zero but for rounding.
    np.testing.assert_allclose(split[name], want, rtol=1e-4, atol=1e-5, err_msg=name)


def test_padding_is_hidden_and_whole_lengths_stay():
  x, mask = jnp.ones((2, 7, 3)), jnp.ones((2, 1, 7, 7), bool)
  assert pad_tokens(x, mask) == (x, mask)  # no mesh
  with jax.set_mesh(make_mesh(fsdp=2, sequence=4)):
    padded, hidden = pad_tokens(x)
    assert padded.shape == (2, 8, 3) and hidden.shape == (1, 1, 1, 8)
    np.testing.assert_array_equal(hidden[0, 0, 0], np.arange(8) < 7)
    padded, hidden = pad_tokens(x, mask)
    assert hidden.shape == (2, 1, 8, 8)
    assert hidden[..., :7].all() and not hidden[..., 7].any()
    assert pad_tokens(padded, hidden) == (padded, hidden)


def test_without_the_axis_nothing_changes():
  """The program on a mesh without split tokens has neither padding nor a collective."""
  module, args, kwargs = layers()["decoder"]
  params = jax.eval_shape(module.init, jax.random.key(0), *args, **kwargs)
  fn = lambda p: module.apply(p, *args, **kwargs)
  texts = []
  for shape in (dict(fsdp=8, sequence=1), dict(fsdp=8), dict(fsdp=4, sequence=2)):
    with jax.set_mesh(make_mesh(**shape)):
      texts.append([w for w in ("shard_map", "pad[") if w in str(jax.make_jaxpr(fn)(params))])
  assert texts == [[], [], ["shard_map", "pad["]]


def test_memory_falls_with_the_axis():
  """Temporary bytes of a device, value and gradient of an encoder with 1,024 tokens.

  The N x N scores alone would be 16 MiB for each block on one device. A quarter of the tokens
  needs less than a quarter of the bytes, since the ring keeps no scores at all.
  """
  model = Encoder(depth=2, num_heads=2, mlp_dim=64)
  x = jax.ShapeDtypeStruct((2, 1024, 32), jnp.float32)
  temp = {}
  for shards in (1, 4):
    with jax.set_mesh(make_mesh(fsdp=1, sequence=shards)):
      params = jax.eval_shape(model.init, jax.random.key(0), x)
      grad = jax.jit(jax.grad(lambda p, x: jnp.sum(model.apply(p, x) ** 2)))
      temp[shards] = grad.lower(params, x).compile().memory_analysis().temp_size_in_bytes
  assert temp[1] > 32 * 2**20
  assert temp[4] < temp[1] / 7, temp


def test_products_of_the_ring_are_counted_on_every_device_and_hop():
  args = [jax.ShapeDtypeStruct((2, 16, 4, 8), jnp.float32)] * 3
  fn = lambda impl: lambda *x: attention(*x, impl=impl)
  want = flops.count(fn("xla"), *args)
  with jax.set_mesh(make_mesh(fsdp=2, sequence=4)):
    assert flops.count(fn("ring"), *args) == want
    assert flops.count(fn("all_gather"), *args) == want
