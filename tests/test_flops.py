"""Counts by hand: products, convolutions, scans, branches, devices."""

import jax
import jax.numpy as jnp
from conftest import make_mesh
from jax.sharding import PartitionSpec as P

from big_vision_like import flops
from big_vision_like.layers import attention
from big_vision_like.models import vit

S = jax.ShapeDtypeStruct
X, W = S((4, 8), jnp.float32), S((8, 16), jnp.float32)


def test_product_and_its_gradient():
  assert flops.count(jnp.dot, X, W) == 2 * 4 * 8 * 16
  loss = lambda w, x: jnp.sum((x @ w) ** 2)
  assert flops.count(jax.grad(loss), W, X) == 2 * (2 * 4 * 8 * 16)


def test_convolution():
  image, kernel = S((2, 8, 8, 3), jnp.float32), S((3, 3, 3, 5), jnp.float32)
  dims = ("NHWC", "HWIO", "NHWC")
  fn = lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=dims)
  assert flops.count(fn, image, kernel) == 2 * (2 * 8 * 8 * 5) * (3 * 3 * 3)
  grouped = lambda x, k: jax.lax.conv_general_dilated(
    x, k, (1, 1), "SAME", dimension_numbers=dims, feature_group_count=3
  )
  assert flops.count(grouped, image, S((3, 3, 1, 6), jnp.float32)) == 2 * (2 * 8 * 8 * 6) * 9


def test_every_trip_of_a_scan():
  square = S((8, 8), jnp.float32)
  scan = lambda w: jax.lax.scan(lambda c, _: (c @ w, None), w, None, length=5)[0]
  assert flops.count(scan, square) == 5 * 2 * 8**3


def test_scanned_vit_equals_unrolled():
  image = S((2, 32, 32, 3), jnp.float32)
  counts = []
  for scan in (True, False):
    model = vit.make("mu/16", image_size=(32, 32), scan=scan)
    params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    loss = lambda p, x, m=model: jnp.sum(m.apply({"params": p}, x)[0])
    counts.append(flops.count(jax.grad(loss), params, image))
  assert counts[0] == counts[1] > 0


def test_every_device_of_a_shard_map():
  with jax.set_mesh(make_mesh(fsdp=4, tensor=2)):
    fn = jax.shard_map(lambda x, w: x @ w, in_specs=(P("fsdp"), P()), out_specs=P("fsdp"))
    # tensor splits nothing here: its devices repeat the work, which does not count.
    assert flops.count(fn, X, W) == 2 * 4 * 8 * 16


def test_the_dearest_branch():
  fn = lambda p, x, w: jax.lax.cond(p, lambda: x @ w, lambda: jnp.zeros((4, 16)))
  assert flops.count(fn, S((), jnp.bool_), X, W) == 2 * 4 * 8 * 16


def test_holes_of_strided_convolutions_are_no_work():
  image, kernel = S((2, 8, 8, 3), jnp.float32), S((2, 2, 3, 5), jnp.float32)
  dims = ("NHWC", "HWIO", "NHWC")
  loss = lambda k, x: jax.lax.conv_general_dilated(x, k, (2, 2), "VALID", dimension_numbers=dims)
  forward = 2 * (2 * 4 * 4 * 5) * (2 * 2 * 3)
  assert flops.count(loss, kernel, image) == forward
  both = jax.grad(lambda k, x: loss(k, x).sum(), argnums=(0, 1))
  assert flops.count(both, kernel, image) == 3 * forward
  up = lambda x, k: jax.lax.conv_transpose(x, k, (2, 2), "SAME")
  assert flops.count(up, S((1, 4, 4, 3), jnp.float32), kernel) == 2 * (4 * 4 * 3) * (2 * 2 * 5)


def test_body_of_a_while_counts_once_and_remat_as_often_as_it_runs():
  square = S((8, 8), jnp.float32)
  loop = lambda w: jax.lax.while_loop(
    lambda c: c[0] < 5, lambda c: (c[0] + 1, c[1] @ w), (jnp.zeros((), jnp.int32), w)
  )
  assert flops.count(loop, square) == 2 * 8**3
  twice = lambda w: jnp.sum(jnp.sin(jnp.sin(w @ w) @ w))
  # Forward 2, backward 4; rematerialised: the first product once more.
  assert flops.count(jax.grad(twice), square) == 6 * 2 * 8**3
  assert flops.count(jax.grad(jax.checkpoint(twice)), square) >= 7 * 2 * 8**3


def test_custom_derivatives_count_what_runs():
  @jax.custom_vjp
  def product(x, w):
    return x @ w

  product.defvjp(lambda x, w: (x @ w, (x, w)), lambda r, g: (g @ r[1].T, r[0].T @ g))
  one = 2 * 4 * 8 * 16
  assert flops.count(product, X, W) == one
  assert flops.count(jax.grad(lambda x, w: product(x, w).sum(), argnums=(0, 1)), X, W) == 3 * one


def test_cudnn_attention_counts_as_the_xla_one(monkeypatch):
  """Traced without a GPU: only the checks for one are taken out."""
  from jax._src.cudnn import fused_attention_stablehlo as fused

  monkeypatch.setattr(fused, "check_cudnn_version", lambda: 99999)
  monkeypatch.setattr(fused, "check_compute_capability", lambda *_: True)
  monkeypatch.setattr(fused, "is_cuda_compute_capability_equal", lambda *_: False)
  q, k = S((2, 16, 4, 64), jnp.bfloat16), S((2, 32, 4, 64), jnp.bfloat16)
  for wrap in (lambda fn: fn, lambda fn: jax.grad(lambda *x: fn(*x).sum(), argnums=(0, 1, 2))):
    counts = [
      flops.count(wrap(lambda q, k, v, i=impl: attention.attention(q, k, v, impl=i)), q, k, k)
      for impl in ("xla", "cudnn")
    ]
    assert counts[0] == counts[1] > 0
