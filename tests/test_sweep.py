"""Sweeps: sets of overrides, names by content, launchers, and that only what is missing runs."""

import json
import os
import pathlib
import stat
import sys

import numpy as np
import pytest

from big_vision_like import checkpoint, sweeps
from big_vision_like.config import UserError
from tools.sweep import __main__ as command
from tools.sweep import cost, finish, gke, plan

ROOT = pathlib.Path(__file__).parents[1]
# ml_collections reads config files by a way of loading that Python 3.12 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def test_sets():
  sizes = sweeps.zipped({"a": (1, 2), "b": (3, 4)})
  assert sizes == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
  assert sweeps.product(sizes, {"c": (5, 6)})[1] == {"a": 1, "b": 3, "c": 6}
  assert len(sweeps.product({"a": (1, 2), "b": (1, 2, 3)})) == 6
  with pytest.raises(UserError, match="two sets of a product give a"):
    sweeps.product(sizes, {"a": (1,)})
  with pytest.raises(UserError, match="not equally many: a 1, b 2"):
    sweeps.zipped({"a": (1,), "b": (1, 2)})


def test_random_runs_do_not_depend_on_their_number():
  draw = {"lr": sweeps.log_uniform(1e-4, 1e-2), "x": sweeps.uniform(0, 1), "y": sweeps.one_of(1, 2)}
  few, many = sweeps.random(3, draw), sweeps.random(9, draw)
  assert few == many[:3] and few != sweeps.random(3, draw, seed=1)
  assert all(1e-4 <= r["lr"] <= 1e-2 for r in many) and len({r["lr"] for r in many}) == 9


def test_isoflop_and_series():
  shapes = sweeps.vit_series((128, 384), at="model.image")
  assert shapes[1] == {
    "model.image.width": 384,
    "model.image.depth": 6,
    "model.image.mlp_dim": 1536,
    "model.image.num_heads": 6,
  }
  per = lambda shape: float(shape["model.image.width"])
  runs = sweeps.isoflop((1e4, 1e5), shapes, per, least=50)
  assert [r["total_examples"] for r in runs] == [78, 781, 260]  # 26 examples were too few
  [small, large] = sweeps.mup({"model.width": (64, 256)}, 1e-3, 64)
  assert small["optim.lr_mults"] == ((".*kernel", 1.0),)
  assert large["optim.lr_mults"] == ((".*kernel", 0.25),)


SWEEP = """
from big_vision_like import sweeps
CONFIG = "configs/siglip.py:smoke"
def sweep():
  return sweeps.product({"total_steps": (200, 400), "input.batch_size": (32, 64)})
"""

FAKE = """
import json, pathlib, sys
folder, steps = pathlib.Path(sys.argv[1]), int(sys.argv[2])
with (folder / "starts").open("a") as f:
  f.write("x")
if steps == 400 and not (folder / "may_run").exists():
  print("it broke here")
  sys.exit(7)
(folder / "metrics.jsonl").write_text(json.dumps({"step": steps, "train/loss": 1 / steps}))
(folder / "summary.json").write_text(json.dumps({"params": 1, "examples": steps, "flops": 2.0}))
"""


@pytest.fixture
def sweep(tmp_path, monkeypatch):
  """A sweep file whose runs do nearly nothing; half of them fail until they are allowed to."""
  file = tmp_path / "sweep.py"
  file.write_text(SWEEP)
  monkeypatch.chdir(ROOT)
  fake = lambda run: [
    *(sys.executable, "-c", FAKE, str(run.folder)),
    str(run.overrides["total_steps"]),
  ]
  monkeypatch.setattr(plan.Run, "command", fake)
  return file


def starts(run):
  file = run.folder / "starts"
  return len(file.read_text()) if file.exists() else 0


