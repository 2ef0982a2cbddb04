"""What a training step needs and costs on a pod, before one is rented.

    python -m tools.plan --config configs/siglip.py[:args] --topology v5e:16x16 [--slices N]
        [--json] [--search [--top K]] [--config.a.b=1 ...]

TPUs (v4, v5e, v5p, v6e) by XLA's own ahead-of-time compile, which needs libtpu but no TPU; GPU pods
(`h100:32x8`, nodes x GPUs) by shape analysis; `cpu:8` compiles for simulated devices.
"""

import contextlib
import json
import os
import sys

from absl import flags
from ml_collections import config_flags

from big_vision_like.config import parse_flags, run_main
from tools.plan import chips


def main(argv: list[str] | None = None) -> int:
  """The command line; returns the exit code."""
  values = flags.FlagValues()
  config_flags.DEFINE_config_file("config", None, "FILE.py:args", flag_values=values)
  flags.DEFINE_string("topology", None, "v5e:16x16, h100:32x8, cpu:8", flag_values=values)
  flags.DEFINE_integer("slices", 1, "TPU slices, joined by the network", flag_values=values)
  flags.DEFINE_bool("json", False, "only JSON on stdout", flag_values=values)
  flags.DEFINE_bool("search", False, "rank meshes, remat, batch sizes", flag_values=values)
  flags.DEFINE_integer("top", 3, "how many of --search to compile", flag_values=values)
  prepare()
  from tools.plan import aot, report, search

  argv = argv or sys.argv
  if {"--help", "-h"} & set(argv[1:]):
    print(__doc__)
    return 0
  usage = "--config configs/NAME.py[:args] --topology v5e:16x16"
  parse_flags(values, argv, usage, needed=("config", "topology"))
  names = ("config", "topology", "slices", "json", "search", "top")
  config, name, slices, as_json, searching, top = (values[n].value for n in names)
  topology = chips.parse(name, slices)
  simulate(topology)
  devices = None if topology.chip.kind == "gpu" else chips.devices(topology)

  config, progress = config.to_dict(), aot.Progress()
  if searching:
    found = search.search(config, topology, devices, top, progress)
    rows = [c._asdict() | {"examples_per_second": c.rate} for c in found]
    print(json.dumps(rows) if as_json else search.render(found, topology))
    return 0
  plan = report.make(config, topology, devices, progress)
  text = plan.pop("sharding_text")
  print(json.dumps(plan) if as_json else report.render({**plan, "sharding_text": text}))
  return 0


def prepare() -> None:
  """Nothing here runs on an accelerator: libtpu only compiles, and asks no metadata server."""
  os.environ["TPU_SKIP_MDS_QUERY"] = "1"
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  # Any valid values: without them libtpu fills the terminal with warnings.
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
  os.environ["JAX_PLATFORMS"] = "cpu"
  import jax

  jax.config.update("jax_platforms", "cpu")


def simulate(topology: chips.Topology) -> None:
  """As many CPU devices as `cpu:N` asks for, unless this process has used jax before."""
  import jax

  if topology.chip.kind == "cpu":
    with contextlib.suppress(RuntimeError):
      jax.config.update("jax_num_cpu_devices", topology.size)


if __name__ == "__main__":
  run_main(main)
