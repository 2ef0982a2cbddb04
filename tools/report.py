"""One self-contained HTML page of a run, or of several: python -m tools.report --workdir DIR [DIR]

Scores, curves, pictures and examples that evaluators left, the sharding table, the config (of
several runs: where they differ). `report.html` in the first workdir, or `--out`.
"""

import argparse
import base64
import io
import json
import math
import pathlib
from typing import Any

from big_vision_like.config import UserError, flatten, run_main

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf")


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--workdir", nargs="+", required=True, type=pathlib.Path)
  parser.add_argument("--out", type=pathlib.Path)
  args = parser.parse_args(argv)
  runs = [read_run(workdir) for workdir in args.workdir]
  out = args.out or args.workdir[0] / "report.html"
  out.write_text(render(runs))
  print(out)
  return 0


def read_run(workdir: pathlib.Path) -> dict[str, Any]:
  """What a workdir holds; parts that are missing are empty.

  Raises:
    UserError: no `config.json` there.
  """
  if not (workdir / "config.json").exists():
    raise UserError(f"--workdir {workdir}: no config.json there; it is the folder train wrote")
  read = lambda name, empty: (
    json.loads((workdir / name).read_text()) if (workdir / name).exists() else empty
  )
  file = workdir / "metrics.jsonl"
  lines = [json.loads(x) for x in file.read_text().splitlines()] if file.exists() else []
  encode = lambda f: base64.b64encode(f.read_bytes()).decode()
  return {
    "name": workdir.name,
    "config": flatten(read("config.json", {})),
    "lines": lines,
    "step": max((x["step"] for x in lines), default=0),
    "sharding": read("sharding.json", None),
    "pictures": [(f.stem, encode(f)) for f in sorted(workdir.glob("report/*.png"))],
    "examples": [
      (f.stem, json.loads(f.read_text())) for f in sorted(workdir.glob("report/*.json"))
    ],
  }


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
