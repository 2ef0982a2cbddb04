"""Saved, restored, resharded, verified; one flipped bit anywhere is found."""

import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import threading
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import make_mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from big_vision_like import checkpoint, init_from, tree
from big_vision_like import method as method_lib
from big_vision_like.config import UserError
from big_vision_like.state import State
from big_vision_like.step import make_train_step
from tools.bench import checkpoint as bench
from tools.bench.harness import Options

ROOT = pathlib.Path(__file__).parents[1]
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


def test_a_step_that_is_being_saved_may_be_donated(tmp_path):
  """Saved in the background while further steps are written over its buffers, on 8 devices."""
  mesh = make_mesh(fsdp=8)
  one, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("fsdp"))

  def loss(params, aux, batch, rng, count):
    return jnp.mean((params["w"] - batch["x"]) ** 2), (aux, {})

  params = {"w": jax.device_put(jnp.arange(1 << 20, dtype=jnp.float32), split)}
  batch = {"x": jax.device_put(jnp.zeros(1 << 20), split)}
  now = State(params, {}, TX.init(params), jax.device_put(jnp.int32(0), one))
  method = method_lib.Method(init=None, loss=loss, predict={})
  train_step = make_train_step(method, TX, seed=0)
  for _ in range(2):
    now, _ = train_step(now, batch)
  like, expected = abstract(now), jax.tree.map(np.copy, jax.device_get(now))
  with checkpoint.Checkpointer(tmp_path) as c:
    c.save(2, now)
    for i in range(5):
      old, (now, _) = now, train_step(now, batch)
      # A CPU buffer that the save still holds is not given away; all later ones are.
      assert old.params["w"].is_deleted() or i == 0
    jax.block_until_ready(now)
    found, at = c.restore(like)
  assert at == 2 and int(found.step) == 2
  assert_same(found, expected)
  assert not np.array_equal(now.params["w"], expected.params["w"])


def test_checksums_do_not_block(tmp_path, monkeypatch):
  """`save` is back before its manifest is begun, and the step does not count till it is there."""
  go, write = threading.Event(), checkpoint._write_manifest
  monkeypatch.setattr(checkpoint, "_write_manifest", lambda *a: (go.wait(60), write(*a)))
  with checkpoint.Checkpointer(tmp_path) as c:
    c.save(1, state(1))
    assert not go.is_set() and c.steps() == []
    go.set()
    c.wait()
    assert c.steps() == [1] and checkpoint.verify(tmp_path, 1) is None


def test_checksums_of_every_piece(tmp_path, monkeypatch):
  monkeypatch.setattr(checkpoint, "_PIECE_BYTES", 100)
  data = {"a": random.Random(0).randbytes(250), "b": b"", "c": random.Random(1).randbytes(200)}
  for name, content in data.items():
    (tmp_path / name).write_bytes(content)
  found = checkpoint._checksums(tmp_path, list(data))
  pieces = {
    name: [zlib.crc32(d[i : i + 100]) for i in range(0, len(d), 100)] for name, d in data.items()
  }
  assert found == {name: [len(data[name]), pieces[name]] for name in data}
  assert [len(sums) for _, sums in found.values()] == [3, 0, 2]


def test_bench_rows():
  names = [row.name for row in bench.rows(Options(smoke=True, repeats=1))]
  assert names == ["save/blocked", "save/total"]
  [row] = bench.rows(Options(smoke=True, repeats=1, only="total"))
  assert row.value == pytest.approx(row.ours.median / row.peer.median)


def test_retention(tmp_path):
  saved(tmp_path, range(1, 8), keep_last=2, keep_every=3)
  assert checkpoint.Checkpointer(tmp_path).steps() == [3, 6, 7]
  assert len(list(tmp_path.iterdir())) == 6  # a folder and a manifest each
  with pytest.raises(UserError, match=r"checkpoint.keep_last = 0; expected a number >= 1"):
    checkpoint.Checkpointer(tmp_path, keep_last=0)


