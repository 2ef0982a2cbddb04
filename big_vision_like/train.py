"""The training loop: config -> input -> method -> state -> step -> checkpoint -> evaluators.

    python -m big_vision_like.train --config configs/siglip.py:smoke --workdir DIR

The same command again resumes. Exit codes: 0 done, 2 a mistake of the user (one line on stderr),
3 a NaN or Inf (the batch ids are in DIR/nonfinite_STEP.json, the last good checkpoint is kept),
85 preempted by SIGTERM after saving: run the same command again (launchers requeue on it).
"""

import contextlib
import json
import logging
import math
import os
import pathlib
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import config_flags

from big_vision_like import (
  axes,
  checkpoint,
  cluster,
  flops,
  goodput,
  metrics,
  optim,
  sharding,
  step,
  tree,
)
from big_vision_like import config as config_lib
from big_vision_like import init_from as init
from big_vision_like import state as state_lib
from big_vision_like.compose import batch_spec, make_method, saved_config, teacher_from
from big_vision_like.config import Config, Durations, UserError
from big_vision_like.input import pipeline
from big_vision_like.interop import foreign
from big_vision_like.method import Method, value_and_grad
from big_vision_like.state import State

# Keys that may change between a run and its continuation: where and how it runs, not what.
RUNTIME_KEYS = re.compile(
  r"(mesh|sharding|distributed|log|profile_steps|checkpoint|evals)\b"
  r"|input\.(\w+\.)?(num_threads|num_workers|prefetch|max_bad_fraction)$"
)
NONFINITE_EXIT_CODE = 3
POLL_SECONDS = 5e-4  # how often a loop that waits for data looks whether the devices do too


class NonFiniteError(RuntimeError):
  """A NaN or Inf in loss, gradients or parameters."""


class Built(NamedTuple):
  """Everything that exists before a device is touched, checked against each other."""

  config: Config
  mesh: jax.sharding.Mesh
  method: Method
  tx: Any
  schedules: Mapping[str, Any]
  total_steps: int
  durations: Durations
  batch: dict[str, jax.ShapeDtypeStruct]  # the global batch
  abstract: State  # shapes, dtypes and shardings
  shardings: State
  table: Any


# ----------------------------------------------------------------------------------------- build


def build(config: Any, *, num_examples: int | None, mesh: Any = None) -> Built:
  """Method, optimizer, mesh and shardings, by shapes alone: no array is made, nothing compiles.

  `mesh` may be a `jax.sharding.AbstractMesh`: a pod that is not here.

  Raises:
    UserError: an unknown name or key, shapes or sizes that do not fit each other.
  """
  config = config_lib.wrap(config)
  mesh = sharding.make_mesh(config.mesh) if mesh is None else mesh
  batch_size = config.input.batch_size
  for own in pipeline.named(config.input).values():
    size = own.get("batch_size", batch_size)
    sharding.check_batch(size, mesh, own.path)
    step.check_accumulate(config.grad_accum, size, axes.num_batch_shards(mesh))
  durations = Durations(batch_size, num_examples)
  total_steps = durations(config, "total")
  if not total_steps:
    raise UserError("config.total_steps is missing (or total_epochs, total_examples); how long?")
  durations.total_steps = total_steps

  config = config.timed(durations)
  method = make_method(config)
  if cached := config.get("grad_cache"):
    part = batch_size // config.grad_accum
    step.check_accumulate(cached, part, axes.num_batch_shards(mesh), "grad_cache")
  batch = batch_spec(config.input)
  key = jax.random.key(config.seed)
  with axes.ambient(mesh):
    params, _ = jax.eval_shape(method.init, key, batch)
    tx, schedules = optim.make(
      config.optim, total_steps=total_steps, durations=durations, params=params
    )
    shapes = state_lib.abstract(method, tx, key, batch)
  rules = config.sharding.rules or sharding.DEFAULT_RULES
  shardings, table = sharding.plan(shapes, rules, mesh)
  abstract = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
  )
  return Built(
    config, mesh, method, tx, schedules, total_steps, durations, batch, abstract, shardings, table
  )


