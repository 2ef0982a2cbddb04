"""Measures ours and its peers side by side and says whether a target is met.

A suite is a module of this package with `rows(options) -> Iterator[Row]`, and, where it needs them,
`DEVICES` (simulated CPU devices) and `ENV` (environment variables, set unless they are already).
Machines are noisy: only runs that alternate (ours, peer, ours, peer, ...) within one process are
compared, by the ratio of their medians.
"""

import dataclasses
import importlib.metadata
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from big_vision_like.config import UserError, whole_number

NOT_INSTALLED = "peer not installed: pip install -e ."
EXTRAS = dict.fromkeys(("tensorflow", "torchvision", "webdataset"), "bench")  # others are of parity
MIN_REPEATS, REPEATS = 5, 7
WARM_UP = 2  # runs of each that are not counted: the compile, and one more

Run = Callable[[], Any]


class Target(NamedTuple):
  """A bound of the table of targets.

  Attributes:
    row: of that table.
    gate: what has to be reached.
    stretch: what is aimed at, or None.
    at_most: the value has to stay below the bounds; otherwise it has to reach them.
  """

  row: str
  gate: float
  stretch: float | None = None
  at_most: bool = False

  def met(self, value: float) -> bool:
    return value <= self.gate if self.at_most else value >= self.gate

  def stretch_met(self, value: float) -> bool | None:
    if self.stretch is None:
      return None
    return value <= self.stretch if self.at_most else value >= self.stretch


class Spread(NamedTuple):
  """Of repeated measurements."""

  min: float
  median: float
  max: float

  @classmethod
  def of(cls, values: Sequence[float]) -> "Spread":
    return cls(min(values), statistics.median(values), max(values))


class Row(NamedTuple):
  """One line of the table.

  Attributes:
    name: unique in its suite; what `--only` looks at.
    what: what `value` is, in words.
    value: the figure that the target is about; None where it could not be taken.
    ours, peer: seconds of a run.
    ratios: of the pairs of runs, peer / ours.
    target: None where there is none.
    values: constants and further figures such as bytes, by name.
    note: why there is no figure, or what to know about it.
  """

  name: str
  what: str
  value: float | None
  ours: Spread | None = None
  peer: Spread | None = None
  ratios: Spread | None = None
  target: Target | None = None
  values: Mapping[str, Any] = {}
  note: str = ""

  def to_json(self) -> dict[str, Any]:
    """Plain dicts, numbers and strings; says whether the target, where there is one, is met."""
    plain = {k: v._asdict() if hasattr(v, "_asdict") else v for k, v in self._asdict().items()}
    if self.target is not None and self.value is not None:
      plain["gate_met"] = self.target.met(self.value)
      plain["stretch_met"] = self.target.stretch_met(self.value)
    return plain | {"values": dict(self.values)}


@dataclasses.dataclass
class Options:
  """What the command line says.

  Attributes:
    only: a regular expression; rows whose names it does not find are neither built nor run.
    repeats: counted runs of each.
    smoke: the smallest sizes: shows that everything runs, measures nothing.
    xla_flags: set for this process; rows of the gpu suite show them.
    clock: seconds; tests bring their own.
    names: of all rows that were asked for so far, wanted or not, once each.
  """

  only: str = ""
  repeats: int = REPEATS
  smoke: bool = False
  xla_flags: str = ""
  clock: Callable[[], float] = time.perf_counter
  names: dict[str, None] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    whole_number(self.repeats, "--repeats", 1 if self.smoke else MIN_REPEATS)
    try:
      re.compile(self.only)
    except re.error as e:
      raise UserError(f"--only {self.only!r} is not a regular expression: {e}") from None

  def wants(self, name: str) -> bool:
    """Whether the row is to be measured: ask before anything expensive is built for it."""
    self.names[name] = None
    return re.search(self.only, name) is not None


# ---------------------------------------------------------------------------------------- timing


def alternate(runs: Mapping[str, Run], options: Options) -> dict[str, list[float]]:
  """Seconds of each run, taken in turns: a b c, a b c, ...

  A run ends when the arrays it returns are ready; one that works outside of jax blocks by itself.
  The warm-up is not counted.
  """
  for run in runs.values():
    for _ in range(WARM_UP):
      jax.block_until_ready(run())
  seconds: dict[str, list[float]] = {name: [] for name in runs}
  for _ in range(options.repeats):
    for name, run in runs.items():
      began = options.clock()
      jax.block_until_ready(run())
      seconds[name].append(options.clock() - began)
  return seconds


