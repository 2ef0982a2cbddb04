"""One self-contained HTML page of a run, or of several: python -m tools.report --workdir DIR [DIR]

Scores, curves, where the time went, pictures and examples that evaluators left, the sharding table,
the config (of several runs: where they differ). `report.html` in the first workdir, or `--out`.
What a run does not have yet is named on the page and left out.
"""

import argparse
import base64
import io
import json
import math
import pathlib
from typing import Any

from big_vision_like import goodput
from big_vision_like.config import UserError, flatten, run_main

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf")


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--workdir", nargs="+", required=True, type=pathlib.Path)
  parser.add_argument("--out", type=pathlib.Path)
  args = parser.parse_args(argv)
  runs = [read_run(workdir) for workdir in args.workdir]
  name_apart(runs, args.workdir)
  out = args.out or args.workdir[0] / "report.html"
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(render(runs), encoding="utf-8")
  except OSError as e:
    raise UserError(f"--out {out} cannot be written: {e.strerror}") from None
  print(out)
  return 0


def read_run(workdir: pathlib.Path) -> dict[str, Any]:
  """What a workdir holds; parts that are missing are empty, and named in `missing`.

  Raises:
    UserError: no `config.json` there, or a file that is not JSON.
  """
  if not (workdir / "config.json").exists():
    raise UserError(f"--workdir {workdir}: no config.json there; it is the folder train wrote")
  lines = read_lines(workdir / "metrics.jsonl")
  sharding, account = workdir / "sharding.json", goodput.read(workdir / "goodput.json")
  encode = lambda f: base64.b64encode(f.read_bytes()).decode()
  run = {
    "name": workdir.resolve().name,
    "config": flatten(read_json(workdir / "config.json")),
    "lines": lines,
    "step": max((x["step"] for x in lines), default=0),
    "sharding": read_json(sharding) if sharding.exists() else None,
    "seconds": account["seconds"] if account else {},
    "pictures": [(f.stem, encode(f)) for f in sorted(workdir.glob("report/*.png"))],
    "examples": [(f.stem, read_json(f)) for f in sorted(workdir.glob("report/*.json"))],
  }
  parts = {
    "lines": "metrics.jsonl",
    "sharding": "sharding.json",
    "seconds": "goodput.json",
    "pictures": "report/*.png",
    "examples": "report/*.json",
  }
  return run | {"missing": [file for key, file in parts.items() if not run[key]]}


def read_json(file: pathlib.Path) -> Any:
  """The file's JSON; `UserError` where it is none."""
  try:
    return json.loads(file.read_text())
  except ValueError:
    raise UserError(f"{file} is not JSON; the run was cut off while it wrote it") from None


def read_lines(file: pathlib.Path) -> list[dict[str, Any]]:
  """The lines of a `metrics.jsonl`; the last may be half-written, in a run that goes on or died."""
  lines = file.read_text().splitlines() if file.exists() else []
  out = []
  for number, line in enumerate(lines, 1):
    try:
      out.append(json.loads(line))
    except ValueError:
      if number < len(lines):
        raise UserError(f"{file}:{number} is not JSON: {line[:60]!r}") from None
  return out


def name_apart(runs: list[dict[str, Any]], workdirs: list[pathlib.Path]) -> None:
  """Runs in folders of the same name are called by their whole path."""
  names = [run["name"] for run in runs]
  for run, workdir in zip(runs, workdirs):
    if names.count(run["name"]) > 1:
      run["name"] = str(workdir)


def series(run: dict[str, Any], name: str) -> tuple[list[int], list[float]]:
  """Steps and values at which a metric was written."""
  points = [(x["step"], x[name]) for x in run["lines"] if x.get(name) is not None]
  return [s for s, _ in points], [v for _, v in points]


def render(runs: list[dict[str, Any]]) -> str:
  """The page."""
  import jinja2

  folder = jinja2.FileSystemLoader(pathlib.Path(__file__).parent)
  template = jinja2.Environment(loader=folder, autoescape=True).get_template("report.html.j2")
  names = sorted({k for run in runs for x in run["lines"] for k in x if k != "step"})
  last = lambda run, name: f"{v[-1]:.4g}" if (v := series(run, name)[1]) else ""
  keys = sorted({k for run in runs for k in run["config"]})
  rows = [(k, [str(run["config"].get(k, "")) for run in runs]) for k in keys]
  return template.render(
    title=" and ".join(run["name"] for run in runs),
    runs=runs,
    scores=[(n, [last(run, n) for run in runs]) for n in names],
    curves=[(n, curve(runs, n)) for n in names if any(len(series(r, n)[0]) > 1 for r in runs)],
    goodput=[(run["name"], goodput.goodput(run["seconds"])) for run in runs if run["seconds"]],
    times=[
      (why, [run["seconds"].get(key, 0) for run in runs if run["seconds"]])
      for key, why in goodput.CATEGORIES.items()
    ],
    config=rows if len(runs) == 1 else [row for row in rows if len(set(row[1])) > 1],
  )


def curve(runs: list[dict[str, Any]], name: str) -> str:
  """A metric over steps, one line a run, as base64 SVG."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(3.5, 2.3), layout="constrained")
  axes = figure.subplots()
  for run, colour in zip(runs, COLOURS * math.ceil(len(runs) / len(COLOURS))):
    axes.plot(*series(run, name), color=colour, label=run["name"], marker=".", markersize=3)
  axes.set_title(name, fontsize=9)
  axes.tick_params(labelsize=7)
  axes.grid(alpha=0.3)
  if len(runs) > 1:
    axes.legend(fontsize=7)
  out = io.BytesIO()
  figure.savefig(out, format="svg")
  return base64.b64encode(out.getvalue()).decode()


if __name__ == "__main__":
  run_main(main)