def make_evaluators(config: Any, method: Method, mesh: jax.sharding.Mesh) -> dict[str, Any]:
  """`config.evals`: name -> evaluator, its data opened and its names checked."""
  predict = step.jit_predict(method)
  out = {}
  for name, cfg in config_lib.wrap(config).evals.items():
    module = config_lib.find_module("evaluators", cfg.type, f"config.evals.{name}.type")
    if not hasattr(module, "Evaluator"):
      raise UserError(f"config.evals.{name}.type = {cfg.type!r} is a helper, not an evaluator")
    out[name] = module.Evaluator(cfg, predict, mesh)
  return out


def model_flops(built: Built) -> int:
  """FLOPs of loss and gradients of one global batch, without those that only save memory."""
  plain = config_lib.replaced(built.config.to_dict(), remat="none")
  plain.pop("grad_cache", None)
  method = make_method(config_lib.wrap(plain).timed(built.durations))
  rng, count = jax.random.key(0), jax.ShapeDtypeStruct((), jnp.int32)
  shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
  params, aux = jax.tree.map(shape, (built.abstract.params, built.abstract.aux))
  # As if tokens were not split (jax wants as many devices, so `tensor` takes them): padding and
  # scores that are computed again are not the model's.
  mesh = built.mesh.abstract_mesh
  sizes = dict(mesh.shape)
  sizes[axes.TENSOR] *= sizes[axes.SEQUENCE]
  sizes[axes.SEQUENCE] = 1
  with axes.ambient(mesh.update(axis_sizes=tuple(sizes.values()))):
    return flops.count(value_and_grad(method), params, aux, built.batch, rng, count)


# --------------------------------------------------------------------------------------- workdir


def claim_workdir(workdir: pathlib.Path, config: Config, force: bool) -> None:
  """Writes `config.json`, or compares with the one there.

  Raises:
    UserError: the folder cannot be written, or belongs to another config.
  """
  file = workdir / "config.json"
  new = json.loads(json.dumps(config.to_dict(), default=str))
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    if file.exists() and not force:
      old, now = (config_lib.flatten(c) for c in (json.loads(file.read_text()), new))
      differ = [
        f"{k} ({old.get(k, '-')} -> {now.get(k, '-')})"
        for k in sorted(old.keys() | now.keys())
        if old.get(k) != now.get(k) and not RUNTIME_KEYS.match(k)
      ]
      if differ:
        raise UserError(
          f"{workdir} belongs to another config; differing keys: {', '.join(differ)}; "
          "choose another --workdir, or --force_config"
        )
    if jax.process_index() == 0:
      part = file.with_suffix(".part")
      part.write_text(json.dumps(new, indent=2))
      part.replace(file)
    if not os.access(workdir, os.W_OK):
      raise PermissionError(13, "Permission denied")
  except json.JSONDecodeError:
    raise UserError(f"{file} is not JSON; remove it, or choose another --workdir") from None
  except OSError as e:
    raise UserError(f"--workdir {workdir} cannot be written: {e.strerror}") from None


def restore(
  workdir: str | pathlib.Path, step: int | None = None
) -> tuple[Config, Method, State, jax.sharding.Mesh]:
  """A saved run: its config, method, state on all devices here, and mesh. For tools.

  The mesh is the run's where the device count allows it, else all devices on fsdp.
  """
  data = saved_config(workdir)
  fixed = math.prod(n for n in data["mesh"].values() if n != -1)
  fits = -1 in data["mesh"].values() and jax.device_count() % fixed == 0
  if not fits and fixed != jax.device_count():
    data["mesh"] = {"fsdp": -1}
  shards = data["grad_accum"] * jax.device_count()
  for cfg in (data["input"], *data["input"].values()):
    if isinstance(cfg, dict) and "batch_size" in cfg:
      cfg["batch_size"] = math.lcm(cfg["batch_size"], shards)
  source = pipeline.Input(config_lib.wrap(data).input, seed=data["seed"])
  built = build(data, num_examples=source.num_examples)
  with checkpoint.Checkpointer(pathlib.Path(workdir) / "checkpoints") as saved:
    found = saved.restore(built.abstract, step)
  if found is None:
    what = "no checkpoint" if step is None else f"no checkpoint of step {step}"
    raise UserError(f"{workdir}/checkpoints holds {what}")
  return built.config, built.method, found[0], built.mesh