def test_names_are_of_the_content(sweep, tmp_path):
  runs = plan.load(str(sweep), tmp_path / "out")
  assert len({r.id for r in runs}) == 4
  assert [r.id for r in plan.load(str(sweep), tmp_path)] == [r.id for r in runs]
  sweep.write_text(SWEEP.replace("(200, 400)", "(400,)").replace("(32, 64)", "(64,)"))
  [one] = plan.load(str(sweep), tmp_path / "out")
  assert one.id == runs[3].id
  # 128 is the config's own batch size: to say it changes nothing.
  sweep.write_text(SWEEP.replace("(32, 64)", "(128,)").replace("(200, 400)", "(200,)"))
  [said] = plan.load(str(sweep), tmp_path)
  sweep.write_text(
    SWEEP.replace(', "input.batch_size": (32, 64)', "").replace("(200, 400)", "(200,)")
  )
  [unsaid] = plan.load(str(sweep), tmp_path)
  assert said.id == unsaid.id


def test_local_runs_what_is_missing(sweep, tmp_path, capsys):
  args = [str(sweep), "--out", str(tmp_path / "out"), "--jobs", "2"]
  runs = plan.load(str(sweep), tmp_path / "out")
  assert command.main(args) == 1
  out = capsys.readouterr().out
  assert "2 done, 0 running, 2 failed of 4" in out
  assert f"failed {runs[2].id} (exit code 7)" in out and "    it broke here" in out
  assert json.loads((runs[0].folder / "summary.json").read_text()) == {
    "total_steps": 200,
    "input.batch_size": 32,
    "params": 1,
    "examples": 200,
    "flops": 2.0,
  }
  for run in runs[2:]:
    (run.folder / "may_run").write_text("")
  assert command.main(args) == 0
  assert [starts(r) for r in runs] == [1, 1, 2, 2]
  assert command.main(args) == 0 and [starts(r) for r in runs] == [1, 1, 2, 2]
  assert "every run is done" in capsys.readouterr().out


def executable(path, text):
  path.parent.mkdir(exist_ok=True)
  path.write_text(text)
  path.chmod(path.stat().st_mode | stat.S_IXUSR)


SBATCH = """#!/usr/bin/env bash
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$1")
for i in $(seq 0 $last); do
  SLURM_ARRAY_JOB_ID=5 SLURM_ARRAY_TASK_ID=$i bash "$1"
done
echo "Submitted batch job 5"
"""


def test_slurm(sweep, tmp_path, monkeypatch, capsys):
  """A stand-in for sbatch runs every task of the array."""
  bin = tmp_path / "bin"
  executable(bin / "sbatch", SBATCH)
  executable(bin / "srun", '#!/usr/bin/env bash\nexec "$@"\n')
  executable(bin / "scontrol", f'#!/usr/bin/env bash\necho "$@" >> {tmp_path}/requeued\n')
  monkeypatch.setenv("PATH", f"{bin}:{os.environ['PATH']}")
  out = tmp_path / "out"
  args = [str(sweep), "--out", str(out), "--launcher", "slurm", "--jobs", "3"]
  args += ["--option=--partition=gpu"]
  runs = plan.load(str(sweep), out)
  command.main([*args, "--dry_run"])
  script = (out / "slurm.sh").read_text()
  assert "#SBATCH --array=0-3%3\n" in script and "#SBATCH --partition=gpu\n" in script
  assert all(starts(r) == 0 for r in runs)
  command.main(args)
  assert "Submitted batch job 5" in capsys.readouterr().out
  assert [r.state() for r in runs] == ["done", "done", "failed", "failed"]
  # The next time only the failed ones are in the array; one is preempted and requeues itself.
  fake = lambda run: [sys.executable, "-c", f"import sys; sys.exit({plan.PREEMPTED})"]
  monkeypatch.setattr(plan.Run, "command", fake)
  command.main(args)
  assert "#SBATCH --array=0-1%3\n" in (out / "slurm.sh").read_text()
  assert (tmp_path / "requeued").read_text() == "requeue 5_0\nrequeue 5_1\n"
  assert [r.state() for r in runs] == ["done", "done", "waiting", "waiting"]
  assert plan.PREEMPTED == checkpoint.REQUEUE_EXIT_CODE
  monkeypatch.setenv("PATH", "/usr/bin:/bin")
  with pytest.raises(UserError, match=r"sbatch is not on the PATH; .*slurm.sh is written"):
    command.main(args)


