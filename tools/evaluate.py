"""Evaluates saved steps of one run or of several: python -m tools.evaluate --workdir DIR [DIR ...]

Prints a table, metrics by runs, the best of each marked where it is known which way is better, then
a line of JSON. `x [low, high]` where an evaluator gives an interval (`x/low` and `x/high` beside
`x`); `--bootstrap 1000` asks for those where the config does not say. `--html` also shows the
hardest mistakes of evaluators that list them.
"""

import argparse
import base64
import json
import math
import pathlib
import re
from typing import Any

import jax

from big_vision_like import metrics, train
from big_vision_like.compose import saved_config
from big_vision_like.config import Config, UserError, run_main, unknown
from tools import report

# Which way is better, by the last part of a metric's name; else higher is.
LOWER = re.compile(
  r"(.*_)?(loss|nll|perplexity|bits|error|mse|rmse|mae|absrel|frechet|uniformity|alignment)|"
  r"(mean|median)_rank"
)
# Neither way: what a model is compared with, and what describes data, features or a fitted probe.
NEITHER = re.compile(
  r"pixels|classifier|frechet_train|nearest(_.*)?|mean_fill|mean_image|baseline|sharpness|"
  r"dim|std|stderr|rank|entropy|C|lr|l2|weight_decay|held_out|all"
)


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--workdir", nargs="+", required=True, type=pathlib.Path)
  parser.add_argument("--step", type=int, help="a saved step; the newest by default")
  parser.add_argument("--evals", help="names of config.evals, by comma; all by default")
  parser.add_argument(
    "--json",
    nargs="?",
    const="-",
    metavar="FILE",
    help="write JSON there; with no FILE, or -, print only a line of it",
  )
  parser.add_argument("--html", type=pathlib.Path, metavar="FILE", help="write a page there")
  parser.add_argument("--mistakes", type=int, default=12, help="of each evaluator on that page")
  parser.add_argument("--bootstrap", type=int, default=0, help="resamples of each mean; 0: none")
  args = parser.parse_args(argv)
  file = pathlib.Path(args.json) if args.json not in (None, "-") else None
  for flag, out in (("--json", file), ("--html", args.html)):
    if out is not None:
      _write(flag, out, None)  # shows before any evaluation that it can be written
  names = _names(args.workdir, args.evals)
  options = dict(mistakes=args.mistakes if args.html else 0, bootstrap=args.bootstrap)
  runs = [evaluate(d, args.step, evals, **options) for d, evals in zip(args.workdir, names)]
  report.name_apart(runs, args.workdir)
  if jax.process_index() == 0:
    if args.json != "-":
      _print(runs)
    if file is None:
      print(json.dumps(_line(runs[0]) if len(runs) == 1 else _data(runs)))
    else:
      _write("--json", file, json.dumps(_data(runs), indent=2))
      print(file)
    if args.html:
      _write("--html", args.html, render(runs))
      print(args.html)
  return 0


def _names(workdirs: list[pathlib.Path], wanted: str | None) -> list[list[str]]:
  """The evaluators to run of each workdir: all, or those of `wanted` that it has."""
  has = [list(saved_config(d)["evals"]) for d in workdirs]
  if wanted is None:
    return has
  known = list(dict.fromkeys(n for names in has for n in names))
  for name in wanted.split(","):
    if name not in known:
      raise unknown("--evals", name, known)
  return [[n for n in wanted.split(",") if n in names] for names in has]


def evaluate(
  workdir: pathlib.Path,
  step: int | None,
  names: list[str],
  *,
  mistakes: int = 0,
  bootstrap: int = 0,
) -> dict[str, Any]:
  """Scores of a run's saved step: name, workdir, step, scores, and mistakes of evaluators.

  Pictures and examples of the evaluators go to the workdir, as in training.
  """
  config, method, state, mesh = train.restore(workdir, step)
  common = {"bootstrap": bootstrap} if bootstrap else {}
  evals = {n: common | config.evals[n].to_dict() for n in names}
  chosen = Config({**config.to_dict(), "evals": evals})
  evaluators = train.make_evaluators(chosen, method, mesh)
  with jax.set_mesh(mesh):
    scores = train.evaluate(evaluators, state)
    with metrics.Writer(workdir) as writer:
      train.write_pictures(evaluators, state, workdir, writer, int(state.step))
    listed = {
      name: evaluator.mistakes(state, mistakes)
      for name, evaluator in evaluators.items()
      if mistakes and hasattr(evaluator, "mistakes")
    }
  scores = {k: v if math.isfinite(v) else None for k, v in scores.items()}
  name, path = workdir.resolve().name, str(workdir)
  return dict(name=name, workdir=path, step=int(state.step), scores=scores, mistakes=listed)


