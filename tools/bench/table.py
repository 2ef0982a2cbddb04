"""Rows as they come: a live table on a terminal, plain lines otherwise."""

from collections.abc import Mapping
from typing import Any, TextIO

from tools.bench.harness import Row, Spread

COLUMNS = ("row", "what", "value", "ours", "peer", "target", "more")
RIGHT = ("value", "ours", "peer")


def cells(row: Row) -> tuple[str, ...]:
  """The texts of `COLUMNS`."""
  value = "-" if row.value is None else _number(row.value)
  if row.ratios is not None:
    value += f" ({_number(row.ratios.min)}..{_number(row.ratios.max)})"
  target = ""
  if row.target is not None:
    sign = "<=" if row.target.at_most else ">="
    bounds = [b for b in (row.target.gate, row.target.stretch) if b is not None]
    target = f"{row.target.row}: {sign} " + " / ".join(f"{b:g}" for b in bounds)
    if row.value is not None:
      met = "stretch" if row.target.stretch_met(row.value) else "gate"
      target += f" {met} met" if row.target.met(row.value) else " MISSED"
  more = [f"{k}={_number(v)}" for k, v in row.values.items()] + ([row.note] if row.note else [])
  return row.name, row.what, value, _seconds(row.ours), _seconds(row.peer), target, " ".join(more)


def _seconds(spread: Spread | None) -> str:
  if spread is None:
    return ""
  scale, unit = (1e3, "ms") if spread.median < 1 else (1, "s")
  return " / ".join(f"{v * scale:.4g}" for v in spread) + f" {unit}"


def _number(value: Any) -> str:
  if isinstance(value, int) and not isinstance(value, bool):
    return f"{value:,}"
  return f"{value:.4g}" if isinstance(value, float) else str(value)


class Table:
  """A context manager; `add(row)` shows the row."""

  def __init__(self, suite: str, machine: Mapping[str, Any], out: TextIO):
    self.title, self.machine, self.out = f"bench {suite}", machine, out
    self._live: Any = None
    self._met: list[bool] = []

  def __enter__(self) -> "Table":
    about = "  ".join(f"{k} {_number(v)}" for k, v in self.machine.items() if v)
    print(about, file=self.out, flush=True)
    if self.out.isatty():
      from rich.console import Console
      from rich.live import Live
      from rich.table import Table as Rich

      self._rich = Rich(title=self.title)
      for name in COLUMNS:
        self._rich.add_column(name, justify="right" if name in RIGHT else "left", overflow="fold")
      self._live = Live(self._rich, console=Console(file=self.out), auto_refresh=False)
      self._live.start()
    return self

  def __exit__(self, *_: Any) -> None:
    if self._live is not None:
      self._live.stop()
    if self._met:
      print(f"{sum(self._met)} of {len(self._met)} gates met", file=self.out, flush=True)

  def add(self, row: Row) -> None:
    if row.target is not None and row.value is not None:
      self._met.append(row.target.met(row.value))
    if self._live is not None:
      from rich.markup import escape

      self._rich.add_row(*(escape(c) for c in cells(row)))
      self._live.refresh()
      return
    named = zip(COLUMNS, cells(row))
    text = "  ".join(c if k in ("row", "more") else f"{k} {c}" for k, c in named if c)
    print(text, file=self.out, flush=True)
