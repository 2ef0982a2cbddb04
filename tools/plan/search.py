"""Which mesh, remat policy and batch size: all that divide, ranked by shape analysis; the best are
then compiled, so that what stands on top is the compiler's word.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from big_vision_like import axes, sharding, tree
from big_vision_like import train as trainer
from big_vision_like.config import UserError, replaced
from big_vision_like.layers.stack import REMAT
from tools.plan import aot, estimate, report, roofline
from tools.plan.chips import Topology

TENSOR = (1, 2, 4, 8)
BATCHES = (0.5, 1, 2, 4)  # of the configured one
SLACK = 1.1  # an estimate this much over the limit may still fit


class Candidate(NamedTuple):
  """One choice; `seconds` and `peak` (bytes of a device) are the compiler's where `compiled`."""

  mesh: dict[str, int]
  remat: str | None
  batch_size: int
  seconds: float
  bound: str
  peak: int
  fits: bool
  compiled: bool

  @property
  def rate(self) -> float:
    """Examples a second."""
    return self.batch_size / self.seconds

  def overrides(self) -> str:
    """What to put on the command line; towers have a remat policy each."""
    mesh = " ".join(f"--config.mesh.{n}={s}" for n, s in self.mesh.items())
    remat = f", remat = {self.remat} on every tower" if self.remat else ""
    return f"{mesh} --config.input.batch_size={self.batch_size}{remat}"


