"""Saved, restored, resharded, verified; one flipped bit anywhere is found."""

import json
import os
import random
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import make_mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from big_vision_like import checkpoint, tree
from big_vision_like.config import UserError
from big_vision_like.state import State

TX = optax.adamw(1e-3)


def state(step=0, mesh=None, spec=None):
  params = {"w": jnp.arange(64.0).reshape(8, 8) + step, "b": {"c": jnp.full((8,), step * 1.0)}}
  out = State(params, {"queue": jnp.arange(8)}, TX.init(params), jnp.int32(step))
  if mesh is None:
    return out
  return jax.tree.map(
    lambda x: jax.device_put(x, NamedSharding(mesh, spec if x.ndim else P())), out
  )


def abstract(like):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def saved(directory, steps, **kwargs):
  with checkpoint.Checkpointer(directory, **kwargs) as c:
    for step in steps:
      c.save(step, state(step))


def restore(directory, step=None):
  with checkpoint.Checkpointer(directory) as c:
    return c.restore(abstract(state()), step)


def test_round_trip_keeps_structure_and_bits(tmp_path):
  saved(tmp_path, [3])
  found, step = restore(tmp_path)
  assert step == 3 and isinstance(found, State)
  assert jax.tree.structure(found) == jax.tree.structure(state())
  assert_same(found, state(3))
  assert restore(tmp_path / "nothing") is None


def test_onto_another_mesh(tmp_path):
  with checkpoint.Checkpointer(tmp_path) as c:
    c.save(1, state(1, make_mesh(fsdp=8), P("fsdp")))
    other = state(0, make_mesh(fsdp=2, tensor=2), P("tensor"))
    found, _ = c.restore(abstract(other))
  assert found.params["w"].sharding == other.params["w"].sharding
  assert_same(found, state(1))


def test_a_donated_buffer_may_be_overwritten_at_once(tmp_path):
  overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 7, s), donate_argnums=0)
  with checkpoint.Checkpointer(tmp_path) as c:
    now = {"x": jnp.arange(1 << 20, dtype=jnp.float32)}
    c.save(1, now)
    overwrite(now)["x"].block_until_ready()
    c.wait()
    like = {"x": jax.ShapeDtypeStruct((1 << 20,), jnp.float32, sharding=jnp.zeros(1).sharding)}
    found, _ = c.restore(like)
  np.testing.assert_array_equal(found["x"], np.arange(1 << 20, dtype=np.float32))


def test_retention(tmp_path):
  saved(tmp_path, range(1, 8), keep_last=2, keep_every=3)
  assert checkpoint.Checkpointer(tmp_path).steps() == [3, 6, 7]


def flip_a_bit(file, draw):
  data = bytearray(file.read_bytes())
  data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
  file.write_bytes(data)


def test_one_flipped_bit_anywhere(tmp_path):
  """Every file of the newest step and its manifest, one at a time."""
  saved(tmp_path, [1, 2])
  draw = random.Random(0)
  step = tmp_path / "2"
  files = [f for f in step.rglob("*") if f.is_file() and f.stat().st_size]
  for file in [*files, tmp_path / "2.manifest.0"]:
    before = file.read_bytes()
    flip_a_bit(file, draw)
    assert checkpoint.verify(tmp_path, 2) is not None, file
    file.write_bytes(before)
    assert checkpoint.verify(tmp_path, 2) is None


def test_a_bad_step_is_named_set_aside_and_the_one_before_used(tmp_path, caplog):
  saved(tmp_path, [1, 2])
  flip_a_bit(next((tmp_path / "2").rglob("d/*")), random.Random(1))
  found, step = restore(tmp_path)
  assert step == 1
  assert_same(found, state(1))
  assert "checkpoint 2 is bad" in caplog.text
  assert (tmp_path / "bad-2").is_dir() and not (tmp_path / "2").exists()
  saved(tmp_path, [2])  # the step can be saved again
  assert restore(tmp_path)[1] == 2


def test_all_bad_is_an_error_and_nothing_is_touched(tmp_path):
  saved(tmp_path, [1, 2])
  for step in (1, 2):
    flip_a_bit(next((tmp_path / str(step)).rglob("d/*")), random.Random(step))
  before = sorted(str(f) for f in tmp_path.rglob("*"))
  with pytest.raises(UserError, match=r"no good checkpoint.*step 2.*step 1"):
    restore(tmp_path)
  assert sorted(str(f) for f in tmp_path.rglob("*")) == before


def test_killed_before_the_manifest(tmp_path):
  saved(tmp_path, [1, 2])
  (tmp_path / "2.manifest.0").unlink()
  assert restore(tmp_path)[1] == 1


def test_another_state_is_told(tmp_path):
  saved(tmp_path, [1])
  like = abstract(state())
  like.params["w"] = jax.ShapeDtypeStruct((4, 8), jnp.float32, sharding=like.params["w"].sharding)
  with (
    checkpoint.Checkpointer(tmp_path) as c,
    pytest.raises(UserError, match=r"params/w .*\(8, 8\)"),
  ):
    c.restore(like)
  with pytest.raises(UserError, match="no step 5; steps there: 1"):
    restore(tmp_path, 5)


def test_init_from(tmp_path):
  saved(tmp_path / "checkpoints", [4])
  fresh = state(0)
  spec = {"params": {"path": str(tmp_path), "reinit": ["b/c"]}}
  found, table = checkpoint.init_from(fresh, spec)
  assert_same(found.params["w"], state(4).params["w"])
  assert_same(found.params["b"], fresh.params["b"])
  assert "taken  params/w" in table and "left   params/b/c (reinit)" in table
  spec = {"params/b": {"path": f"{tmp_path}::params", "rename": [("b/(.*)", r"\1")]}}
  found, table = checkpoint.init_from(fresh, spec)
  assert_same(found.params["b"], state(4).params["b"])
  assert "unused" in table and int(found.step) == 0
  with pytest.raises(UserError, match="has shape"):
    checkpoint.init_from(fresh, {"params/b/c": f"{tmp_path}::params/w"})


def test_sigterm_is_a_question():
  with checkpoint.PreemptionGuard() as guard:
    assert not guard.requested(1)
    os.kill(os.getpid(), signal.SIGTERM)
    assert guard.requested(2)


def test_manifest_lists_every_file(tmp_path):
  saved(tmp_path, [1])
  body = json.loads(json.loads((tmp_path / "1.manifest.0").read_text())["body"])
  assert set(body["files"]) == {
    str(f.relative_to(tmp_path / "1")) for f in (tmp_path / "1").rglob("*") if f.is_file()
  }
  assert tree.flatten(state()).keys() == checkpoint.saved_shapes(tmp_path / "1").keys()
