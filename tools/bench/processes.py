"""Runs in processes of their own, by the interpreter that has the peer, on one core.

Neither start-up, nor threads that idle, nor Python's lock of one are in the figures of another.
"""

import contextlib
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

RUNS = pathlib.Path(__file__).with_name("input_peers.py")
ROOT = pathlib.Path(__file__).parents[2]
INTERPRETERS = "BENCH_PEERS"
"""Environment variable: Pythons that have the peers' packages, separated by colons."""
NEEDS = {
  "torch": "torch",
  "torchvision": "torchvision",
  "webdataset": "webdataset",
  "tfdata": "tensorflow",
}


@functools.cache
def interpreter(package: str) -> str:
  """The first of `BENCH_PEERS`, else of this one, that has the package.

  Raises:
    ImportError: none has it.
  """
  found = f"import importlib.util as u, sys; sys.exit(u.find_spec({package!r}) is None)"
  for python in (*filter(None, os.environ.get(INTERPRETERS, "").split(":")), sys.executable):
    if subprocess.run([python, "-c", found], capture_output=True).returncode == 0:
      return python
  raise ImportError(package, name=package)


class Process:
  """A run of `input_peers.py` in a process of its own: a call runs it once more.

  `cpu` has the seconds of CPU of every run so far, workers included: others that are busy on the
  same cores change them little.

  Args:
    kind: name of one of the runs there.
    cores: how many of this process's cores it may use.
    args: of the run.

  Raises:
    ImportError: no interpreter has the package that it needs.
    RuntimeError: it ended; the end of what it said.
  """

  def __init__(self, kind: str, *, cores: int = 1, **args: Any):
    python = interpreter(NEEDS[kind]) if kind in NEEDS else sys.executable
    own = {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    few = {f"{x}_NUM_THREADS": str(cores) for x in ("OMP", "OPENBLAS")}
    self._open = contextlib.ExitStack()
    self._said = self._open.enter_context(tempfile.TemporaryFile("w+"))  # noqa: SIM115
    self._process = subprocess.Popen(
      [python, "-P", str(RUNS), kind, str(cores), json.dumps(args)],
      env={**os.environ, **own, **few},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._said,
      text=True,
    )
    self._answer()  # it is built
    self.cpu: list[float] = []

  def __call__(self) -> Any:
    print(file=self._process.stdin, flush=True)
    returned, cpu = self._answer()
    self.cpu.append(cpu)
    return returned

  def _answer(self) -> Any:
    if line := self._process.stdout.readline():
      return json.loads(line)
    self._process.wait()
    self._said.seek(0)
    said = self._said.read()[-2000:]
    self.close()
    raise RuntimeError(f"a run of {RUNS} ended: {said}")

  def close(self) -> None:
    """Ends it."""
    self._process.stdin.close()  # which is how it knows
    self._process.wait()
    self._process.stdout.close()
    self._open.close()

  def __enter__(self) -> "Process":
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()


def once(kind: str, **args: Any) -> Any:
  """What one run in a fresh process returns."""
  with Process(kind, **args) as run:
    return run()