def meshes(topology: Topology) -> Iterator[dict[str, int]]:
  """fsdp x tensor x replica for all devices: replica divides them by 2, 4, ...; between slices or
  nodes first.
  """
  for tensor in TENSOR:
    if topology.size % tensor:
      continue
    rest = topology.size // tensor
    islands = topology.size // topology.per_island
    replicas = {1, rest, islands} | {2**i for i in range(rest.bit_length())}
    for replica in sorted(r for r in replicas if rest % r == 0):
      yield {"replica": replica, "fsdp": rest // replica, "tensor": tensor, "sequence": 1}


def changed(
  config: Mapping[str, Any], mesh: Mapping[str, int], remat: str | None, batch_size: int
) -> dict[str, Any]:
  """The config with these choices; a remat policy goes to every tower that has one."""
  out = config if remat is None else replaced(config, remat=remat)
  return {**out, "mesh": dict(mesh), "input": {**out["input"], "batch_size": batch_size}}


def estimates(
  config: Mapping[str, Any], topology: Topology, progress: aot.Progress
) -> list[Candidate]:
  """All that divide, the fastest that fit first.

  Shapes are traced once for each policy, at two numbers of examples: all grow linearly with it.
  """
  base = config["input"]["batch_size"]
  policies = [None]
  if estimate.has(config, "remat"):
    policies = list(REMAT)
  with progress.stage("shapes and FLOPs of every remat policy"):
    one = {"replica": 1, "fsdp": topology.size, "tensor": 1, "sequence": 1}
    base = math.lcm(base, topology.size * estimate.micro_batches(config))
    whole = {**config, "input": {**config["input"], "batch_size": base}}
    mesh = report.make_mesh({"mesh": one}, topology, None)
    built = trainer.build(whole, num_examples=None, mesh=mesh)
    traced = {}
    for policy in policies:
      small, large = (estimate.shapes(built, rows, policy) for rows in (8, 16))
      traced[policy] = (small, large, estimate.hardware_flops(built, policy))
    represented = estimate.represented_bytes(built)
  params = tree.num_params(built.abstract.params)
  rules = built.config.sharding.rules or sharding.DEFAULT_RULES
  k = estimate.micro_batches(config)

  out = []
  with progress.stage("ranking"):
    for sizes in meshes(topology):
      try:
        _, table = sharding.plan(
          built.abstract, rules, report.make_mesh({"mesh": sizes}, topology, None)
        )
      except UserError:  # a kernel does not divide by this `tensor`
        continue
      shards = math.prod(sizes[n] for n in axes.BATCH)
      for policy, share in itertools.product(policies, BATCHES):
        batch_size = int(config["input"]["batch_size"] * share)
        if batch_size < 1 or batch_size % (shards * k):
          continue
        rows = batch_size // shards // k
        small, large, flops = traced[policy]
        line = lambda a, b, n=rows: max(0, round(a + (b - a) / 8 * (n - 8)))
        kept = line(small.activations, large.activations) // sizes["tensor"]
        sums = line(small.tensor_sums, large.tensor_sums)
        held = table.totals()
        data = tree.num_bytes(built.batch) * batch_size // base // shards
        peak = sum(held.values()) + held["params"] + data + kept
        sent = estimate.collectives(config, table, sums, represented * batch_size // base)
        moved = estimate.hbm_bytes(config, table, params, kept)
        at = roofline.times(topology, sizes, flops * batch_size / base, moved, sent)
        fits = peak <= topology.chip.hbm
        found = Candidate(sizes, policy, batch_size, at.step, at.bound, peak, fits, False)
        if peak <= SLACK * topology.chip.hbm:
          out.append(found)
  # Of equals the one with fewer bytes first.
  return sorted(out, key=lambda c: (-c.rate, c.peak))


def compiled(
  config: Mapping[str, Any],
  candidate: Candidate,
  topology: Topology,
  devices: Any,
  progress: aot.Progress,
) -> Candidate:
  """The same choice, as the compiler sees it."""
  choice = changed(config, candidate.mesh, candidate.remat, candidate.batch_size)
  built = trainer.build(choice, num_examples=None, mesh=report.make_mesh(choice, topology, devices))
  step = aot.compile_step(built, progress)
  if isinstance(step, aot.Refused):
    rest = sum(built.table.totals().values()) if step.only_temporaries else 0
    return candidate._replace(peak=step.needs + rest, fits=False, compiled=True)
  peak = step.memory.peak
  if step.cost is None:  # the times stay estimates
    return candidate._replace(peak=peak, fits=peak <= topology.chip.hbm, compiled=True)
  flops = estimate.hardware_flops(built)
  at = roofline.times(topology, built.table.mesh, flops, step.cost.hbm_bytes, step.cost.collectives)
  return candidate._replace(
    seconds=at.step,
    bound=at.bound,
    peak=peak,
    fits=peak <= topology.chip.hbm,
    compiled=True,
  )


def search(
  config: Mapping[str, Any], topology: Topology, devices: Any, top: int, progress: aot.Progress
) -> list[Candidate]:
  """All that may fit, the fastest first: those that were compiled and fit, then the estimated, then
  those that the compiler refused.

  At most `2 * top` compiles, until `top` of them fit.
  """
  ranked = estimates(config, topology, progress)
  done: list[Candidate] = []
  if devices is not None:
    for candidate in ranked[: 2 * top]:
      if sum(c.fits for c in done) == top:
        break
      done.append(compiled(config, candidate, topology, devices, progress))
  rest = ranked[len(done) :]
  order = lambda c: (not (c.fits and c.compiled), not c.fits, -c.rate)
  return sorted(done + rest, key=order)


def render(found: list[Candidate], topology: Topology, most: int = 20) -> str:
  """A table of the best ones."""
  if not found:
    return f"nothing fits on {topology}, by shape analysis; a larger pod, or a smaller batch"
  head = ("examples/s", "step", "bound by", "peak", "fits", "remat", "batch", "mesh", "by")
  rows = [head]
  for c in found[:most]:
    mesh = " x ".join(f"{n}={s}" for n, s in c.mesh.items() if s > 1) or "one device"
    rows.append(
      (
        f"{c.rate:,.0f}",
        report.time(c.seconds),
        c.bound,
        report.size(c.peak),
        "yes" if c.fits else "no",
        c.remat or "-",
        f"{c.batch_size:,}",
        mesh,
        "compiler" if c.compiled else "estimate",
      )
    )
  widths = [max(len(r[i]) for r in rows) for i in range(len(head))]
  lines = ["  ".join(x.ljust(w) for x, w in zip(r, widths)).rstrip() for r in rows]
  more = [f"... and {len(found) - most} more in --json"] if len(found) > most else []
  return "\n".join([f"{len(found)} choices on {topology}", *lines, *more, found[0].overrides()])