# ------------------------------------------------------------------------------------------ train


def train(config: Any, workdir: str | pathlib.Path, *, force_config: bool = False) -> State:
  """Trains, or goes on training, until `config.total_steps`; returns the final state.

  Raises:
    UserError: before any compile, for whatever the user can set right.
    NonFiniteError: a NaN or Inf; batch ids are dumped, the last good checkpoint stays.
    SystemExit: code 85 after SIGTERM, when the state is saved.
  """
  # Config, input, method: everything that can be wrong is found here.
  ledger = goodput.Ledger()
  config, workdir = config_lib.wrap(config), pathlib.Path(workdir)
  cluster.start(config.get("distributed", {}))
  source = pipeline.Input(config.input, seed=config.seed)
  built = build(config, num_examples=source.num_examples)
  mesh, total = built.mesh, built.total_steps
  evaluators = make_evaluators(config, built.method, mesh)
  eval_every = {n: built.durations(config.evals[n], "every", total) for n in evaluators}
  eval_first = [n for n in evaluators if config.evals[n].get("initial", False)]
  log_every = built.durations(config.log, "every", 50)
  save_every = built.durations(config.checkpoint, "every", total)
  profile_steps = metrics.profile_range(config.get("profile_steps"), total)
  keep = dict(
    keep_last=config.checkpoint.get("keep_last", 3),
    keep_every=built.durations(config.checkpoint, "keep_every"),
  )
  init_from = teacher_from(config, built.abstract) | config.get("init_from", {}).read_all()
  check_example(source, built)
  if unread := config.unread():
    raise UserError(f"nothing reads {', '.join(unread)}; remove or correct the key")
  claim_workdir(workdir, config, force_config)
  ledger.open(workdir)
  lead = jax.process_index() == 0
  peak = metrics.peak_flops(jax.local_devices()[0])
  if lead:
    print(built.table.render(), flush=True)
    (workdir / "sharding.json").write_text(json.dumps(built.table.to_json()))

  with (
    jax.set_mesh(mesh),
    ledger,
    checkpoint.Checkpointer(workdir / "checkpoints", **keep) as saved,
    checkpoint.PreemptionGuard() as guard,
    metrics.Writer(workdir) as writer,
  ):
    # State: restored, else initialised already sharded.
    with ledger.phase("restore"):
      found = saved.restore(built.abstract)
    if found is not None:
      state, start = found
      logging.info("resumed at step %d of %d", start, total)
    else:
      start, key = 0, jax.random.key(config.seed)
      state = state_lib.init(built.method, built.tx, key, built.batch, built.shardings)
      if init_from:
        options = dict(foreign=foreign.read, config=config.to_dict())
        state, table = init.init_from(state, init_from, **options)
        if lead:
          (workdir / "init_from.txt").write_text(table + "\n")
          print(init.told(table), flush=True)
    writer.truncate_after(start)
    if start >= total:
      ledger.finish()
      return state
    ledger.resume(start)
    if found is None and eval_first:  # what the untrained model scores
      with ledger.phase("evaluation"):
        writer.write(0, evaluate({n: evaluators[n] for n in eval_first}, state))

    # Step.
    train_step = step.make_train_step(
      built.method,
      built.tx,
      seed=config.seed,
      shardings=built.shardings,
      accumulate=config.grad_accum,
    )
    flops_per_step = model_flops(built)
    progress = metrics.Progress(
      total,
      start_step=start,
      batch_size=config.input.batch_size,
      flops_per_step=flops_per_step,
      peak_flops=peak and peak * jax.device_count(),
      ledger=ledger,
      enabled=lead,
    )
    ids: dict[int, Any] = {}
    measured: Any = {}
    stream = source.batches(
      batch_size=config.input.batch_size,
      start_step=start,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )
    with (
      pipeline.prefetch_to_device(
        with_ids(stream, start, ids), lambda batch: axes.put_batch(mesh, batch)
      ) as batches,
      metrics.Profiler(workdir, profile_steps, ledger) as profiler,
      progress,
    ):
      for at in range(start + 1, total + 1):
        profiler.before(at, measured)
        batch = next_batch(batches, measured, ledger)
        before, (state, measured) = measured, train_step(state, batch)
        profiler.after(at, measured)
        if at == start + 1:
          ledger.otherwise("compute")
        else:  # looked at while the next one runs: the device never waits for the host
          check_finite(at - 1, before, ids, workdir)
        stop = guard.requested(at)
        last = at == total or stop
        log, save = last or at % log_every == 0, last or at % save_every == 0
        due = [n for n, every in eval_every.items() if at % every == 0 or at == total]
        if log or save or due:
          check_finite(at, measured, ids, workdir)

        if log:
          values = {f"train/{k}": float(v) for k, v in axes.to_host(measured).items()}
          values |= {f"schedule/{k}": float(fn(at - 1)) for k, fn in built.schedules.items()}
          drawn = source.examples(at, config.input.batch_size)
          values |= {f"input/examples/{k}": n for k, n in drawn.items()}
          if at % log_every == 0 or at == total:
            writer.write(at, values)
          said = stream.said()
          writer.scalars(at, progress.update(at, loss=values["train/loss"], said=said))
          writer.scalars(at, stream.counts())

        if due and not stop:
          with ledger.phase("evaluation"):
            scores = evaluate({n: evaluators[n] for n in due}, state)
            writer.write(at, scores)
            for name, value in scores.items():
              progress.say(f"step {at}  {name} {value:.4f}")

        # Saved last: whatever a step logs is on disk before the step can be resumed from.
        if save:
          if last:
            ledger.otherwise("startup")  # nothing that follows is training
          ledger.mark(at)
          with ledger.phase("checkpoint"):
            saved.save(at, state)
            if last:
              saved.wait()
        ledger.beat()
        if stop and at < total:
          logging.warning("SIGTERM: saved step %d, exiting with 85", at)
          raise SystemExit(checkpoint.REQUEUE_EXIT_CODE)
    # Every process: evaluators gather across them, process 0 writes.
    with ledger.phase("evaluation"):
      write_pictures(evaluators, state, workdir, writer, total)
    ledger.finish()
    if lead:
      (workdir / "summary.json").write_text(json.dumps(summary(built, flops_per_step), indent=1))
      print(goodput.told(ledger.seconds()), flush=True)
  return state


