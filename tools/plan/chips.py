"""The chips that `plan` knows, each number with its source, and topologies such as `v5e:16x16`."""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from big_vision_like import metrics
from big_vision_like.config import UserError, unknown, whole_number

GIB = 2**30


class Chip(NamedTuple):
  """One accelerator; bandwidths in bytes a second, one direction.

  Attributes:
    name: as in `--topology`.
    kind: `tpu`, `gpu` or `cpu`.
    peak: dense bf16 FLOP/s.
    hbm: bytes of device memory that a program may use.
    hbm_bandwidth: of device memory.
    links: ports of the fast interconnect (ICI, NVLink counted as one).
    link: of one port, one direction.
    network: a chip's share of its host's network cards (between slices or nodes).
    source: where the numbers come from.
  """

  name: str
  kind: str
  peak: float
  hbm: int
  hbm_bandwidth: float
  links: int
  link: float
  network: float
  source: str

  @property
  def interconnect(self) -> float:
    """Bytes a second that a chip sends over all its links at once."""
    return self.links * self.link


def _tpu(name, kind, hbm_gib, hbm_bandwidth, links, link, network, source):
  peak = metrics.PEAKS[kind]
  return Chip(name, "tpu", peak, int(hbm_gib * GIB), hbm_bandwidth, links, link, network, source)


def _gpu(name, hbm_gb, hbm_bandwidth, link, network, source):
  # What jax preallocates with XLA_PYTHON_CLIENT_MEM_FRACTION=.90; its default is .75.
  hbm = int(0.9 * hbm_gb * 1e9)
  peak = metrics.PEAKS[name.upper()]
  return Chip(name, "gpu", peak, hbm, hbm_bandwidth, 1, link, network, source)


# A port sends its share of half the bidirectional bandwidth of its chip. What XLA refuses
# to exceed is a little less than the capacity (v5e: 15.75 of 16 GiB).
_CLOUD = "docs.cloud.google.com/tpu/docs/"
CHIPS = {
  c.name: c
  for c in (
    _tpu(
      "v4", "TPU v4", 31.75, 1200e9, 6, 50e9, 6.25e9,
      f"{_CLOUD}v4: 32 GiB, 1,200 GB/s; Jouppi et al., arXiv:2304.01433: 6 links of 50 GB/s; "
      "network assumed as v5p's 50 Gbit/s a chip",
    ),
    _tpu(
      "v5e", "TPU v5e", 15.75, 819e9, 4, 50e9, 3.125e9,
      f"{_CLOUD}v5e: 16 GB, 819 GB/s, 400 GB/s both ways over 4 ports, 2 x 100 Gbit/s per 8 chips",
    ),
    _tpu(
      "v5p", "TPU v5p", 95, 2765e9, 6, 100e9, 6.25e9,
      f"{_CLOUD}v5p: 95 GiB, 2,765 GB/s, 1,200 GB/s both ways over 6 ports, 50 Gbit/s a chip",
    ),
    _tpu(
      "v6e", "TPU v6e", 31.25, 1600e9, 4, 100e9, 12.5e9,
      f"{_CLOUD}v6e: 32 GB, 1,600 GB/s, 3,200 Gbit/s sent over 4 ports, 4 x 200 Gbit/s per 8 chips",
    ),
    _gpu(
      "a100", 80, 2039e9, 300e9, 25e9,
      "NVIDIA A100 80GB SXM data sheet: 2,039 GB/s, NVLink 600 GB/s both ways; "
      "DGX A100: 8 x 200 Gbit/s",
    ),
    _gpu(
      "h100", 80, 3350e9, 450e9, 50e9,
      "NVIDIA H100 SXM data sheet: 3.35 TB/s, NVLink 900 GB/s both ways; DGX H100: 8 x 400 Gbit/s",
    ),
    _gpu(
      "h200", 141, 4800e9, 450e9, 50e9,
      "NVIDIA H200 SXM data sheet: 141 GB, 4.8 TB/s, NVLink 900 GB/s both ways; "
      "DGX H200: 8 x 400 Gbit/s",
    ),
    # So that the whole path runs anywhere; round numbers, nobody's machine.
    Chip("cpu", "cpu", 1e12, 16 * GIB, 100e9, 1, 10e9, 1e9, "made up: simulated devices"),
  )
}  # fmt: skip


