"""Runs as a SLURM array job: a list of scripts, and a batch script whose tasks take one each."""

import pathlib
import shlex
import subprocess
from collections.abc import Sequence

from big_vision_like.config import UserError
from big_vision_like.interop import files
from tools.sweep.plan import PREEMPTED, Run, prepare

SCRIPT = """#!/usr/bin/env bash
#SBATCH --job-name={name}
#SBATCH --array=0-{last}{limit}
#SBATCH --output={out}/slurm-%a.txt
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
{options}
cd {root}
run=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {todo})
# The signal comes to this shell: it is passed on, the run saves its state and exits with {requeue}.
srun bash "$run" & child=$!
trap 'kill -TERM $child' TERM
wait $child; code=$?
if [ $code -gt 128 ]; then wait $child; code=$?; fi
if [ $code -eq {requeue} ]; then
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit $code
"""


def write(
  runs: Sequence[Run], out: pathlib.Path, *, name: str, at_once: int, options: Sequence[str]
) -> pathlib.Path:
  """`slurm.sh`, and `todo.txt` with a line for each run, the script of it; returns `slurm.sh`.

  Args:
    runs: those to be run, and no others.
    out: folder of the sweep.
    name: of the job.
    at_once: tasks that run at a time, 0 for no limit.
    options: `#SBATCH` arguments such as `--partition=gpu`, `--gpus-per-task=8`.
  """
  todo, script = out / "todo.txt", out / "slurm.sh"
  scripts = [out / "slurm" / f"{run.id}.sh" for run in runs]
  for path, run in zip(scripts, runs):
    files.write(path, (run.script() + "\n").encode())
  files.write(todo, "".join(f"{path.resolve()}\n" for path in scripts).encode())
  text = SCRIPT.format(
    name=name,
    last=len(runs) - 1,
    limit=f"%{at_once}" if at_once else "",
    out=out.resolve(),
    options="\n".join(f"#SBATCH {o}" for o in options),
    root=shlex.quote(str(pathlib.Path.cwd())),
    todo=shlex.quote(str(todo.resolve())),
    requeue=PREEMPTED,
  )
  files.write(script, text.encode())
  return script


def submit(runs: Sequence[Run], script: pathlib.Path) -> str:
  """What `sbatch` says.

  Raises:
    UserError: there is no sbatch here, or it refuses.
  """
  for run in runs:
    prepare(run)
  try:
    result = subprocess.run(["sbatch", str(script)], capture_output=True, text=True)
  except FileNotFoundError:
    raise UserError(f"sbatch is not on the PATH; {script} is written: submit it there") from None
  if result.returncode:
    raise UserError(f"sbatch {script}: {result.stderr.strip() or result.stdout.strip()}")
  return result.stdout.strip()
