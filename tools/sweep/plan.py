"""A sweep file becomes runs: each with its config, a name from its content, and its folder."""

import hashlib
import importlib.util
import json
import pathlib
import re
import shlex
import sys
from typing import Any, NamedTuple

from big_vision_like.config import UserError, flatten
from big_vision_like.interop import files

DONE, FAILED, RUNNING, WAITING = "done", "failed", "running", "waiting"
SUMMARY, EXIT, RUN = "summary.json", "exit_code", "run.json"
PREEMPTED = 85
"""Exit code of a run that SIGTERM made save its state (big_vision_like.train)."""


class Run(NamedTuple):
  """One run of a sweep.

  Attributes:
    id: of its content: the same config is the same run, however the sweep says it.
    config: `FILE.py:arguments`.
    overrides: key of the config -> value.
    folder: its workdir.
  """

  id: str
  config: str
  overrides: dict[str, Any]
  folder: pathlib.Path

  def command(self) -> list[str]:
    """What trains it."""
    flags = [f"--config.{key}={_flag(value)}" for key, value in self.overrides.items()]
    return [
      *(sys.executable, "-m", "big_vision_like.train"),
      *("--config", self.config, "--workdir", str(self.folder), *flags),
    ]

  def script(self) -> str:
    """A shell script that trains it, finishes its summary and leaves its exit code."""
    train = shlex.join(self.command())
    finish = shlex.join([sys.executable, "-m", "tools.sweep.finish", str(self.folder)])
    code = shlex.quote(str(self.folder / EXIT))
    log = shlex.quote(str(self.folder / "log.txt"))
    return f"{{ {train} && {finish}; }} >> {log} 2>&1; code=$?; echo $code > {code}; exit $code"

  def state(self) -> str:
    """Done, failed, running (as far as its files tell) or waiting."""
    if (self.folder / SUMMARY).exists() and (self.folder / EXIT).exists():
      return DONE if self.exit_code() == 0 else FAILED
    if (self.folder / EXIT).exists():  # preempted, its state saved: to be gone on with
      return WAITING if self.exit_code() == PREEMPTED else FAILED
    return RUNNING if (self.folder / "log.txt").exists() else WAITING

  def exit_code(self) -> int:
    """Of its last try."""
    return int((self.folder / EXIT).read_text())

  def last_lines(self, count: int = 3) -> list[str]:
    """Of its log."""
    file = self.folder / "log.txt"
    text = file.read_text(errors="replace") if file.exists() else ""
    return [line for line in re.split(r"[\r\n]+", text) if line.strip()][-count:]

  def latest(self) -> dict[str, float]:
    """The last logged value of every metric, and `step`."""
    out: dict[str, float] = {}
    file = self.folder / "metrics.jsonl"
    for line in file.read_text().splitlines() if file.exists() else ():
      try:
        out |= json.loads(line)
      except ValueError:
        continue  # being written
    return out


def _flag(value: Any) -> str:
  return value if isinstance(value, str) else repr(value)


def load(file: str, out: pathlib.Path) -> list[Run]:
  """The runs of a sweep file, in its order; equal ones are one.

  Raises:
    UserError: no such file, no `CONFIG` or `sweep()` in it, a config that cannot be read, or a key
      that it lacks.
  """
  path = pathlib.Path(file)
  if not path.is_file():
    raise UserError(f"{file} is not there; expected experiments/NAME/sweep.py")
  spec = importlib.util.spec_from_file_location("sweep_file", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, "sweep"):
    raise UserError(f"{file} has no function sweep() that returns overrides")
  runs: dict[str, Run] = {}
  for overrides in module.sweep():
    overrides = dict(overrides)
    config = overrides.pop("config", getattr(module, "CONFIG", None))
    if not isinstance(config, str):
      raise UserError(f"{file} has no CONFIG = 'configs/NAME.py:arguments'")
    name = content_id(resolved(config, overrides))
    runs.setdefault(name, Run(name, config, overrides, out / "runs" / name))
  if not runs:
    raise UserError(f"{file}: sweep() returned no runs")
  return list(runs.values())


def resolved(config: str, overrides: dict[str, Any]) -> Any:
  """The ConfigDict of a run, as the command line makes it.

  Raises:
    UserError: whatever is wrong with the file or a key.
  """
  from absl import flags
  from ml_collections import config_flags

  from big_vision_like import config as config_lib

  values = flags.FlagValues()
  argv = ["sweep", "--config", config, *(f"--config.{k}={_flag(v)}" for k, v in overrides.items())]
  config_flags.DEFINE_config_file("config", None, "FILE.py:args", flag_values=values, sys_argv=argv)
  config_lib.parse_flags(values, argv, "", needed=("config",))
  return values["config"].value


def content_id(config: Any) -> str:
  """Ten hex digits of the resolved config."""
  plain = json.dumps(config.to_dict(), sort_keys=True, default=repr)
  return hashlib.sha256(plain.encode()).hexdigest()[:10]


def prepare(run: Run) -> None:
  """Its folder, with what it is; a failed try's exit code is forgotten."""
  run.folder.mkdir(parents=True, exist_ok=True)
  (run.folder / EXIT).unlink(missing_ok=True)
  files.write_json(run.folder / RUN, {"config": run.config, "overrides": run.overrides})


def differing(runs: list[Run]) -> list[str]:
  """Keys that are not the same in all runs, for tables."""
  flat = [{"config": r.config, **flatten(r.overrides)} for r in runs]
  keys = dict.fromkeys(k for f in flat for k in f)
  return [k for k in keys if len({str(f.get(k)) for f in flat}) > 1]