class Topology(NamedTuple):
  """`--topology v5e:16x16 --slices 2`: `shape` of one slice (GPUs: nodes x GPUs a node)."""

  chip: Chip
  shape: tuple[int, ...]
  slices: int = 1

  @property
  def size(self) -> int:
    return self.slices * math.prod(self.shape)

  @property
  def per_island(self) -> int:
    """Devices that the fast interconnect joins: those of a slice, or of a node."""
    return self.shape[-1] if self.chip.kind == "gpu" else math.prod(self.shape)

  def __str__(self) -> str:
    shape = "x".join(map(str, self.shape))
    return f"{self.chip.name}:{shape}" + (f" x {self.slices} slices" if self.slices > 1 else "")


def parse(text: str, slices: int = 1) -> Topology:
  """`v5e:16x16`, `v5p:8x8x16`, `h100:32x8` (nodes x GPUs), `cpu:8`.

  Raises:
    UserError: another form, an unknown chip, a number of dimensions that the chip does not have.
  """
  name, colon, shape = text.partition(":")
  if name not in CHIPS:
    raise unknown("--topology: chip", name, tuple(CHIPS))
  chip = CHIPS[name]
  dims = {"gpu": 2, "cpu": 1}.get(chip.kind, chip.links // 2)
  example = {1: f"{name}:8", 2: f"{name}:4x8", 3: f"{name}:4x4x8"}[dims]
  if not colon or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) or shape.count("x") != dims - 1:
    what = "nodes x GPUs of a node" if chip.kind == "gpu" else f"{dims} dimension(s)"
    raise UserError(f"--topology {text!r}: expected {name}:{what}, such as {example}")
  whole_number(slices, "--slices")
  if slices > 1 and chip.kind == "gpu":
    raise UserError("--slices is for TPUs; the nodes of a GPU pod are the first number: h100:32x8")
  return Topology(chip, tuple(int(x) for x in shape.split("x")), slices)


def crosses(topology: Topology, mesh: dict[str, int], axes: Sequence[str]) -> bool:
  """Whether devices along these mesh axes lie in different slices or nodes.

  Devices are laid out in order, the last mesh axis fastest; between slices goes `replica`.
  """
  inner = 1
  for name in reversed(list(mesh)):
    inner *= mesh[name]
    if name in axes and inner > topology.per_island:
      return True
  return False


def devices(topology: Topology) -> Any:
  """Devices to compile for: a TPU pod's description, or simulated ones of this process.

  Raises:
    UserError: no libtpu, a topology that libtpu does not know, too few simulated devices.
  """
  import jax

  if topology.chip.kind == "cpu":
    found = jax.devices("cpu")
    if len(found) < topology.size:
      raise UserError(
        f"--topology {topology}: this process simulates {len(found)} devices; set "
        f"JAX_NUM_CPU_DEVICES={topology.size}"
      )
    return found[: topology.size]
  from jax.experimental import topologies

  shape = "x".join(map(str, topology.shape))
  options = {"num_slices": topology.slices} if topology.slices > 1 else {}
  if topology.chip.name == "v4":  # one device a chip, as jax has it on the machine itself
    options["chip_config_name"] = "megacore"
  try:
    found = topologies.get_topology_desc(
      platform="tpu", topology_name=f"{topology.chip.name}:{shape}", **options
    )
  except Exception as e:  # libtpu and PJRT raise many kinds
    if any(word in str(e) for word in ("TPU support not installed", "libtpu.so")):
      raise UserError(
        f"--topology {topology} compiles with libtpu, which is not here "
        f'({str(e).splitlines()[0][:80]}); pip install -e ".[tpu]"'
      ) from None
    raise UserError(f"--topology {topology}: {str(e).splitlines()[0][:200]}") from None
  return found.devices
