"""What people run on a finished run: evaluate, export, report; and the command line of train."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from big_vision_like import metrics, train, tree
from big_vision_like.config import UserError
from big_vision_like.interop import files, stablehlo
from tests import tiny
from tools import evaluate, export, report

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("run")
  from configs import siglip

  evals = siglip.get_config("smoke").evals.to_dict()
  for cfg in evals.values():
    cfg["source"] = cfg["source"].replace(")", ", size=40)")
    cfg["batch_size"] = 32
  train.train(tiny.config(2, evals=evals), folder)
  return folder


@pytest.fixture(scope="module")
def saved(workdir):
  return train.restore(workdir)


def test_evaluate_repeats_the_scores_of_training(workdir, capsys):
  assert evaluate.main(["--workdir", str(workdir), "--evals", "zeroshot_seen,val", "--json"]) == 0
  found = json.loads(capsys.readouterr().out.splitlines()[-1])
  logged = {}
  for line in (workdir / "metrics.jsonl").read_text().splitlines():
    logged |= json.loads(line)
  assert found["step"] == 2 and len(found) == 4
  for name, value in found.items():
    assert value == pytest.approx(logged[name], rel=1e-6)
  with pytest.raises(UserError, match="did you mean zeroshot_seen"):
    evaluate.main(["--workdir", str(workdir), "--evals", "zeroshot_sen"])


def test_evaluate_several_runs(workdir, tmp_path, capsys):
  other = tmp_path / "other"
  shutil.copytree(workdir, other)
  out, page = tmp_path / "deep" / "s.json", tmp_path / "s.html"
  flags = ["--evals", "zeroshot_seen,val", "--json", str(out), "--html", str(page)]
  assert evaluate.main(["--workdir", str(workdir), str(other), *flags, "--mistakes", "3"]) == 0
  said = capsys.readouterr().out
  assert "zeroshot_seen/accuracy" in said and "other (step 2)" in said
  first, second = json.loads(out.read_text())["runs"]
  assert first["scores"] == second["scores"] and second["workdir"] == str(other)
  assert {k.split("/")[1] for k in first["scores"]} == {"zeroshot_seen", "val"}
  text = page.read_text()
  assert "other: zeroshot_seen, hardest mistakes" in text and "val, hardest" not in text
  assert 0 < text.count("data:image/png;base64,") <= 6


@pytest.mark.parametrize(
  "form, load", [("npz", files.load_npz), ("safetensors", files.load_safetensors)]
)
def test_export_of_parameters_to_the_bit(workdir, saved, tmp_path, form, load):
  assert export.main(["--workdir", str(workdir), "--format", form, "--out", str(tmp_path)]) == 0
  found = getattr(files, f"load_{form}")(tmp_path / f"params.{form}")
  expected = tree.flatten(jax.device_get(saved[2].params))
  assert found.keys() == expected.keys()
  for name in expected:
    assert found[name].dtype == expected[name].dtype and found[name].shape == expected[name].shape
    np.testing.assert_array_equal(found[name], expected[name])
  assert (tmp_path / "config.json").exists()


@pytest.mark.parametrize("form", ["npz", "safetensors"])
def test_bfloat16_and_scalars_survive(tmp_path, form):
  import ml_dtypes

  arrays = {"a/b": np.array([1.5, -2], ml_dtypes.bfloat16), "c": np.float32(3.0)}
  getattr(files, f"save_{form}")(tmp_path / "x", arrays)
  with (tmp_path / "x").open("rb"):
    found = getattr(files, f"load_{form}")(tmp_path / "x")
  for name, value in arrays.items():
    assert found[name].dtype == value.dtype
    np.testing.assert_array_equal(found[name], value)


def test_export_as_stablehlo(workdir, saved, tmp_path):
  args = ["--workdir", str(workdir), "--format", "stablehlo", "--predict", "image_embed,text_embed"]
  assert export.main([*args, "--out", str(tmp_path)]) == 0
  _, method, state, _ = saved
  state = jax.device_get(state)
  rng = np.random.default_rng(0)
  for size in (1, 3):
    image = rng.normal(size=(size, 8, 16, 1)).astype(np.float32)
    found = stablehlo.load(tmp_path / "image_embed.stablehlo")({"image": image})
    expected = method.predict["image_embed"](state.params, state.aux, {"image": image}, None)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_damaged_files_are_user_errors(tmp_path):
  (tmp_path / "x").write_bytes(b"nothing")
  for load in (files.load_npz, files.load_safetensors, stablehlo.load):
    with pytest.raises(UserError, match="cannot be read"):
      load(tmp_path / "x")


def test_report_is_one_page(workdir, tmp_path):
  out = tmp_path / "r.html"
  assert report.main(["--workdir", str(workdir), "--out", str(out)]) == 0
  page = out.read_text()
  for part in ("train/loss", "similarity", "params/logit_scale", "optim.lr", "left"):
    assert part in page, part
  assert 'src="http' not in page and "<script" not in page
  assert report.main(["--workdir", str(workdir), str(workdir), "--out", str(out)]) == 0
  with pytest.raises(UserError, match=r"no config.json"):
    report.main(["--workdir", str(tmp_path)])


def test_writer_truncates_and_keeps_json(tmp_path):
  with metrics.Writer(tmp_path) as writer:
    for step in (1, 2, 3):
      writer.write(step, {"train/loss": float("nan") if step == 1 else step})
    writer.image(3, "x", np.zeros((4, 4, 3), np.uint8))
    with writer.file.open("a") as f:
      f.write('{"step": 2, "tra')
    writer.truncate_after(2)
    writer.write(3, {"train/loss": 7})
  rows = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert rows == [
    {"step": 1, "train/loss": None},
    {"step": 2, "train/loss": 2.0},
    {"step": 3, "train/loss": 7.0},
  ]
  assert list((tmp_path / "tensorboard").iterdir())


def command(*args, **env):
  return subprocess.run(
    [sys.executable, "-m", "big_vision_like.train", *args],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env={**os.environ, "JAX_NUM_CPU_DEVICES": "1", **env},
    timeout=60,
  )


SMOKE = ("--config", "configs/siglip.py:smoke")


@pytest.mark.parametrize(
  "args, message",
  [
    ((*SMOKE, "--config.optim.lrr=1"), "lr"),
    ((*SMOKE, "--config.optim.lr=abc"), "abc"),
    ((*SMOKE, "--config.input.batch_size=1e3"), "1e3"),
    ((*SMOKE, "--config.method=siglap"), "did you mean siglip"),
    ((*SMOKE, "--confg.seed=1"), "confg"),
    (("--config", "configs/siglip.py:smok"), "'smok' is unknown"),
    (("--config", "configs/siglop.py"), "configs/siglop.py"),
    ((), "--config is missing"),
  ],
)
def test_mistakes_on_the_command_line(args, message, tmp_path):
  result = command(*args, "--workdir", str(tmp_path / "w"))
  assert result.returncode == 2, result.stderr
  assert message in result.stderr
  assert result.stderr.count("\n") == 1 and "Traceback" not in result.stderr
  assert not (tmp_path / "w").exists()


def test_import_is_light():
  """`import big_vision_like.train` reads no data library."""
  heavy = "tensorflow_datasets", "grain", "sklearn", "tensorboard", "orbax", "matplotlib", "PIL"
  code = f"import sys, big_vision_like.train; print([m for m in {heavy!r} if m in sys.modules])"
  out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
  assert out.stdout.strip() == "[]", out