def test_set_aside_steps_do_not_count(tmp_path):
  saved(tmp_path, [1, 2, 3])
  flip_a_bit(next((tmp_path / "3").rglob("d/*")), random.Random(1))
  assert restore(tmp_path)[1] == 2
  saved(tmp_path, [4], keep_last=2)
  assert checkpoint.Checkpointer(tmp_path).steps() == [2, 4]
  assert (tmp_path / "bad-3").is_dir() and (tmp_path / "bad-3.manifest.0").is_file()


def test_a_step_that_is_there_stays_as_it_is(tmp_path):
  saved(tmp_path, [1])
  with checkpoint.Checkpointer(tmp_path) as c:
    c.save(1, state(9), block=True)
    c.save(2, state(2))
    c.save(2, state(9))
  for step in (1, 2):
    assert_same(restore(tmp_path, step)[0], state(step))


def test_block_returns_when_the_step_is_there(tmp_path):
  with checkpoint.Checkpointer(tmp_path) as c:
    c.save(1, state(1), block=True)
    assert c.latest() == 1 and checkpoint.verify(tmp_path, 1) is None


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


def test_any_flipped_bit_of_the_manifest(tmp_path):
  saved(tmp_path, [1])
  file = tmp_path / "1.manifest.0"
  whole = file.read_bytes()
  for at in range(len(whole)):
    data = bytearray(whole)
    data[at] ^= 1 << at % 8
    file.write_bytes(data)
    assert checkpoint.verify(tmp_path, 1) is not None, at


@pytest.mark.parametrize("harm", ["cut", "longer", "missing", "extra"])
def test_files_of_another_length_or_number(tmp_path, harm):
  saved(tmp_path, [1])
  file = next((tmp_path / "1").rglob("d/*"))
  if harm == "missing":
    file.unlink()
  elif harm == "extra":
    file.with_name("more").touch()
  else:
    data = file.read_bytes()
    file.write_bytes(data[:-1] if harm == "cut" else data + b"0")
  assert ("more" if harm == "extra" else file.name) in checkpoint.verify(tmp_path, 1)


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


def test_a_step_without_a_manifest_is_bad(tmp_path):
  saved(tmp_path, [1, 2])
  (tmp_path / "2.manifest.0").unlink()
  assert restore(tmp_path)[1] == 1


# Killed before the hashes are written, and after them, before the rename.
@pytest.mark.parametrize("moment", ["_write_manifest", "_until"])
def test_sigkill_between_commit_and_rename(tmp_path, moment):
  code = f"""if True:
    import os, signal, sys
    import jax.numpy as jnp
    from big_vision_like import checkpoint
    c = checkpoint.Checkpointer(sys.argv[1])
    c.save(1, {{"x": jnp.zeros(4)}}, block=True)
    checkpoint.{moment} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    c.save(2, {{"x": jnp.ones(4)}}, block=True)
  """
  out = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, timeout=60)
  assert out.returncode == -signal.SIGKILL
  assert (tmp_path / "saving-2").is_dir()
  like = {"x": jax.ShapeDtypeStruct((4,), jnp.float32, sharding=jnp.zeros(1).sharding)}
  with checkpoint.Checkpointer(tmp_path) as c:
    found, step = c.restore(like)
    assert step == 1 and found["x"][0] == 0
    c.save(2, {"x": jnp.full(4, 2.0)}, block=True)
    assert c.restore(like)[0]["x"][0] == 2
  assert sorted(f.name for f in tmp_path.iterdir()) == ["1", "1.manifest.0", "2", "2.manifest.0"]


def test_sigkill_in_mid_write(tmp_path):
  """Orbax's own unfinished folder is not listed, and the next save of that step replaces it."""
  (tmp_path / "saving-1.orbax-checkpoint-tmp").mkdir(parents=True)
  (tmp_path / "saving-1.orbax-checkpoint-tmp" / "half").write_text("x")
  assert restore(tmp_path) is None
  saved(tmp_path, [1])
  assert sorted(f.name for f in tmp_path.iterdir()) == ["1", "1.manifest.0"]


