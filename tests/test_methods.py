"""The contract, for every file in `methods/`: found by folder, the next method costs nothing."""

import importlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from big_vision_like import axes, checkpoint, sharding, step, tree
from big_vision_like import state as state_lib
from big_vision_like import train as trainer
from big_vision_like.config import replaced, wrap
from big_vision_like.input import pipeline

ROOT = pathlib.Path(__file__).parents[1]
NAMES = sorted(f.stem for f in (ROOT / "big_vision_like" / "methods").glob("[a-z]*.py"))
SHAPES = [
  dict(replica=1, fsdp=1, tensor=1, sequence=1),
  dict(replica=1, fsdp=4, tensor=2, sequence=1),
]


def smoke(name):
  c = importlib.import_module(f"configs.{name}").get_config("smoke")
  c.input.batch_size = 16
  c.total_steps = 20
  c.optim.schedule = dict(name="constant")
  return c


def on_mesh(name, shape, change=lambda c: c):
  """Built, initial state, jitted step and the first batch, on the first devices."""
  config = wrap(change(smoke(name).to_dict()))
  mesh = sharding.make_mesh(shape, jax.devices()[: int(np.prod(list(shape.values())))])
  built = trainer.build(config, num_examples=1000, mesh=mesh)
  with jax.set_mesh(mesh):
    state = state_lib.init(built.method, built.tx, jax.random.key(0), built.batch, built.shardings)
    train_step = step.make_train_step(built.method, built.tx, seed=0, shardings=built.shardings)
  host = next(pipeline.train_batches(config.input, batch_size=16, seed=0, start_step=0))
  return built, state, train_step, axes.put_batch(mesh, host)


@pytest.fixture(scope="module", params=NAMES)
def runs(request):
  return [on_mesh(request.param, shape) for shape in SHAPES]


def shapes(tree_):
  return jax.tree.map(lambda x: (x.shape, str(x.dtype)), tree_)


def test_one_step_on_eight_devices_equals_one(runs):
  after = []
  for built, state, train_step, batch in runs:
    copy = jax.tree.map(jnp.copy, state)
    with jax.set_mesh(built.mesh):
      new, measured = train_step(copy, batch)
    after.append((jax.device_get(new), jax.device_get(measured)))
  (one, measured_one), (eight, measured_eight) = after
  np.testing.assert_allclose(measured_eight["loss"], measured_one["loss"], rtol=1e-5)
  np.testing.assert_allclose(measured_eight["grad_norm"], measured_one["grad_norm"], rtol=1e-5)
  a, b = tree.flatten(one.params), tree.flatten(eight.params)
  assert a.keys() == b.keys()
  # Adam divides by the gradient's size: compare parameters at the scale of one update.
  for name in a:
    np.testing.assert_allclose(b[name], a[name], rtol=1e-5, atol=2e-4, err_msg=name)


def test_falls_keeps_its_shapes_and_compiles_once(runs):
  built, state, train_step, batch = runs[0]
  before, seen = shapes(state), []
  with jax.set_mesh(built.mesh):
    state = jax.tree.map(jnp.copy, state)
    for _ in range(20):
      state, measured = train_step(state, batch)
      assert not step.nonfinite(jax.device_get(measured))
      seen.append(float(measured[built.method.progress]))
  # Means of three: methods that draw noise or masks do not fall with every step.
  assert np.mean(seen[-3:]) < np.mean(seen[:3])
  assert shapes(state) == before
  assert train_step._cache_size() == 1
  assert int(state.step) == 20


def test_resumes_to_the_bit(runs, tmp_path):
  built, state, train_step, batch = runs[0]
  with jax.set_mesh(built.mesh), checkpoint.Checkpointer(tmp_path / "checkpoints") as saved:
    state, _ = train_step(jax.tree.map(jnp.copy, state), batch)
    saved.save(1, state)
    saved.wait()
    restored, at = saved.restore(built.abstract)
    assert at == 1
    state, restored = train_step(state, batch)[0], train_step(restored, batch)[0]
  a, b = tree.flatten(jax.device_get(state)), tree.flatten(jax.device_get(restored))
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.slow  # two minutes over all methods
def test_loss_needs_no_jit(runs):
  built, state, _, batch = runs[0]
  args = (state.params, state.aux, batch, jax.random.key(0), state.step)
  with jax.set_mesh(built.mesh):
    value, (_, metrics) = jax.jit(built.method.loss)(*args)
    plain, (_, plain_metrics) = built.method.loss(*args)
  np.testing.assert_allclose(plain, value, rtol=1e-5)
  assert metrics.keys() == plain_metrics.keys()
  assert not metrics.keys() & {"grad_norm", "param_norm"}


@pytest.mark.slow  # another compile of every step
@pytest.mark.parametrize("name", NAMES)
def test_works_in_bfloat16(name):
  change = lambda config: replaced(config, dtype="bfloat16")
  built, state, train_step, batch = on_mesh(name, SHAPES[0], change)
  with jax.set_mesh(built.mesh):
    new, measured = train_step(state, batch)
  measured = jax.device_get(measured)
  assert not step.nonfinite(measured)
  for leaf in jax.tree.leaves(new.params):
    assert leaf.dtype == jnp.float32


def test_large_leaves_are_split(runs):
  built, state, _, _ = runs[1]
  for name, leaf in tree.flatten(state.params).items():
    spec = leaf.sharding.spec
    assert leaf.sharding == tree.flatten(built.shardings.params)[name]
    if leaf.size >= 4 * sharding.MIN_SIZE:
      assert any(s is not None for s in spec), name


def test_predict_functions_run(runs):
  built, state, _, batch = runs[0]
  rows = NamedSharding(built.mesh, P())
  for name, fn in step.jit_predict(built.method).items():
    with jax.set_mesh(built.mesh):
      out = fn(state.params, state.aux, jax.device_put(batch, rows), jax.random.key(0))
    for leaf in jax.tree.leaves(out):
      assert np.isfinite(np.asarray(leaf, np.float32)).all(), name
