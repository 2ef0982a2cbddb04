"""Runs on this machine, several at once, each on its share of the cores or devices."""

import os
import subprocess
import time
from collections.abc import Callable, Sequence

from tools.sweep.plan import EXIT, Run, prepare

POLL_SECONDS = 0.2


def slots(jobs: int, devices: int) -> list[dict[str, str]]:
  """What each of `jobs` places may use: its cores, and `devices` GPUs."""
  cores = sorted(os.sched_getaffinity(0))
  out = []
  for i in range(jobs):
    mine = cores[i * len(cores) // jobs : (i + 1) * len(cores) // jobs] or [cores[i % len(cores)]]
    slot = {"cores": ",".join(map(str, mine))}
    if devices:
      slot["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(i * devices, (i + 1) * devices)))
    out.append(slot)
  return out


def launch(
  runs: Sequence[Run], jobs: int, devices: int, show: Callable[[set[str]], None] = lambda ids: None
) -> int:
  """Runs all of them; returns how many failed. `show` is told which are running.

  Stopped by an interrupt, the runs get SIGTERM, save their state and go on the next time.
  """
  waiting, free = list(runs), slots(jobs, devices)
  running: dict[str, tuple[Run, subprocess.Popen, dict[str, str]]] = {}
  failed = 0
  try:
    while waiting or running:
      while waiting and free:
        run, slot = waiting.pop(0), free.pop(0)
        running[run.id] = run, _start(run, slot), slot
      time.sleep(POLL_SECONDS)
      for name, (_, process, slot) in list(running.items()):
        if process.poll() is not None:
          del running[name]
          free.append(slot)
          failed += process.returncode != 0
      show(set(running))
  finally:
    for _, process, _ in running.values():
      os.killpg(process.pid, 15)
    for run, process, _ in running.values():
      process.wait()
      (run.folder / EXIT).unlink(missing_ok=True)  # it did not fail, it was stopped
  return failed


def _start(run: Run, slot: dict[str, str]) -> subprocess.Popen:
  prepare(run)
  slot = dict(slot)
  cores = {int(c) for c in slot.pop("cores").split(",")}
  process = subprocess.Popen(
    ["bash", "-c", run.script()], env={**os.environ, **slot}, start_new_session=True
  )
  os.sched_setaffinity(process.pid, cores)  # what the shell starts inherits it
  return process
