"""One step on a mesh equals one step on one device: loss, gradient norm, updated parameters."""

import importlib
import importlib.util
import json
import os
import random
import subprocess
import sys

import jax
import numpy as np
import pytest

from big_vision_like import axes, sharding, step, tree
from big_vision_like import state as state_lib
from big_vision_like import train as trainer
from big_vision_like.config import wrap
from big_vision_like.input import pipeline
from big_vision_like.layers import attention
from tests import tiny
from tests.test_train import losses, start, wait

BATCH = 16
GRAD_CACHE = {"grad_cache": 2, "loss": {"impl": "ring"}}
# Lengths that do not divide by two are among them: class tokens, MAE's visible patches, CoCa's
# texts. Depth 1 where a config says so: what is tested is in every block.
RUNS = {"siglip": {}, "siglip_grad_cache": GRAD_CACHE, "mae": {}, "dino": {}, "coca": {}}
EVERYDAY = ("siglip_grad_cache", "coca")
ALL_AXES = dict(fsdp=2, tensor=2, sequence=2)
MESHES = [
  dict(fsdp=8),
  dict(fsdp=1, tensor=2),
  dict(fsdp=1, sequence=4),
  dict(replica=2, fsdp=4),
  dict(replica=2, fsdp=2, sequence=2),
]


def shallow(node):
  """The config with one block wherever it has several."""
  if not isinstance(node, dict):
    return node
  return {k: 1 if k.endswith("depth") else shallow(v) for k, v in node.items()}


def build(name, shape):
  config = importlib.import_module(f"configs.{name.split('_')[0]}").get_config("smoke")
  config = shallow(config.to_dict()) | RUNS[name]
  config["input"]["batch_size"] = BATCH
  config["total_steps"] = 20
  config["optim"]["schedule"] = dict(name="constant")
  mesh = sharding.make_mesh(shape, jax.devices()[: int(np.prod(list(shape.values())))])
  return trainer.build(wrap(config), num_examples=1000, mesh=mesh)


def one_step(built, state):
  """New parameters and metrics on the host, of a first step from `state` (on the host too)."""
  batches = pipeline.train_batches(built.config.input, batch_size=BATCH, seed=0, start_step=0)
  with jax.set_mesh(built.mesh):
    train_step = step.make_train_step(built.method, built.tx, seed=0, shardings=built.shardings)
    state = jax.device_put(state, built.shardings)
    new, measured = train_step(state, axes.put_batch(built.mesh, next(batches)))
  return tree.flatten(jax.device_get(new.params)), jax.device_get(measured)


def marked(name):
  return pytest.param(name, marks=() if name in EVERYDAY else pytest.mark.slow)


@pytest.fixture(scope="module", params=map(marked, RUNS))
def run(request):
  """The name, the initial state, and what one device makes of it."""
  built = build(request.param, dict(fsdp=1))
  with jax.set_mesh(built.mesh):
    state = state_lib.init(built.method, built.tx, jax.random.key(0), built.batch, built.shardings)
  state = jax.device_get(state)
  return request.param, state, one_step(built, state)


def check(run, shape):
  name, state, (one, measured_one) = run
  many, measured = one_step(build(name, shape), state)
  for key in ("loss", "grad_norm"):
    np.testing.assert_allclose(measured[key], measured_one[key], rtol=1e-5, err_msg=key)
  assert one.keys() == many.keys()
  # Adam divides by the gradient's size: compare parameters at the scale of one update.
  for path in one:
    np.testing.assert_allclose(many[path], one[path], rtol=1e-5, atol=2e-4, err_msg=path)


def test_fsdp_tensor_and_sequence_equal_one_device(run, monkeypatch):
  monkeypatch.setattr(attention, "RING_FROM", 0)  # these sequences are short
  check(run, ALL_AXES)


@pytest.mark.slow  # a compile of every step for each mesh
@pytest.mark.parametrize("ring_from", [0, attention.RING_FROM])
@pytest.mark.parametrize("shape", [*MESHES, ALL_AXES], ids=str)
def test_every_mesh_equals_one_device(run, shape, ring_from, monkeypatch):
  if "sequence" not in shape and ring_from == 0:
    pytest.skip("without split tokens there is no ring")
  monkeypatch.setattr(attention, "RING_FROM", ring_from)
  check(run, shape)


# ------------------------------------------------------------------------- slices and processes


@pytest.mark.slow  # test_train has the two processes of every day
def test_replica_between_two_processes_equals_one_process(tmp_path):
  """Two processes of 4 devices, each a replica with split tokens, against fsdp over 8."""
  port = random.randint(20_000, 50_000)
  shared = dict(JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}", JAX_NUM_PROCESSES="2")
  extra = ", mesh__replica=2, mesh__sequence=2"
  pair = [
    start(tmp_path / "two", 3, devices=4, extra=extra, JAX_PROCESS_ID=str(i), **shared)
    for i in range(2)
  ]
  results = [wait(p) for p in pair]
  assert [code for code, _ in results] == [0, 0], results
  mesh = json.loads((tmp_path / "two" / "sharding.json").read_text())["mesh"]
  assert mesh == dict(replica=2, fsdp=2, tensor=1, sequence=2)
  trainer.train(tiny.config(steps=3), tmp_path / "one")
  np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5)


TPU_SLICES = """
import jax
from jax.experimental import topologies
from jax.sharding import NamedSharding
from big_vision_like import axes, sharding, step
from big_vision_like import train as trainer
from big_vision_like.config import wrap
from tests import tiny

slices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4", num_slices=2)
mesh = sharding.make_mesh(dict(replica=2, fsdp=-1, sequence=2), slices.devices)
assert tuple(mesh.shape.values()) == (2, 4, 1, 2), mesh
assert [{d.slice_index for d in row.flat} for row in mesh.devices] == [{0}, {1}]
built = trainer.build(wrap(tiny.config()), num_examples=1000, mesh=mesh)
rows = NamedSharding(mesh, jax.P(axes.of_batch(mesh)))
batch = {k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows) for k, x in built.batch.items()}
with jax.set_mesh(mesh):
  train_step = step.make_train_step(built.method, built.tx, seed=0, shardings=built.shardings)
  text = train_step.lower(built.abstract, batch).compile().as_text()
# Between slices XLA:TPU sends and receives over the network; within one it has collectives.
assert " send(" in text and " all-gather(" in text
"""


@pytest.mark.slow  # half a minute of XLA:TPU
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_step_compiles_for_two_tpu_slices():
  env = {**os.environ, "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
  run = subprocess.run(
    [sys.executable, "-c", TPU_SLICES], env=env, capture_output=True, text=True, timeout=600
  )
  assert run.returncode == 0, run.stderr[-2000:]