def summary(built: Built, flops_per_step: int) -> dict[str, Any]:
  """What a finished run was, for scaling laws: its size, its length, its compute."""
  config, steps = built.config, built.total_steps
  return {
    "params": tree.num_params(built.abstract.params),
    "examples": steps * config.input.batch_size,
    "flops": flops_per_step * steps,
    "steps": steps,
    "batch_size": config.input.batch_size,
    "method": config.method,
    "seed": config.seed,
  }


def next_batch(batches: pipeline.prefetch_to_device, running: Any, ledger: goodput.Ledger) -> Any:
  """The next batch. Only the time after the devices are done with `running` is data wait."""
  while not batches.ready() and not all(x.is_ready() for x in jax.tree.leaves(running)):
    time.sleep(POLL_SECONDS)
  with ledger.phase("data_wait"):
    return next(batches)


def with_ids(batches: Iterator[Any], start: int, ids: dict[int, Any]) -> Iterator[Any]:
  """The same batches; `ids` keeps the indices of the last few, by step."""
  with contextlib.closing(batches):
    for at, batch in enumerate(batches, start + 1):
      several = "index" not in batch
      ids[at] = {k: v["index"] for k, v in batch.items()} if several else batch["index"]
      ids.pop(at - 16, None)
      yield batch


def check_example(source: pipeline.Input, built: Built) -> None:
  """Compares the first example that the input really yields with `config.input.spec`."""
  shapes = lambda batch: {
    k: (v.shape[1:], v.dtype)
    for k, v in config_lib.flatten(batch).items()
    if k.split(".")[-1] != "index"
  }
  found, spec = shapes(source.first()), shapes(built.batch)
  for key in sorted(found.keys() | spec.keys()):
    if found.get(key) != spec.get(key):
      show = lambda x: f"{x[1]}{tuple(x[0])}" if x else "nothing"
      raise UserError(
        f"config.input.pp yields {key}: {show(found.get(key))}, but config.input.spec says "
        f"{show(spec.get(key))}"
      )