def matmul(options: Options) -> tuple[Run, int]:
  """A large matrix product and its FLOPs: what this machine's peak is measured by.

  In f32 on a CPU, bf16 elsewhere. Random numbers: on products of constants a GPU draws less power
  and clocks higher than it ever will again.
  """
  on_cpu = jax.default_backend() == "cpu"
  size = 256 if options.smoke else 1024 if on_cpu else 16_384
  dtype = jnp.float32 if on_cpu else jnp.bfloat16
  left, right = jax.random.normal(jax.random.key(0), (2, size, size), jnp.float32).astype(dtype)
  product = jax.jit(jnp.dot)
  return lambda: product(left, right), 2 * size**3


def compare(
  options: Options,
  name: str,
  ours: Callable[[], Run],
  peers: Mapping[str, Callable[[], Run]],
  *,
  targets: Mapping[str, Target] | None = None,
  values: Mapping[str, Any] | None = None,
) -> Iterator[Row]:
  """A row `<name>/<peer>` for each peer that `options` wants: how many times faster ours is.

  Args:
    options: of the command line.
    name: of the rows.
    ours: builds our run.
    peers: name -> what builds its run. One that raises ImportError becomes a row that says so.
    targets: peer -> bound of the ratio.
    values: constants of all rows.
  """
  what, targets, values = "x faster than the peer", targets or {}, dict(values or {})
  runs, lacking = {}, []
  for peer, build in peers.items():
    if options.wants(f"{name}/{peer}"):
      try:
        runs[peer] = build()
      except ImportError as e:
        note = f"{NOT_INSTALLED}[{EXTRAS.get(e.name, 'parity')}] ({e.name or e})"
        lacking.append(Row(f"{name}/{peer}", what, None, target=targets.get(peer), note=note))
  yield from lacking
  if not runs:
    return
  seconds = alternate({"ours": ours(), **runs}, options)
  mine = Spread.of(seconds["ours"])
  for peer in runs:
    pairs = [p / o for p, o in zip(seconds[peer], seconds["ours"])]
    other, target = Spread.of(seconds[peer]), targets.get(peer)
    ratio = other.median / mine.median
    yield Row(f"{name}/{peer}", what, ratio, mine, other, Spread.of(pairs), target, values)


def share_of_peak(
  options: Options,
  name: str,
  ours: Run,
  flops: int,
  peak: tuple[Run, int],
  *,
  target: Target | None = None,
  values: Mapping[str, Any] | None = None,
) -> Row:
  """A row: FLOP/s of ours over those of the best matrix product, which takes its turn beside it.

  Args:
    options: of the command line; ask `options.wants(name)` before ours is built.
    name: of the row.
    ours: a run of `flops` FLOPs.
    flops: as the model asks for them, without recomputation.
    peak: `matmul(...)`.
    target: bound of the share, 0 to 1.
    values: constants of the row.
  """
  run, product_flops = peak
  seconds = alternate({"ours": ours, "peak": run}, options)
  mine, best = Spread.of(seconds["ours"]), product_flops / min(seconds["peak"])
  rate = flops / mine.median
  values = {**(values or {}), "flop_per_s": rate, "matmul_flop_per_s": best}
  what = "share of the matmul peak"
  return Row(name, what, rate / best, mine, target=target, values=values)


# --------------------------------------------------------------------------------------- machine


def version(package: str) -> str | None:
  """Of an installed distribution, or None; imports nothing."""
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def machine(options: Options) -> dict[str, Any]:
  """What the rows were measured on, with the best of a few matrix products (`matmul`).

  Simulated CPU devices share the cores: one product uses all of them.
  """
  run, flops = matmul(options)
  seconds = alternate({"peak": run}, options)["peak"]
  return {
    "device": jax.local_devices()[0].device_kind,
    "devices": jax.device_count(),
    "cores": len(os.sched_getaffinity(0)),
    "matmul_flop_per_s": flops / min(seconds),
    "xla_flags": os.environ.get("XLA_FLAGS", ""),
    **{name: version(name) for name in ("jax", "torch", "transformers", "open_clip_torch")},
  }
