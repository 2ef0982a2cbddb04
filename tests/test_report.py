"""The page from files alone: what is there is shown, what is not is named, nothing is fetched."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from big_vision_like import goodput, metrics
from big_vision_like.config import UserError
from tools import report

ROW = {
  "path": "params/kernel",
  "shape": [4, 2],
  "dtype": "float32",
  "rule": ".* -> fsdp",
  "spec": "fsdp, -",
  "bytes_per_device": 16384,
}
SHARDING = {"rows": [ROW], "notes": ["a note"], "totals": {"params": 16384}, "mesh": {"fsdp": 2}}


def make_run(folder, lr=0.1, bare=False):
  folder.mkdir(parents=True)
  (folder / "config.json").write_text(json.dumps({"optim": {"lr": lr}, "seed": 7}))
  if bare:
    return folder
  with metrics.Writer(folder) as writer:
    for step in (1, 2, 3):
      writer.write(step, {"train/loss": 1 / step, "eval/x/accuracy": 0.25 * step})
  (folder / "sharding.json").write_text(json.dumps(SHARDING))
  seconds = dict.fromkeys(goodput.CATEGORIES, 0.0) | {"compute": 1200.0, "lost": 300.0}
  account = {"goodput": 0.8, "last_seen": 0, "finished": True, "seconds": seconds, "marks": {}}
  (folder / "goodput.json").write_text(json.dumps(account))
  image = np.zeros((4, 4, 3), np.uint8)
  metrics.write_picture(folder, "x_similarity", image)
  row = {"image": image, "label": "<b>one</b>", "predictions": [("two & three", 0.5)]}
  metrics.write_examples(folder, "x", [row])
  return folder


def page(*workdirs, out):
  assert report.main(["--workdir", *map(str, workdirs), "--out", str(out)]) == 0
  return out.read_text()


def test_everything_of_a_run_on_one_page(tmp_path):
  text = page(make_run(tmp_path / "a"), out=tmp_path / "deep" / "r.html")
  for part in (
    "0.3333",
    "0.75",
    "x_similarity",
    "params/kernel",
    "16,384",
    "a note",
    "optim.lr",
    "1,200.0",
    "80.0 %",
    goodput.CATEGORIES["lost"],
  ):
    assert part in text, part
  assert "has no" not in text and goodput.CATEGORIES["down"] not in text
  assert text.count("data:image/svg+xml;base64,") == 2
  # Nothing from elsewhere, and names are text, not markup.
  assert all(s.startswith("data:") for s in re.findall(r'(?:src|href)="([^"]*)"', text))
  assert "&lt;b&gt;one" in text and "<b>one" not in text and "two &amp; three" in text


def test_several_runs_show_where_configs_differ(tmp_path):
  runs = [make_run(tmp_path / d / "run", lr) for d, lr in (("a", 0.1), ("b", 0.2))]
  text = page(*runs, out=tmp_path / "r.html")
  assert "optim.lr" in text and "seed" not in text.split("Config: differences")[1]
  # Folders of the same name are told apart.
  assert all(f"<th>{run}</th>" in text for run in runs)


def test_missing_parts_are_named(tmp_path):
  text = page(make_run(tmp_path / "a", bare=True), out=tmp_path / "r.html")
  assert "a has no metrics.jsonl, sharding.json, goodput.json, report/*.png, report/*.json." in text


def test_a_half_written_last_line_is_left_out(tmp_path):
  run = make_run(tmp_path / "a")
  with (run / "metrics.jsonl").open("a") as f:
    f.write('{"step": 4, "tra')
  assert report.read_run(run)["step"] == 3
  with (run / "metrics.jsonl").open("a") as f:
    f.write('\n{"step": 5}\n')
  with pytest.raises(UserError, match=r"metrics.jsonl:4 is not JSON"):
    report.read_run(run)


def test_nan_leaves_a_gap_in_the_scores_only(tmp_path):
  run = make_run(tmp_path / "a")
  with metrics.Writer(run) as writer:
    writer.write(4, {"train/loss": float("nan")})
  found = report.read_run(run)
  assert report.series(found, "train/loss")[0] == [1, 2, 3] and found["step"] == 4


def test_mistakes_are_one_line_and_code_2(tmp_path):
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(UserError, match=r"config.json is not JSON"):
    report.main(["--workdir", str(tmp_path)])
  run = make_run(tmp_path / "a")
  with pytest.raises(UserError, match=r"--out .* cannot be written"):
    report.main(["--workdir", str(run), "--out", str(tmp_path)])
  args = [sys.executable, "-m", "tools.report", "--workdir", str(tmp_path / "none")]
  result = subprocess.run(args, capture_output=True, text=True, timeout=60)
  assert result.returncode == 2 and result.stderr.count("\n") == 1
  assert "no config.json there" in result.stderr
