"""Counts by hand: products, convolutions, scans, branches, devices."""

import jax
import jax.numpy as jnp
from conftest import make_mesh
from jax.sharding import PartitionSpec as P

from big_vision_like import flops
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
