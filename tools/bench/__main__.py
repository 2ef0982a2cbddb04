"""Benchmarks against peers: python -m tools.bench --suite {checkpoint,gpu,input,loss,step}

    [--only REGEX] [--repeats N] [--json FILE] [--smoke] [--xla-flags FLAGS]

Each row is min / median / max of the seconds of ours and of the peer, run in turns, and the ratio
of the medians with the smallest and largest of the pairs. Peers come with the extras `parity` and
`bench`; those of the input may live in other environments: BENCH_PEERS=/a/bin/python:/b/bin/python.
"""

import argparse
import importlib
import json
import os
import pathlib
import sys

import jax

from big_vision_like.config import UserError, run_main, unknown
from tools.bench import harness, table

SUITES = ("checkpoint", "gpu", "input", "loss", "step")


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    prog="python -m tools.bench",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--suite", required=True, help=", ".join(SUITES))
  parser.add_argument("--only", default="", help="a regular expression over the names of rows")
  parser.add_argument("--repeats", type=int, help="counted runs of each, 7 by default")
  parser.add_argument("--json", type=pathlib.Path, help="a file to write")
  parser.add_argument("--smoke", action="store_true", help="smallest sizes, to see that it runs")
  parser.add_argument("--xla-flags", default="", help="added to XLA_FLAGS")
  args = parser.parse_args(argv)
  if args.suite not in SUITES:
    raise unknown("--suite", args.suite, SUITES)
  repeats = args.repeats if args.repeats is not None else 2 if args.smoke else harness.REPEATS
  options = harness.Options(args.only, repeats, args.smoke, args.xla_flags)
  if args.json is not None and not args.json.resolve().parent.is_dir():
    raise UserError(f"--json {args.json}: {args.json.parent} is not a folder")

  # All before the first device is asked for, and before torch starts its threads.
  suite = importlib.import_module(f"tools.bench.{args.suite}")
  # Waiting threads of torch's pool would otherwise spin and take the cores from jax's turn.
  for key, value in {"OMP_WAIT_POLICY": "PASSIVE", **getattr(suite, "ENV", {})}.items():
    os.environ.setdefault(key, value)
  if options.xla_flags:
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {options.xla_flags}".strip()
  if jax.config.jax_num_cpu_devices == -1 and hasattr(suite, "DEVICES"):
    jax.config.update("jax_num_cpu_devices", suite.DEVICES)

  machine = harness.machine(options)
  rows = []
  with table.Table(args.suite, machine, sys.stdout) as shown:
    for row in suite.rows(options):
      row = row._replace(target=None) if options.smoke else row  # targets are about full sizes
      rows.append(row)
      shown.add(row)
  if not rows:
    names = ", ".join(options.names) or "-"
    raise UserError(f"--only {args.only!r} finds no row of suite {args.suite}; rows: {names}")
  if args.json is not None:
    found = {"suite": args.suite, "machine": machine, "rows": [row.to_json() for row in rows]}
    args.json.write_text(json.dumps(found, indent=2) + "\n")
  return 0


if __name__ == "__main__":
  run_main(main)
