"""Files out and in: equal to the bit, whole or absent; functions for any batch size."""

import json
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from big_vision_like import tree
from big_vision_like.config import UserError, run_main, wrap
from big_vision_like.interop import files, stablehlo
from big_vision_like.method import keep_params
from big_vision_like.state import State
from tools import export


class FakeMethod(NamedTuple):
  predict: dict
  merge: Callable = keep_params


def embed(params, aux, batch, rng=None):
  del aux, rng
  return batch["image"] @ params["w"].astype(jnp.float32) + params["b"][None]


def pairs(params, aux, batch, rng=None):
  """Must know the number of examples."""
  return embed(params, aux, batch, rng).reshape(2, len(batch["image"]) // 2, -1).mean(0)


@pytest.fixture
def run(tmp_path, monkeypatch):
  """A workdir whose restore gives a linear layer; a function from arguments to export's result."""
  config = {
    "input": {
      "source": "nothing",
      "batch_size": 4,
      "spec": {"image": "float32(3)", "label": "int32()"},
    }
  }
  rng = np.random.default_rng(0)
  params = {
    "w": jnp.asarray(rng.normal(size=(3, 5)), jnp.bfloat16),
    "b": jnp.asarray(rng.normal(size=5), jnp.float32),
  }
  state = State(params, {}, (), jnp.int32(7))
  asked = []

  def restore(workdir, step=None):
    asked.append((workdir, step))
    return wrap(config), FakeMethod({"image_embed": embed, "pairs": pairs}), state, None

  monkeypatch.setattr("big_vision_like.train.restore", restore)
  workdir, out = tmp_path / "run", tmp_path / "out"
  workdir.mkdir()
  (workdir / "config.json").write_text(json.dumps(config))

  def main(form, *args):
    assert export.main(["--workdir", str(workdir), "--format", form, "--out", str(out), *args]) == 0
    assert (out / "config.json").read_text() == json.dumps(config)
    return out

  main.params, main.asked, main.out = params, asked, out
  return main


@pytest.mark.parametrize("form", ["npz", "safetensors"])
def test_parameters_to_the_bit(run, form):
  out = run(form, "--step", "7")
  assert run.asked[0][1] == 7
  found = getattr(files, f"load_{form}")(out / f"params.{form}")
  expected = tree.flatten(jax.device_get(run.params))
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    assert found[name].dtype == value.dtype and found[name].tobytes() == value.tobytes()


def test_function_of_any_batch_size(run, capsys):
  out = run("stablehlo", "--predict", "image_embed")
  assert sorted(f.name for f in out.iterdir()) == ["config.json", "image_embed.stablehlo"]
  assert "only" not in capsys.readouterr().out
  fn = stablehlo.load(out / "image_embed.stablehlo")
  for size in (1, 6):
    batch = {"image": np.random.default_rng(size).normal(size=(size, 3)).astype(np.float32)}
    np.testing.assert_allclose(fn(batch), embed(run.params, {}, batch), atol=1e-5)


def test_function_that_must_know_its_batch_size(run, capsys):
  out = run("stablehlo")  # all of them
  assert "pairs.stablehlo (batch size 4 only)" in capsys.readouterr().out
  batch = {"image": np.ones((4, 3), np.float32)}
  found = stablehlo.load(out / "pairs.stablehlo")(batch)
  np.testing.assert_allclose(found, pairs(run.params, {}, batch), atol=1e-5)


@pytest.mark.parametrize(
  "args, message",
  [
    (("stablehlo", "--predict", "image_embed,image_embd"), "did you mean image_embed"),
    (("npz", "--predict", "image_embed"), "--predict is for --format stablehlo"),
  ],
)
def test_mistakes_write_nothing(run, args, message):
  with pytest.raises(UserError, match=message):
    run(*args)
  assert not run.out.exists()


def test_mistakes_on_the_command_line_exit_with_2(capsys):
  for argv in (["--format", "npy"], ["--workdir", "/nowhere/run", "--format", "npz", "--out", "x"]):
    with pytest.raises(SystemExit) as stop:
      run_main(lambda argv=argv: export.main(argv))
    assert stop.value.code == 2
  assert "/nowhere/run/config.json is missing" in capsys.readouterr().err


def test_nothing_half_written(tmp_path, monkeypatch):
  file = tmp_path / "x.npz"
  files.save_npz(file, {"a": np.zeros(3)})
  before = file.read_bytes()

  def full(self, data):
    with self.open("wb") as f:
      f.write(data[:10])
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(pathlib.Path, "write_bytes", full)
  with pytest.raises(UserError, match="cannot be written: No space left"):
    files.save_npz(file, {"a": np.ones(3)})
  assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("form", ["npz", "safetensors"])
def test_a_cut_file_is_a_user_error(tmp_path, form):
  file = tmp_path / "x"
  getattr(files, f"save_{form}")(file, {"a/b": np.arange(100)})
  whole = file.read_bytes()
  for size in (0, 3, len(whole) // 2, len(whole) - 1):
    file.write_bytes(whole[:size])
    with pytest.raises(UserError, match="cannot be read"):
      getattr(files, f"load_{form}")(file)


def test_npz_refuses_what_it_would_lose(tmp_path):
  arrays = {"a/w": np.ones(3, ml_dtypes.float8_e4m3fn)}
  with pytest.raises(UserError, match="npz cannot hold a/w of type float8_e4m3fn"):
    files.save_npz(tmp_path / "x.npz", arrays)
  assert not list(tmp_path.iterdir())
  files.save_safetensors(tmp_path / "x", arrays)
  found = files.load_safetensors(tmp_path / "x")["a/w"]
  assert found.dtype == arrays["a/w"].dtype and found.tobytes() == arrays["a/w"].tobytes()
