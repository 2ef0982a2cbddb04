"""Compiles a training step for devices that are not here, and reads off what it needs."""

import contextlib
import re
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from big_vision_like import axes, sharding, step
from big_vision_like.train import Built
from tools.plan import hlo

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Memory(NamedTuple):
  """Bytes of one device, as the compiler laid them out."""

  arguments: int
  outputs: int  # that do not reuse a donated argument
  temporaries: int
  code: int

  @property
  def peak(self) -> int:
    return sum(self)


class Compiled(NamedTuple):
  """A compiled function: memory of a device, cost of a run, seconds it took to compile.

  `cost` is None where jaxlib cannot print what libtpu compiled (an older one does not know some
  asynchronous instructions of v5p).
  """

  memory: Memory
  cost: hlo.Cost | None
  seconds: float


class Refused(NamedTuple):
  """XLA found that the program does not fit.

  Attributes:
    needs: bytes, of everything or, where `only_temporaries`, besides the arguments.
    limit: bytes there are.
    only_temporaries: which of the two the compiler said.
    seconds: until it gave up.
  """

  needs: int
  limit: int
  only_temporaries: bool
  seconds: float


def compile_step(built: Built, progress: "Progress") -> Compiled | Refused:
  """The step that `train` would run, donated state and all."""
  train_step = step.make_train_step(
    built.method,
    built.tx,
    seed=built.config.seed,
    shardings=built.shardings,
    accumulate=built.config.grad_accum,
  )
  return _compile(train_step, (built.abstract, _batch(built)), built.mesh, "the step", progress)


def compile_loss(built: Built, progress: "Progress") -> Compiled | Refused | None:
  """What compares the whole batch (`Method.split`), value and gradient with respect to the
  representations; None for a method whose loss looks at one example at a time.
  """
  if built.method.split is None:
    return None
  represent, compare = built.method.split
  rng = jax.random.key(0)
  rows = sharding.batch_sharding(built.mesh)
  at = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows)
  with axes.ambient(built.mesh):
    z = jax.eval_shape(represent, built.abstract.params, built.abstract.aux, built.batch, rng)

  def value_and_grad(params, aux, z, batch, count):
    fn = lambda z: compare(params, aux, z, batch, rng, count)
    return jax.value_and_grad(fn, has_aux=True)(z)

  args = (built.abstract.params, built.abstract.aux, jax.tree.map(at, z), _batch(built))
  count = jax.ShapeDtypeStruct((), jnp.int32)
  return _compile(jax.jit(value_and_grad), (*args, count), built.mesh, "the loss alone", progress)


def _batch(built: Built) -> dict[str, jax.ShapeDtypeStruct]:
  rows = sharding.batch_sharding(built.mesh)
  put = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows)
  return jax.tree.map(put, built.batch)


def _compile(
  fn: Any, args: tuple, mesh: jax.sharding.Mesh, what: str, progress: "Progress"
) -> Compiled | Refused:
  began = time.monotonic()
  with axes.ambient(mesh), progress.stage(f"compiling {what} for {mesh.size} devices"):
    try:
      compiled = fn.lower(*args).compile()
    except jax.errors.JaxRuntimeError as e:
      if (refused := refusal(str(e), time.monotonic() - began)) is None:
        raise
      return refused
    try:
      cost = hlo.Module(compiled.as_text()).cost({n: mesh.shape[n] for n in mesh.axis_names})
    except jax.errors.JaxRuntimeError:
      cost = None
  stats = compiled.memory_analysis()
  memory = Memory(
    stats.argument_size_in_bytes,
    stats.output_size_in_bytes - stats.alias_size_in_bytes,
    stats.temp_size_in_bytes,
    stats.generated_code_size_in_bytes,
  )
  return Compiled(memory, cost, time.monotonic() - began)


def refusal(message: str, seconds: float = 0.0) -> Refused | None:
  """What XLA says of a program that does not fit, or None where it speaks of something else."""
  number = r"([\d.]+)([KMGT]?)"
  size = lambda x, unit: int(float(x) * _UNITS[unit])
  for pattern in (
    rf"\({number}\) exceeds available HBM \({number}\)",
    rf"Used {number} of {number} hbm",
  ):
    if found := re.search(pattern, message):
      needs, limit = size(*found.groups()[:2]), size(*found.groups()[2:])
      return Refused(needs, limit, "temporaries" in message, seconds)
  return None


class Progress:
  """A line on stderr that says what goes on and for how long: in place on a terminal, else anew
  every `every` seconds.
  """

  def __init__(self, every: float = 10.0):
    self.every = every
    self._lock = threading.Lock()

  @contextlib.contextmanager
  def stage(self, what: str) -> Iterator[None]:
    began, done = time.monotonic(), threading.Event()
    live = sys.stderr.isatty()

    def show(end: str) -> None:
      with self._lock:
        start = "\r" if live else ""
        sys.stderr.write(f"{start}{what}: {time.monotonic() - began:.0f} s{end}")
        sys.stderr.flush()

    def tick() -> None:
      while not done.wait(0.5 if live else self.every):
        show(" " if live else "\n")

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
      yield
    finally:
      done.set()
      thread.join()
      show("\n")