def check_finite(at: int, measured: Any, ids: dict[int, Any], workdir: pathlib.Path) -> None:
  """Raises `NonFiniteError` and dumps the batch ids where step `at` produced a NaN or Inf."""
  values = {k: float(v) for k, v in axes.to_host(measured).items()}
  if not (bad := step.nonfinite(values)):
    return
  file = workdir / f"nonfinite_{at}.json"
  if jax.process_count() > 1:
    file = workdir / f"nonfinite_{at}_process{jax.process_index()}.json"
  dump = {k: repr(v) for k, v in values.items()}
  index = jax.tree.map(np.ndarray.tolist, ids[at])
  file.write_text(json.dumps({"step": at, "metrics": dump, "index": index}))
  raise NonFiniteError(f"step {at}: NaN or Inf in {', '.join(bad)}; batch ids in {file}")


def evaluate(evaluators: Mapping[str, Any], state: State) -> dict[str, float]:
  """`{"eval/<name>/<metric>": value}` of each evaluator."""
  return {
    f"eval/{name}/{key}": float(value)
    for name, evaluator in evaluators.items()
    for key, value in evaluator.run(state).items()
  }


def write_pictures(
  evaluators: Mapping[str, Any],
  state: State,
  workdir: pathlib.Path,
  writer: metrics.Writer,
  at: int,
) -> None:
  """What evaluators have to show, for TensorBoard and the report."""
  for name, evaluator in evaluators.items():
    if hasattr(evaluator, "pictures"):
      for key, image in evaluator.pictures(state).items():
        writer.image(at, f"{name}/{key}", image)
        metrics.write_picture(workdir, f"{name}_{key}", image)
    if hasattr(evaluator, "examples"):
      metrics.write_examples(workdir, name, evaluator.examples(state))


# ------------------------------------------------------------------------------------------- main


def main(argv: list[str] | None = None) -> int:
  """The command line; returns the exit code."""
  import sys

  values = flags.FlagValues()
  config_flags.DEFINE_config_file("config", None, "FILE.py:args", flag_values=values)
  flags.DEFINE_string("workdir", None, "where the run lives", flag_values=values)
  flags.DEFINE_bool("force_config", False, "use a workdir of another config", flag_values=values)
  usage = "--config configs/NAME.py[:args] --workdir DIR"
  config_lib.parse_flags(values, argv or sys.argv, usage, needed=("config", "workdir"))
  logging.basicConfig(level=logging.INFO, format="%(message)s")
  logging.getLogger("absl").setLevel(logging.WARNING)
  began = time.time()
  try:
    train(
      values["config"].value, values["workdir"].value, force_config=values["force_config"].value
    )
  except NonFiniteError as e:
    print(f"error: {e}", file=sys.stderr)
    return NONFINITE_EXIT_CODE
  if jax.process_index() == 0:
    print(f"done in {time.time() - began:.0f} s: {values['workdir'].value}")
  return 0


if __name__ == "__main__":
  config_lib.run_main(main)