def test_gke(sweep, tmp_path, capsys):
  out = tmp_path / "out"
  args = [str(sweep), "--out", str(out), "--launcher", "gke", "--topology", "v5e:4x4"]
  with pytest.raises(UserError, match="needs --image"):
    command.main(args)
  command.main([*args, "--image", "gcr.io/p/image:1", "--name", "law"])
  listed = json.loads((out / "gke.json").read_text())
  assert listed["kind"] == "List" and len(listed["items"]) == 4
  item = listed["items"][0]
  job = item["spec"]["replicatedJobs"][0]["template"]["spec"]
  pod = job["template"]["spec"]
  assert (job["parallelism"], job["completions"]) == (4, 4)  # 16 chips, 4 a host
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
    "cloud.google.com/gke-tpu-topology": "4x4",
  }
  assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": "4"}
  commands = (out / "queued_resources.sh").read_text()
  assert commands.count("--accelerator-type v5litepod-16") == 4
  with pytest.raises(UserError, match="expected such as v5e:4x4"):
    gke.parse("v5e-16")
  assert str(gke.parse("v5p:2x2x4")) == "2x2x4" and gke.parse("v5p:2x2x4").hosts == 4
  with pytest.raises(UserError, match="Kubernetes wants lower case"):
    command.main([*args, "--image", "x", "--name", "Law"])


def test_what_a_run_will_cost(sweep, tmp_path, capsys):
  command.main([str(sweep), "--out", str(tmp_path / "out"), "--dry_run"])
  out = capsys.readouterr().out
  assert "4 runs" in out and "still to be run" in out and not (tmp_path / "out").exists()
  runs = plan.load(str(sweep), tmp_path)
  small, large = cost.of(runs[0]), cost.of(runs[3])
  assert small.params == large.params and (small.examples, large.examples) == (200 * 32, 400 * 64)
  assert large.flops / small.flops == pytest.approx(4, rel=0.1)
  assert small.chip_hours("v5e", 0.5) == pytest.approx(small.flops / 197e12 / 0.5 / 3600)
  with pytest.raises(UserError, match="known: v4, v5e"):
    small.chip_hours("v5", 0.5)


def test_mistakes(tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  with pytest.raises(UserError, match=r"expected experiments/NAME/sweep.py"):
    plan.load(str(tmp_path / "sweep.py"), tmp_path)
  file = tmp_path / "sweep.py"
  file.write_text("CONFIG = 'configs/siglip.py:smoke'\n")
  with pytest.raises(UserError, match="no function sweep"):
    plan.load(str(file), tmp_path)
  file.write_text(SWEEP.replace("total_steps", "total_step"))
  with pytest.raises(UserError, match="total_step"):
    plan.load(str(file), tmp_path)
  file.write_text("def sweep():\n  return [{}]\n")
  with pytest.raises(UserError, match="no CONFIG"):
    plan.load(str(file), tmp_path)
  file.write_text("CONFIG = 'configs/siglip.py:smoke'\ndef sweep():\n  return []\n")
  with pytest.raises(UserError, match="returned no runs"):
    plan.load(str(file), tmp_path)
  with pytest.raises(UserError, match=r"a run of tools.sweep was expected"):
    finish.main([str(tmp_path)])


def test_slots_share_the_cores():
  from tools.sweep import local

  cores = sorted(os.sched_getaffinity(0))
  two = local.slots(2, 1)
  mine = [set(s["cores"].split(",")) for s in two]
  assert len(cores) < 2 or not mine[0] & mine[1]
  assert [s["CUDA_VISIBLE_DEVICES"] for s in two] == ["0", "1"]
  assert len(local.slots(2 * len(cores), 0)) == 2 * len(cores)
  np.testing.assert_array_equal(sorted({int(c) for m in mine for c in m}), cores)