# ------------------------------------------------------------------------------------------ table


def table(runs: list[dict[str, Any]]) -> list[tuple[str, list[tuple[str, bool]]]]:
  """A row a metric: its name, and for each run the value as text and whether it is the best.

  Nothing is the best of one run, of equal values, or where neither way is better.
  """
  names = list(dict.fromkeys(k for run in runs for k in run["scores"]))
  bounds = {f"{n}/{end}" for n in names for end in ("low", "high")}
  rows = []
  for name in names:
    if name in bounds:
      continue
    values = [run["scores"].get(name) for run in runs]
    best = _best(name, values)
    cells = [
      (_cell(run["scores"], name), v is not None and v == best) for run, v in zip(runs, values)
    ]
    rows.append((name.removeprefix("eval/"), cells))
  return rows


def _best(name: str, values: list[float | None]) -> float | None:
  last, known = name.split("/")[-1], {v for v in values if v is not None}
  if len(known) < 2 or NEITHER.fullmatch(last):
    return None
  return min(known) if LOWER.fullmatch(last) else max(known)


def _cell(scores: dict[str, float | None], name: str) -> str:
  """`x`, or `x [low, high]`; `-` where the run has none."""
  if name not in scores:
    return "-"
  value, low, high = (scores.get(k) for k in (name, f"{name}/low", f"{name}/high"))
  text = "nan" if value is None else f"{value:.4f}"
  return text if low is None or high is None else f"{text} [{low:.4f}, {high:.4f}]"


def _print(runs: list[dict[str, Any]]) -> None:
  from rich.console import Console
  from rich.table import Table
  from rich.text import Text

  single = len(runs) == 1
  out = Table(title=f"step {runs[0]['step']}" if single else None)
  out.add_column("metric")
  for run in runs:
    head = "value" if single else f"{run['name']} (step {run['step']})"
    out.add_column(Text(head), justify="right")
  for name, cells in table(runs):
    marked = (Text(f"{v} *", style="bold") if best else Text(v) for v, best in cells)
    out.add_row(Text(name), *marked)
  Console().print(out)


# ------------------------------------------------------------------------------------ JSON, HTML


def _line(run: dict[str, Any]) -> dict[str, Any]:
  return {"step": run["step"], **run["scores"]}


def _data(runs: list[dict[str, Any]]) -> dict[str, Any]:
  """`{"runs": [{"name", "workdir", "step", "scores"}]}`; NaN and Inf are null."""
  return {"runs": [{k: run[k] for k in ("name", "workdir", "step", "scores")} for run in runs]}


def render(runs: list[dict[str, Any]]) -> str:
  """The page: the table, then the mistakes of each run's evaluators."""
  import jinja2

  folder = jinja2.FileSystemLoader(pathlib.Path(__file__).parent)
  template = jinja2.Environment(loader=folder, autoescape=True).get_template("evaluate.html.j2")
  encode = lambda image: base64.b64encode(metrics.encode_png(image)).decode()
  mistakes = [
    (run["name"], name, [m._asdict() | {"image": encode(m.image)} for m in listed])
    for run in runs
    for name, listed in run["mistakes"].items()
  ]
  title = " and ".join(run["name"] for run in runs)
  return template.render(title=title, runs=runs, table=table(runs), mistakes=mistakes)


def _write(flag: str, file: pathlib.Path, text: str | None) -> None:
  """Writes `text`, or with None only sees whether it could."""
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a" if text is None else "w", encoding="utf-8") as f:
      f.write(text or "")
  except OSError as e:
    raise UserError(f"{flag} {file} cannot be written: {e.strerror}") from None


if __name__ == "__main__":
  run_main(main)
