"""Meshes, rules and the table; a state that is born sharded."""

import dataclasses
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from big_vision_like import axes, sharding, state, tree
from big_vision_like.config import UserError
from big_vision_like.method import Method
from tests.conftest import make_mesh


def shape(*dims, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(dims, dtype)


def place(leaves, rules, mesh):
  """path -> PartitionSpec, and the table."""
  shardings, table = sharding.plan(tree.nest(leaves), rules, mesh)
  return {k: s.spec for k, s in tree.flatten(shardings).items()}, table


# -------------------------------------------------------------------------------------------- mesh


@pytest.mark.parametrize(
  "cfg, expected",
  [
    ({}, None),
    ({"replica": 1, "fsdp": -1, "tensor": 1, "sequence": 1}, (1, 8, 1, 1)),
    ({"fsdp": -1, "tensor": 2}, (1, 4, 2, 1)),
    ({"replica": 2, "fsdp": 2, "tensor": 2, "sequence": 1}, (2, 2, 2, 1)),
    ({"replica": -1, "fsdp": 8}, (1, 8, 1, 1)),
  ],
  ids=str,
)
def test_make_mesh(cfg, expected):
  if expected is None:
    with pytest.raises(UserError, match="does not use all 8 devices"):
      sharding.make_mesh(cfg)
    return
  mesh = sharding.make_mesh(cfg)
  assert mesh.axis_names == axes.ALL
  assert tuple(mesh.shape.values()) == expected
  assert set(mesh.axis_types) == {AxisType.Auto}
  assert {d.id for d in mesh.devices.flat} == {d.id for d in jax.devices()}


def test_make_mesh_of_some_devices():
  assert sharding.make_mesh({"fsdp": -1}, jax.devices()[:3]).shape["fsdp"] == 3


@pytest.mark.parametrize(
  "cfg, message",
  [
    ({"replica": -1, "fsdp": -1}, "replica and fsdp are both -1"),
    ({"fsdp": -1, "tensor": 3}, "tensor=3.*does not use all 8 devices"),
    ({"fsdp": 4}, "does not use all 8 devices"),
    ({"fsdp": 16}, "does not use all 8 devices"),
    ({"fdsp": -1}, "did you mean fsdp"),
    ({"fsdp": 0}, "config.mesh.fsdp = 0"),
    ({"fsdp": "8"}, "config.mesh.fsdp = '8'"),
    ({"fsdp": True}, "config.mesh.fsdp = True"),
  ],
  ids=str,
)
def test_mesh_mistakes(cfg, message):
  with pytest.raises(UserError, match=message):
    sharding.make_mesh(cfg)


@dataclasses.dataclass(frozen=True)
class Device:
  """What a mesh over several slices, nodes or processes looks at."""

  id: int
  slice_index: int | None
  process_index: int
  platform: str = "gpu"
  device_kind: str = "test"


@pytest.mark.parametrize(
  "cfg, groups, want",
  [  # the group at each [replica, fsdp] of what is left after tensor and sequence
    (dict(replica=2, fsdp=2, tensor=2), 2, [[0, 0], [1, 1]]),
    (dict(replica=4, fsdp=2), 2, [[0, 0], [0, 0], [1, 1], [1, 1]]),
    (dict(fsdp=4, sequence=2), 2, [[0, 0, 1, 1]]),
    (dict(replica=2, fsdp=4), 4, [[0, 0, 1, 1], [2, 2, 3, 3]]),
    (dict(replica=1, fsdp=1, tensor=8), 2, None),  # tensor between nodes: in their order
  ],
  ids=str,
)
@pytest.mark.parametrize("by", ["slice_index", "process_index"])
def test_replica_goes_between_slices_nodes_and_processes(monkeypatch, cfg, groups, want, by):
  monkeypatch.setattr(sharding, "Mesh", lambda grid, names, axis_types: grid)
  rank = {"slice_index": None, "process_index": 0}
  devices = [Device(i, **{**rank, by: i * groups // 8}) for i in range(8)]
  grid = sharding.make_mesh(cfg, devices[::-1])
  assert sorted(d.id for d in grid.flat) == list(range(8))
  if want is not None:
    groups_there = np.vectorize(lambda d: getattr(d, by))(grid)
    want = np.asarray(want)[:, :, None, None]
    np.testing.assert_array_equal(groups_there, np.broadcast_to(want, grid.shape))


def test_hosts_of_one_tpu_slice_are_one_group():
  devices = [Device(i, None, i // 4, "tpu") for i in range(8)]
  assert sharding.granules(devices) == [devices]
  two = [Device(i, i // 4, i // 2, "tpu") for i in range(8)]
  assert sharding.granules(two) == [two[:4], two[4:]]
  with pytest.raises(UserError, match=r"tensor=8.* over 2 slices of 4 devices"):
    sharding.make_mesh(dict(tensor=8), two)


def test_batch(mesh8):
  assert axes.num_batch_shards(mesh8) == 4
  sharding.check_batch(12, mesh8)  # 4 devices share the batch, not 8
  for bad in (13, 0, -4, 4.0, True):
    with pytest.raises(UserError, match=f"batch_size = {bad}"):
      sharding.check_batch(bad, mesh8)
  x = jax.device_put(np.zeros((8, 3)), sharding.batch_sharding(mesh8))
  assert x.addressable_shards[0].data.shape == (2, 3)


# ------------------------------------------------------------------------------------------- rules


def test_first_rule_wins_and_fsdp_takes_the_largest_free_dimension(mesh8):
  leaves = {
    "params/attn/query/kernel": shape(128, 64),
    "params/attn/out/kernel": shape(64, 128),
    "params/blocks/mlp/down/kernel": shape(5, 256, 64),
    "params/attn/query/bias": shape(64),
    "params/other/kernel": shape(63, 128),
    "params/wide/kernel": shape(128, 257),
    "params/long/kernel": shape(64, 256),
    "params/whole/kernel": shape(128, 128),
    "params/odd/kernel": shape(63, 129),
    "opt/0/mu/attn/query/kernel": shape(128, 64),
    "step": shape(dtype=jnp.int32),
  }
  rules = ((".*whole/kernel", "replicate"), *sharding.DEFAULT_RULES)
  specs, table = place(leaves, rules, mesh8)
  assert specs == {
    "params/attn/query/kernel": P("fsdp", "tensor"),
    "params/attn/out/kernel": P("tensor", "fsdp"),
    "params/blocks/mlp/down/kernel": P(None, "tensor", "fsdp"),
    "params/attn/query/bias": P(None),
    "params/other/kernel": P(None, "fsdp"),
    "params/wide/kernel": P("fsdp", None),
    "params/long/kernel": P(None, "fsdp"),
    "params/whole/kernel": P(None, None),
    "params/odd/kernel": P(None, None),
    "opt/0/mu/attn/query/kernel": P("fsdp", "tensor"),
    "step": P(),
  }
  assert [n for n in table.notes if "params/odd/kernel (63, 129)" in n and "fsdp = 2" in n]
  assert len(table.notes) == 1


def test_min_size(mesh8):
  leaves = {"a/kernel": shape(8, 8), "b/kernel": shape(8, 8)}
  specs, _ = place(leaves, [("a/kernel", "fsdp(min_size=64)"), (".*", "fsdp")], mesh8)
  assert specs == {"a/kernel": P("fsdp", None), "b/kernel": P(None, None)}


def test_an_unused_rule_is_noted(mesh8):
  _, table = place({"a": shape(8)}, [("kernal", "fsdp"), (".*", "fsdp")], mesh8)
  assert table.notes == ["note: rule 'kernal' -> 'fsdp' matched nothing"]


def test_factored_moments_that_do_not_divide_are_noted(mesh8):
  leaves = {
    "params/up/kernel": shape(127, 64),
    "opt/v_row/up/kernel": shape(127),
    "opt/v_col/up/kernel": shape(64),
    "opt/v/up/kernel": shape(1),
  }
  specs, table = place(leaves, [(".*", "shard(-1, tensor)")], mesh8)
  assert specs["opt/v_row/up/kernel"] == P(None)
  assert specs["opt/v_col/up/kernel"] == P("tensor")
  assert table.notes == [
    "note: 1 leaves such as opt/v_row/up/kernel (127,) are not split by shard(-1, 'tensor'): "
    "127 does not divide by tensor = 2"
  ]


@pytest.mark.parametrize(
  "rules, message",
  [
    ([(".*", "shard(0, tensor)")], r"params/w \(63, 64\): 63 does not divide by tensor = 2"),
    ([(".*", "shard(2, tensor)")], "it has 2 dimensions"),
    ([(".*", "shard(1, tensr)")], "did you mean tensor"),
    ([(".*", "shard(x, tensor)")], "expected a number"),
    ([(".*", "shard(1)")], "axis"),
    ([(".*", "shard(1, tensor)|shard(1, fsdp)")], "taken"),
    ([(".*", "shart(1, tensor)")], "did you mean shard"),
    ([(".*", "fsdp(minsize=1)")], "did you mean min_size"),
    ([(".*", "fsdp(")], "cannot parse"),
    ([("(", "fsdp")], "not a regular expression"),
    ([("params/v", "fsdp")], "no rule matches params/w"),
  ],
  ids=str,
)
def test_rule_mistakes(mesh8, rules, message):
  with pytest.raises(UserError, match=message) as error:
    place({"params/w": shape(63, 64)}, rules, mesh8)
  assert "\n" not in str(error.value)


def test_a_mesh_without_fsdp_or_tensor():
  mesh = make_mesh(replica=8)
  specs, _ = place({"a/kernel": shape(128, 64)}, [(".*", "fsdp")], mesh)
  assert specs == {"a/kernel": P(None, None)}


def test_table(mesh8):
  leaves = {
    "params/up/kernel": shape(64, 128),
    "params/small": shape(4),
    "aux/queue": shape(64, 64, dtype=jnp.bfloat16),
    "opt/mu/up/kernel": shape(64, 128),
    "step": shape(dtype=jnp.int32),
  }
  _, table = place(leaves, sharding.DEFAULT_RULES, mesh8)
  size = {row.path: row.bytes_per_device for row in table.rows}
  assert size["params/up/kernel"] == 64 * 128 * 4 // 4  # tensor and fsdp, 2 each; replica copies
  assert size["aux/queue"] == 64 * 64 * 2 // 2
  assert table.totals() == {
    "params": 64 * 128 + 16,
    "aux": 64 * 64,
    "opt": 64 * 128,
    "step": 4,
  }
  text = str(table)
  assert "params/up/kernel" in text and "fsdp" in text and "opt 0.01 MiB" in text
  assert "(out|down)/kernel' -> 'shard(-2, tensor)|fsdp' matched nothing" in text
  short = table.render(max_rows=1)
  assert "params/up/kernel" in short and "params/small" not in short
  assert "... and 2 smaller rows" in short
  saved = table.to_json()
  assert saved["mesh"] == {"replica": 2, "fsdp": 2, "tensor": 2, "sequence": 1}
  row = next(r for r in saved["rows"] if r["path"] == "params/up/kernel")
  assert row["shape"] == [64, 128] and row["dtype"] == "float32"


# ------------------------------------------------------------------------------------------- state


def init_fn(rng, batch):
  kernel = jax.random.normal(rng, (batch["x"].shape[-1], 128))
  return {"up": {"kernel": kernel}}, {"queue": jnp.zeros((128, 64))}


METHOD = Method(init=init_fn, loss=None, predict={})
BATCH = {"x": shape(16, 64)}


def test_state_is_born_sharded(mesh8):
  tx, key = optax.adam(1.0), jax.random.key(0)
  shapes = state.abstract(METHOD, tx, key, BATCH)
  assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(shapes))
  shardings, _ = sharding.plan(shapes, sharding.DEFAULT_RULES, mesh8)
  out = state.init(METHOD, tx, key, BATCH, shardings)
  assert tree.flatten(shapes).keys() == tree.flatten(out).keys()
  assert {n.split("/")[0] for n in tree.flatten(out)} == {"params", "aux", "opt", "step"}
  for x, s, want in zip(*map(jax.tree.leaves, (out, shapes, shardings))):
    assert (x.shape, x.dtype) == (s.shape, s.dtype)
    assert x.sharding.is_equivalent_to(want, x.ndim)
  assert out.params["up"]["kernel"].addressable_shards[0].data.shape == (32, 64)
  assert out.opt[0].mu["up"]["kernel"].addressable_shards[0].data.shape == (32, 64)
  assert int(out.step) == 0
  one = state.init(METHOD, tx, key, BATCH)
  np.testing.assert_array_equal(out.params["up"]["kernel"], one.params["up"]["kernel"])


# -------------------------------------------------------------------------------------------- ring


@pytest.mark.parametrize(
  "box", [(4, 4, 1), (16, 16, 1), (4, 3, 1), (3, 4, 1), (2, 2, 1), (4, 4, 4), (3, 4, 5), (2, 3, 3)]
)
def test_ring_of_neighbours(box):
  coords = list(itertools.product(*map(range, box)))
  order = axes.neighbours(coords)
  assert sorted(order) == list(range(len(coords)))
  for i, j in zip(order, [*order[1:], order[0]]):
    assert sum(abs(a - b) for a, b in zip(coords[i], coords[j])) == 1


@pytest.mark.parametrize("box", [(3, 3, 1), (1, 8, 1), (1, 1, 1)])
def test_no_ring_keeps_the_order(box):
  coords = list(itertools.product(*map(range, box)))
  assert axes.neighbours(coords) == list(range(len(coords)))
  assert axes.neighbours([(0, 0), (0, 1), (1, 0), (2, 2)]) == [0, 1, 2, 3]  # no box


def test_the_ring_follows_the_torus(monkeypatch):
  """fsdp takes both dimensions of a 4 x 2 grid, row by row; tensor the third."""
  chips = [types.SimpleNamespace(coords=c) for c in itertools.product(range(4), range(2), range(2))]
  grid = np.asarray(chips).reshape(1, 8, 2, 1)
  shape = dict(zip(axes.ALL, grid.shape))
  mesh = types.SimpleNamespace(empty=False, shape=shape, axis_names=axes.ALL, devices=grid)
  monkeypatch.setattr(axes, "get_concrete_mesh", lambda: mesh)
  with axes.ambient(jax.sharding.AbstractMesh(grid.shape, axes.ALL)):
    order = axes.ring(axes.BATCH)
  assert sorted(order) == list(range(8)) and order != list(range(8))
  at = [grid[0, i, 0, 0].coords for i in order]
  assert all(sum(abs(a - b) for a, b in zip(x, y)) == 1 for x, y in zip(at, at[1:] + at[:1]))
  assert axes.ring(axes.BATCH) == [0]  # without a mesh
