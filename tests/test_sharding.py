"""Meshes and rules: what goes where, what is said, what is refused."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from big_vision_like import sharding, tree
from big_vision_like.config import UserError

S = jax.ShapeDtypeStruct
SHAPES = {
  "params": {
    "query": {"kernel": S((2, 128, 64), jnp.float32), "bias": S((2, 64), jnp.float32)},
    "down": {"kernel": S((2, 256, 128), jnp.float32)},
    "odd": {"kernel": S((99, 99), jnp.float32)},
  },
}


def mesh(**shape):
  return sharding.make_mesh(shape)


def test_default_rules():
  m = mesh(fsdp=4, tensor=2)
  placed, table = sharding.plan(SHAPES, sharding.DEFAULT_RULES, m)
  specs = {k: v.spec for k, v in tree.flatten(placed).items()}
  assert specs["params/query/kernel"] == P(None, "fsdp", "tensor")
  assert specs["params/down/kernel"] == P(None, "tensor", "fsdp")
  assert specs["params/query/bias"] == P(None, None)
  assert any("params/odd/kernel" in note for note in table.notes)
  sizes = {row.path: row.bytes_per_device for row in table.rows}
  assert sizes["params/query/kernel"] == 2 * 128 * 64 * 4 // 8
  assert sum(sizes.values()) == table.totals()["params"]
  assert "params/down/kernel" in table.render()


def test_a_rule_that_matches_nothing_is_said():
  _, table = sharding.plan(SHAPES, [("gone", "fsdp"), (".*", "replicate")], mesh(fsdp=8))
  assert any("'gone'" in note and "matched nothing" in note for note in table.notes)


@pytest.mark.parametrize(
  "rules, message",
  [
    ([("params/query/.*", "fsdp")], "no rule matches"),
    ([(".*", "fsdpp")], "did you mean fsdp"),
    ([(".*", "shard(0, tensor)")], "does not divide by tensor"),
    ([(".*", "shard(0, tensors)")], "did you mean tensor"),
  ],
)
def test_wrong_rules(rules, message):
  with pytest.raises(UserError, match=message.replace("(", r"\(")):
    sharding.plan(SHAPES, rules, mesh(fsdp=2, tensor=4))


@pytest.mark.parametrize(
  "shape, message",
  [
    (dict(fsdp=3), "does not use all 8 devices"),
    (dict(fsdp=-1, tensor=-1), "both -1"),
    (dict(fsdp=-1, tensor=3), "does not use all 8"),
    (dict(fdsp=8), "did you mean fsdp"),
    (dict(fsdp=0), "fsdp = 0"),
  ],
)
def test_wrong_meshes(shape, message):
  with pytest.raises(UserError, match=message):
    mesh(**shape)


def test_batch_divides_its_own_axes_only():
  sharding.check_batch(4, mesh(fsdp=2, tensor=4))
  with pytest.raises(UserError, match="does not divide by replica x fsdp = 8"):
    sharding.check_batch(12, mesh(fsdp=8))