def test_two_processes_agree(tmp_path):
  """Each hashes its share; a bit flipped in the other's share is seen by both."""
  code = """if True:
    import logging, pathlib, sys
    import jax
    directory, port, index = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=index)
    import jax.numpy as jnp
    from jax.experimental import multihost_utils
    from jax.sharding import NamedSharding, PartitionSpec as P
    from big_vision_like import checkpoint
    mesh = jax.make_mesh((4,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, P("fsdp"))
    make = jax.jit(lambda x: {"x": jnp.arange(8.0) + x}, out_shardings={"x": sharding})
    like = {"x": jax.ShapeDtypeStruct((8,), jnp.float32, sharding=sharding)}
    with checkpoint.Checkpointer(directory, keep_last=2) as c:
      for step in (1, 2, 2, 3):
        c.save(step, make(step))
      c.wait()
      multihost_utils.sync_global_devices("saved")
      assert c.steps() == [2, 3], c.steps()
      if index == 0:
        file = max((f for f in (directory / "3").rglob("d/*")), key=lambda f: f.stat().st_size)
        file.write_bytes(file.read_bytes()[:-1])
      multihost_utils.sync_global_devices("harmed")
      found, step = c.restore(like)
      assert step == 2 and found["x"].addressable_shards[0].data[0] == 2 + 4 * index, found
  """
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = str(s.getsockname()[1])
  env = {**os.environ, "JAX_PLATFORMS": "cpu"}
  runs = [
    subprocess.Popen(
      [sys.executable, "-c", code, str(tmp_path), port, str(i)],
      cwd=ROOT,
      env=env,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in (0, 1)
  ]
  try:
    errors = [r.communicate(timeout=60)[1] for r in runs]
  finally:
    for r in runs:
      r.kill()
  assert [r.returncode for r in runs] == [0, 0], errors
  assert (tmp_path / "bad-3").is_dir() and (tmp_path / "2.manifest.1").is_file()


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
  found, table = init_from.init_from(fresh, spec)
  assert_same(found.params["w"], state(4).params["w"])
  assert_same(found.params["b"], fresh.params["b"])
  assert "taken  params/w" in table and "left   params/b/c (reinit)" in table
  spec = {"params/b": {"path": f"{tmp_path}::params", "rename": [("b/(.*)", r"\1")]}}
  found, table = init_from.init_from(fresh, spec)
  assert_same(found.params["b"], state(4).params["b"])
  assert "unused" in table and int(found.step) == 0
  with pytest.raises(UserError, match="has shape"):
    init_from.init_from(fresh, {"params/b/c": f"{tmp_path}::params/w"})


def test_load_reads_a_workdir_or_a_step(tmp_path, caplog):
  saved(tmp_path / "checkpoints", [1, 2])
  found = checkpoint.load(tmp_path, "params")
  assert found.keys() == {"w", "b/c"} and isinstance(found["w"], np.ndarray)
  for again in (
    checkpoint.load(tmp_path / "checkpoints" / "1", "params/b"),
    checkpoint.load(tmp_path, "params/b", step=1),
  ):
    assert again.keys() == {"c"}
    np.testing.assert_array_equal(again["c"], state(1).params["b"]["c"])
  whole = checkpoint.load(tmp_path)
  assert whole.keys() == tree.flatten(state()).keys()
  assert_same(whole, tree.flatten(state(2)))
  with pytest.raises(UserError, match="nothing below 'param'"):
    checkpoint.load(tmp_path, "param")
  flip_a_bit(next((tmp_path / "checkpoints" / "2").rglob("d/*")), random.Random(0))
  np.testing.assert_array_equal(checkpoint.load(tmp_path, "params/w")[""], state(1).params["w"])
  assert "checkpoint 2 is bad" in caplog.text
  with pytest.raises(UserError, match=r"no good checkpoint of step 2 \(step 2:"):
    checkpoint.load(tmp_path, step=2)


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
