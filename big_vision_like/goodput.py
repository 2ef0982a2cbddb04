"""Where the wall time of a run goes, over all of its restarts: `goodput.json` of the workdir.

Every second between the first start of a run and now is in one of `CATEGORIES`, so they add up to
the wall time. Goodput is the share of `compute`: steps that are part of the final state. A step
that was done again after a crash counts once; its first time is moved to `lost`.

The file is replaced whole, by process 0 alone, every few seconds and before each checkpoint. What a
killed process did since is counted as `down`. Which steps will be lost is known at the next start
only: till then those after the last checkpoint count as `compute`.
"""

import contextlib
import json
import logging
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

CATEGORIES = {
  "startup": "start-up with its compile, and shut-down",
  "restore": "reading and verifying a checkpoint",
  "compute": "training steps that are part of the final state",
  "data_wait": "the device had nothing to do because the next batch was not there",
  "checkpoint": "the loop stood still because of a save",
  "evaluation": "evaluators and their pictures",
  "profile": "starting and writing a profiler trace",
  "lost": "steps that were done again after a crash, with their data wait",
  "down": "no process was running, or it was killed before it wrote",
}
_STEPS = ("compute", "data_wait")  # what is lost with a step


def monotonic() -> Callable[[], float]:
  """Seconds since 1970 that never run backwards within a process."""
  offset = time.time() - time.perf_counter()
  return lambda: time.perf_counter() + offset


class Ledger:
  """Books every second into one category; made first of all, then `open`ed on a workdir.

  Args:
    clock: seconds since 1970. The same time base in all processes of a run.
    write_seconds: how often `beat` writes.
  """

  def __init__(self, clock: Callable[[], float] | None = None, write_seconds: float = 10.0):
    self._clock, self._write_seconds = clock or monotonic(), write_seconds
    self._phases = ["startup"]
    self._began = self._booked = self._written = self._clock()
    self._here = dict.fromkeys(CATEGORIES, 0.0)  # of this process
    self._before = dict.fromkeys(CATEGORIES, 0.0)  # of the processes before it
    self._marks: dict[int, list[float]] = {0: [0.0] * len(_STEPS)}
    self._file: pathlib.Path | None = None
    self._finished = False  # and nothing is written, till `resume` says that it goes on

  # ------------------------------------------------------------------------------ booking

  @contextlib.contextmanager
  def phase(self, category: str) -> Iterator[None]:
    """Time in here is of `category`, less what phases inside of it take."""
    self._book()
    self._phases.append(category)
    try:
      yield
    finally:
      self._book()
      self._phases.pop()

  def otherwise(self, category: str) -> None:
    """From here on time outside of every phase is of `category`; at first it is `startup`."""
    self._book()
    self._phases[0] = category

  def _book(self) -> None:
    now = max(self._clock(), self._booked)
    self._here[self._phases[-1]] += now - self._booked
    self._booked = now

  # ------------------------------------------------------------------------------ reading

  def here(self) -> dict[str, float]:
    """Seconds of each category in this process, until now."""
    self._book()
    return dict(self._here)

  def seconds(self) -> dict[str, float]:
    """Seconds of each category of the whole run, until now; their sum is its wall time."""
    self._book()
    return {k: self._before[k] + self._here[k] for k in CATEGORIES}

  def goodput(self) -> float:
    """Share of the run's wall time, 0 to 1, that went into steps of the final state."""
    return goodput(self.seconds())

  # ------------------------------------------------------------------------------ the file

  def open(self, workdir: str | pathlib.Path) -> None:
    """Goes on with the account of `workdir`, or begins one. Process 0 only; others keep none.

    A finished run's clock stood still since, and its file stays as it is until `resume`.
    """
    if jax.process_index() != 0:
      return
    self._file = pathlib.Path(workdir) / "goodput.json"
    if (saved := read(self._file)) is not None:
      self._before |= saved["seconds"]
      self._marks |= {int(k): v for k, v in saved["marks"].items()}
      self._finished = saved["finished"]
      if not self._finished:
        self._before["down"] += max(self._began - saved["last_seen"], 0.0)
    self._write()

  def resume(self, step: int) -> None:
    """The run goes on after `step`: what was done after it is lost, and begins again.

    Where nothing is known of `step` (the file is younger than the checkpoint), nothing is lost.
    """
    self._finished = False
    kept = self._marks.get(step, [self._before[k] for k in _STEPS])
    for category, seconds in zip(_STEPS, kept):
      self._before["lost"] += self._before[category] - seconds
      self._before[category] = seconds
    self._marks = {k: v for k, v in self._marks.items() if k < step} | {step: kept}
    self._write()

  def mark(self, step: int) -> None:
    """Call before `step` is saved, when it has run: how much is kept where it is restored."""
    seconds = self.seconds()
    self._marks[step] = [seconds[k] for k in _STEPS]
    self._write()

  def beat(self) -> None:
    """Writes the file, if it is some seconds old; after every step."""
    self._book()
    if self._booked - self._written >= self._write_seconds:
      self._write()

  def finish(self) -> None:
    """The run is at its end: time from here on is not the run's."""
    self._write(finished=True)
    self._finished = True

  def __enter__(self) -> "Ledger":
    return self

  def __exit__(self, *_: Any) -> None:
    self._write()

  def _write(self, finished: bool = False) -> None:
    seconds = self.seconds()
    self._written = self._booked
    if self._file is None or self._finished:
      return
    content = {
      "goodput": round(goodput(seconds), 6),
      "last_seen": self._booked,
      "finished": finished,
      "seconds": seconds,
      "marks": self._marks,
    }
    part = self._file.with_suffix(".part")
    part.write_text(json.dumps(content))
    part.replace(self._file)


def goodput(seconds: Mapping[str, float]) -> float:
  """Share of `compute`, 0 to 1; of no time at all, 0."""
  wall = sum(seconds.values())
  return seconds["compute"] / wall if wall else 0.0


def read(file: pathlib.Path) -> dict[str, Any] | None:
  """The content of a `goodput.json`; None where it is not there, or damaged (and a warning)."""
  if not file.exists():
    return None
  try:
    content = json.loads(file.read_text())
    if content["seconds"].keys() != CATEGORIES.keys():
      raise KeyError("seconds")
    return {k: content[k] for k in ("goodput", "last_seen", "finished", "seconds", "marks")}
  except (ValueError, KeyError, TypeError, AttributeError):
    logging.warning("%s is damaged: the account of this run begins anew", file)
    return None


def told(seconds: Mapping[str, float]) -> str:
  """`goodput 81.2 % of 34.0 s: compute 27.6, startup 3.1, ...`, the largest first."""
  rows = sorted(((v, k) for k, v in seconds.items() if v >= 0.05), reverse=True)
  parts = ", ".join(f"{k.replace('_', ' ')} {v:.1f}" for v, k in rows)
  return f"goodput {100 * goodput(seconds):.1f} % of {sum(seconds.values()):.1f} s: {parts}"
