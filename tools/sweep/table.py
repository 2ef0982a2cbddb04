"""What a sweep has done and has to do, as tables for a terminal."""

import time
from collections.abc import Sequence
from typing import Any

from tools.sweep import plan
from tools.sweep.cost import Cost
from tools.sweep.plan import Run

REFRESH_SECONDS = 2.0
SHOWN = 40
"""Runs in the live table: those that run come first."""


def dry(runs: Sequence[Run], costs: Sequence[Cost], chip: str, mfu: float) -> None:
  """Every run with its cost, and the sum."""
  keys = plan.differing(list(runs))
  hours = [c.chip_hours(chip, mfu) for c in costs]
  rows = [
    [r.id, r.state(), *(str(r.overrides.get(k, "")) for k in keys)]
    + [f"{c.params:,}", f"{c.examples:,}", f"{c.flops:.3g}", f"{h:.3g}"]
    for r, c, h in zip(runs, costs, hours)
  ]
  heads = ["run", "state", *keys, "parameters", "examples", "FLOPs", f"{chip}-hours"]
  _print(_table(heads, rows))
  open_hours = sum(h for r, h in zip(runs, hours) if r.state() != plan.DONE)
  print(f"{len(runs)} runs, {sum(hours):.3g} {chip}-hours at {mfu:.0%} of the peak", end="")
  print(f"; {open_hours:.3g} of them are still to be run")


def show(runs: Sequence[Run], metric: str, running: set[str] = frozenset()) -> None:
  """The table once."""
  _print(_states(runs, metric, running))


def failures(runs: Sequence[Run]) -> None:
  """Failed runs and their last lines."""
  for run in runs:
    if run.state() == plan.FAILED:
      print(f"failed {run.id} (exit code {run.exit_code()}), {run.folder / 'log.txt'}:")
      for line in run.last_lines():
        print(f"    {line}")


class Live:
  """The table, drawn again while runs go on."""

  def __init__(self, runs: Sequence[Run], metric: str):
    from rich.live import Live as RichLive

    self.runs, self.metric, self.began = runs, metric, time.monotonic()
    self._live = RichLive(auto_refresh=False, transient=True)
    self._next, self._first_done = 0.0, sum(r.state() == plan.DONE for r in runs)

  def __enter__(self) -> "Live":
    self._live.__enter__()
    return self

  def __exit__(self, *error: Any) -> None:
    self._live.__exit__(*error)

  def update(self, running: set[str]) -> None:
    """Draws, at most every few seconds."""
    now = time.monotonic()
    if now >= self._next:
      self._next = now + REFRESH_SECONDS
      self._live.update(_states(self.runs, self.metric, running, self._eta(now)), refresh=True)

  def _eta(self, now: float) -> str:
    done = sum(r.state() == plan.DONE for r in self.runs)
    new, left = done - self._first_done, len(self.runs) - done
    return f"{(now - self.began) / new * left / 60:.0f} min left" if new else "-"


def _states(runs: Sequence[Run], metric: str, running: set[str], eta: str = "") -> Any:
  keys = plan.differing(list(runs))
  state = {r.id: plan.RUNNING if r.id in running else r.state() for r in runs}
  order = sorted(runs, key=lambda r: (state[r.id] != plan.RUNNING, state[r.id] != plan.FAILED))
  rows = []
  for run in order[:SHOWN]:
    latest = run.latest()
    value = latest.get(metric)
    shown = [str(run.overrides.get(k, "")) for k in keys]
    step = str(int(latest["step"])) if "step" in latest else ""
    rows.append([run.id, state[run.id], *shown, step, "" if value is None else f"{value:.4f}"])
  counts = {s: list(state.values()).count(s) for s in (plan.DONE, plan.RUNNING, plan.FAILED)}
  title = ", ".join(f"{n} {s}" for s, n in counts.items()) + f" of {len(runs)}"
  return _table(["run", "state", *keys, "step", metric], rows, f"{title}  {eta}".strip())


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> Any:
  from rich.table import Table

  table = Table(title=title or None)
  for head in heads:
    table.add_column(head)
  for row in rows:
    table.add_row(*row)
  return table


def _print(table: Any) -> None:
  from rich.console import Console

  Console().print(table)
