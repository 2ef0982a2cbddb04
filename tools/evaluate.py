"""Evaluates a saved step: python -m tools.evaluate --workdir DIR [--step N] [--evals a,b]"""

import argparse
import json
import pathlib

import jax

from big_vision_like import metrics, train
from big_vision_like.config import Config, run_main, unknown


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--step", type=int, help="a saved step; the newest by default")
  parser.add_argument("--evals", help="names of config.evals, by comma; all by default")
  parser.add_argument("--json", action="store_true", help="only a line of JSON")
  args = parser.parse_args(argv)
  config, method, state, mesh = train.restore(args.workdir, args.step)
  known = list(config.evals)
  names = args.evals.split(",") if args.evals else known
  for name in names:
    if name not in known:
      raise unknown("--evals", name, known)
  chosen = Config({**config.to_dict(), "evals": {n: config.evals[n].to_dict() for n in names}})
  evaluators = train.make_evaluators(chosen, method, mesh)
  with jax.set_mesh(mesh):
    scores = train.evaluate(evaluators, state)
    with metrics.Writer(pathlib.Path(args.workdir)) as writer:
      train.write_pictures(evaluators, state, pathlib.Path(args.workdir), writer, int(state.step))
  if jax.process_index() == 0:
    if not args.json:
      _table(scores, int(state.step))
    print(json.dumps({"step": int(state.step), **scores}))
  return 0


def _table(scores: dict[str, float], step: int) -> None:
  from rich.console import Console
  from rich.table import Table

  table = Table(title=f"step {step}")
  table.add_column("metric")
  table.add_column("value", justify="right")
  for name, value in scores.items():
    table.add_row(name.removeprefix("eval/"), f"{value:.4f}")
  Console().print(table)


if __name__ == "__main__":
  run_main(main)
