"""The line people watch while a data set is converted or embedded."""

import sys
import time
from typing import Any


class Progress:
  """A bar on a terminal, else a plain line every few seconds and at the end."""

  def __init__(
    self, total: int, done: int, plain_every_seconds: float = 5.0, name: str = "convert"
  ):
    self.total, self.first, self.every, self.name = total, done, plain_every_seconds, name
    self._began = self._printed = time.monotonic()
    self._bar: Any = None

  def __enter__(self) -> "Progress":
    if sys.stdout.isatty():
      from rich.progress import BarColumn, TextColumn
      from rich.progress import Progress as Bar

      columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"))
      self._bar = Bar(*columns)
      self._bar.start()
      self._task = self._bar.add_task(self.name, total=self.total, completed=self.first, said="")
    return self

  def __exit__(self, *_: Any) -> None:
    if self._bar is not None:
      self._bar.stop()

  def update(self, done: int, said: str) -> None:
    """`done` examples of the total are through."""
    now = time.monotonic()
    rate = (done - self.first) / max(now - self._began, 1e-9)
    left = (self.total - done) / rate if rate else 0.0
    line = f"{done:,}/{self.total:,} examples  {rate:,.0f}/s  {said}  eta {left:.0f} s"
    if self._bar is not None:
      self._bar.update(self._task, completed=done, said=line)
    elif now - self._printed > self.every or done == self.total:
      self._printed = now
      print(line, flush=True)
