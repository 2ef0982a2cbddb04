"""Many runs from one file: python -m tools.sweep FILE --launcher local|slurm|gke --out DIR

FILE has `CONFIG` and a function `sweep()` (see big_vision_like/sweeps.py). A run's folder is
DIR/runs/ID, ID made of its content: the same command again runs what is missing, and only that.
`--dry_run` shows what would run, with chip-hours from the FLOPs of each run's step, and writes the
launcher's files. Failed runs are listed with their last lines; exit code 1 where there are any.
"""

import argparse
import pathlib

from big_vision_like.config import UserError, run_main, whole_number
from tools.sweep import cost, gke, local, plan, slurm, table

LAUNCHERS = ("local", "slurm", "gke")


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("file")
  parser.add_argument("--launcher", choices=LAUNCHERS, default="local")
  parser.add_argument("--out", required=True, type=pathlib.Path)
  parser.add_argument("--dry_run", action="store_true", help="show and write, run nothing")
  parser.add_argument("--jobs", type=int, default=1, help="runs at once (slurm: 0, no limit)")
  parser.add_argument("--devices", type=int, default=0, help="local: GPUs of each run")
  parser.add_argument("--metric", default="train/loss", help="that the table shows")
  parser.add_argument("--chip", default="v5e", help="dry run: chip-hours of this one")
  parser.add_argument("--mfu", type=float, default=0.4, help="dry run: share of its peak")
  parser.add_argument("--name", default="sweep", help="slurm, gke: of the job")
  parser.add_argument("--option", action="append", default=[], help="slurm: an #SBATCH argument")
  parser.add_argument("--topology", default="v5e:4x4", help="gke: the slice of a run")
  parser.add_argument("--image", default="", help="gke: the container, with this package in it")
  parser.add_argument("--zone", default="us-central1-a", help="gke: of queued resources")
  args = parser.parse_args(argv)
  whole_number(args.jobs, "--jobs", 0 if args.launcher == "slurm" else 1)
  if args.launcher == "gke" and not args.image:
    raise UserError("--launcher gke needs --image, a container that has this package")
  runs = plan.load(args.file, args.out)
  missing = [run for run in runs if run.state() != plan.DONE]
  if args.dry_run:
    table.dry(runs, [cost.of(run) for run in runs], args.chip, args.mfu)
  failed = _launch(args, runs, missing)
  if not args.dry_run:
    table.show(runs, args.metric)
    table.failures(runs)
  return int(bool(failed))


def _launch(args: argparse.Namespace, runs: list[plan.Run], missing: list[plan.Run]) -> int:
  """Writes the launcher's files and, unless it is a dry run, starts them; returns the failures."""
  if not missing:
    print("every run is done")
  elif args.launcher == "slurm":
    script = slurm.write(missing, args.out, name=args.name, at_once=args.jobs, options=args.option)
    print(script if args.dry_run else slurm.submit(missing, script))
  elif args.launcher == "gke":
    where = gke.parse(args.topology)
    written = gke.write(
      missing, args.out, where=where, image=args.image, name=args.name, zone=args.zone
    )
    print(*written, sep="\n")
  elif not args.dry_run:
    with table.Live(runs, args.metric) as live:
      return local.launch(missing, args.jobs, args.devices, live.update)
  return 0


if __name__ == "__main__":
  run_main(main)
