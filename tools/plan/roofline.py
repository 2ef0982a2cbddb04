"""The shortest time a step can take: the largest of its arithmetic, its memory and its messages."""

from collections.abc import Sequence
from typing import NamedTuple

from tools.plan.chips import Topology, crosses
from tools.plan.hlo import Collective

ASSUMPTIONS = (
  "arithmetic at the dense bf16 peak, spread evenly over all devices",
  "device memory at its full bandwidth; tiles are not padded",
  "ring collectives: (n - 1) / n of the bytes, twice that for an all-reduce; all links of a chip "
  "at once, one link for a permute",
  "mesh axes that leave a slice or node run at a chip's share of its host's network",
  "the three overlap perfectly, nothing waits for input, evaluation or checkpoints",
)


class Times(NamedTuple):
  """Seconds a step. `network` is the part of messages between slices or nodes."""

  compute: float
  hbm: float
  interconnect: float
  network: float

  @property
  def step(self) -> float:
    return max(self)

  @property
  def bound(self) -> str:
    return max(self._fields, key=lambda n: getattr(self, n))


def times(
  topology: Topology,
  mesh: dict[str, int],
  flops: float,
  hbm_bytes: float,
  collectives: Sequence[Collective],
) -> Times:
  """The roofline of one step.

  Args:
    topology: the chips and how they are joined.
    mesh: axis -> size.
    flops: on all devices, recomputation included.
    hbm_bytes: on one device.
    collectives: on one device.
  """
  chip, near, far = topology.chip, 0.0, 0.0
  for c in collectives:
    if crosses(topology, mesh, c.axes):
      far += c.wire_bytes / chip.network
    else:
      one = chip.link if c.kind == "collective-permute" else chip.interconnect
      near += c.wire_bytes / one
  return Times(flops / topology.size / chip.peak, hbm_bytes / chip.hbm_bandwidth, near, far)


class Run(NamedTuple):
  """What follows from the step's time for the whole run; all bounds."""

  step_seconds: float
  examples_per_second: float
  mfu: float  # model FLOPs against the peak of all chips, 0 to 1
  days: float
  chip_hours: float


def run(
  topology: Topology, seconds: float, batch_size: int, total_steps: int, model_flops: float
) -> Run:
  """Of `total_steps` steps that take `seconds` each."""
  total = seconds * total_steps
  return Run(
    seconds,
    batch_size / seconds,
    model_flops / seconds / (topology.size * topology.chip.peak),
    total / 86400,
    total / 3600 * topology.size,
  )
