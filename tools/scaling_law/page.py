"""Plots of the fits as PNG files, and one HTML page that holds them and the numbers."""

import base64
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from big_vision_like.interop import files
from tools.scaling_law import runs as runs_lib
from tools.scaling_law.runs import Run

TEMPLATE = pathlib.Path(__file__).with_name("page.html.j2")


def write(out: pathlib.Path, found: list[Run], result: dict[str, Any], metric: str) -> None:
  """`curves.png`, `isoflop.png`, `compute.png`, `compare.png` where there is one, `index.html`."""
  import jinja2

  plots: dict[str, Callable] = {"curves": _curves, "compute": _compute}
  if result["isoflop"]["budgets"]:
    plots["isoflop"] = _isoflop
  if "compare" in result:
    plots["compare"] = _compare
  pictures = {}
  for name, plot in plots.items():
    data = _png(lambda axes, plot=plot: plot(axes, found, result, metric))
    files.write(out / f"{name}.png", data)
    pictures[name] = base64.b64encode(data).decode()
  environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
  page = environment.from_string(TEMPLATE.read_text()).render(
    metric=metric, result=result, pictures=pictures, raw=json.dumps(result, indent=1)
  )
  files.write(out / "index.html", page.encode())


def _png(draw: Callable[[Any], None]) -> bytes:
  import io

  from matplotlib.figure import Figure

  figure = Figure(figsize=(7, 4.5), layout="constrained")
  draw(figure.subplots())
  data = io.BytesIO()
  figure.savefig(data, format="png", dpi=120, metadata={"Software": None})
  return data.getvalue()


def _curves(axes: Any, found: list[Run], result: dict[str, Any], metric: str) -> None:
  """Every learning curve over compute, coloured by size, and their envelope."""
  from matplotlib import colormaps

  curves = runs_lib.curves(found)
  sizes = np.log([c[0] for c in curves] or [1.0])
  spread = np.ptp(sizes) or 1.0
  for size, x, y in curves:
    axes.plot(x, y, lw=0.8, color=colormaps["viridis"]((np.log(size) - sizes.min()) / spread))
  if result["envelope"]:
    axes.plot(result["envelope"]["flops"], result["envelope"]["loss"], "k--", label="envelope")
    axes.legend()
  axes.set(xscale="log", yscale="log", xlabel="training FLOPs", ylabel=metric)


def _compute(axes: Any, found: list[Run], result: dict[str, Any], metric: str) -> None:
  """Final losses over compute, and the laws of compute alone."""
  columns, loss = runs_lib.columns(found)
  axes.plot(columns["flops"], loss, ".", color="0.4")
  if "optimal" in result:
    best = result["optimal"]
    axes.plot([b["flops"] for b in best], [b["loss"] for b in best], label="optimum of the law")
    axes.legend()
  axes.set(xscale="log", yscale="log", xlabel="training FLOPs", ylabel=metric)


def _isoflop(axes: Any, found: list[Run], result: dict[str, Any], metric: str) -> None:
  """Losses over size, and a parabola for each budget."""
  columns, loss = runs_lib.columns(found)
  axes.plot(columns["params"], loss, ".", color="0.4")
  low, high = columns["params"].min(), columns["params"].max()
  for p in result["isoflop"]["budgets"]:
    x = np.geomspace(max(low, p["params"] / 8), min(high, p["params"] * 8), 50)
    y = p["loss"] * np.exp(p["curvature"] * np.log(x / p["params"]) ** 2)
    axes.plot(x, y, label=f"{p['flops']:.2g} FLOPs")
    axes.plot(p["params"], p["loss"], "k*")
  axes.legend(fontsize="small")
  axes.set(xscale="log", yscale="log", xlabel="parameters", ylabel=metric)


def _compare(axes: Any, found: list[Run], result: dict[str, Any], metric: str) -> None:
  """Loss of each value over the settings, in order."""
  compare = result["compare"]
  keys = [k for k in compare["settings"][0] if k != "loss"]
  rows = sorted(compare["settings"], key=lambda s: [str(s[k]).zfill(24) for k in keys])
  names = [", ".join(f"{s[k]}" for k in keys) for s in rows]
  for value in compare["values"]:
    axes.plot(names, [s["loss"][value] for s in rows], "o-", label=f"{compare['key']} {value}")
  axes.legend()
  axes.tick_params(axis="x", rotation=45)
  axes.set(xlabel=", ".join(keys), ylabel=metric)
