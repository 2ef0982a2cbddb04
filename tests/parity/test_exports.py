"""What a run predicts is what `transformers` computes from its export (stored in outputs/)."""

import json
import pathlib

import numpy as np
import pytest

from big_vision_like import tree
from big_vision_like.config import UserError, wrap
from big_vision_like.interop import foreign
from big_vision_like.state import State
from tests.parity import exports
from tools import export, huggingface

OUTPUTS = pathlib.Path(__file__).parent / "outputs"


@pytest.mark.parametrize("name", exports.CASES)
def test_predictions_are_the_references(name):
  stored = json.loads((OUTPUTS / f"{name}.json").read_text())
  found = exports.Run(name).outputs()
  assert found.keys() == stored.keys()
  for key, value in found.items():
    want = np.asarray(stored[key])
    np.testing.assert_allclose(value, want, rtol=0, atol=1e-4 * np.abs(want).max(), err_msg=key)


@pytest.mark.parametrize("name", exports.CASES)
def test_read_back_to_the_bit(name, tmp_path):
  run = exports.Run(name)
  huggingface.save(tmp_path, run.config, run.params, run.aux)
  found = foreign.read(tmp_path).arrays
  params = run.aux["teacher"]["backbone"] if run.config.method == "dino" else run.params
  seen = tree.flatten(params)
  for path, x in seen.items():
    np.testing.assert_array_equal(_leaf(found, path), x, err_msg=path)


def _leaf(found, path):
  """Blocks are stacked there, whatever they are here."""
  for name in (path, f"params/{path}"):
    if name in found:
      return found[name]
  head, _, rest = path.partition("/block_")
  index, _, rest = rest.partition("/")
  return found[f"{head}/blocks/{rest}"][int(index)]


def changed(name, **model):
  run = exports.Run(name)
  config = run.config.to_dict()
  config["model"] |= model
  return wrap(config), run


@pytest.mark.parametrize(
  "name, model, message",
  [
    ("export_vit", {"pool": "gap"}, "config.model.pool = 'gap'; it is 'cls' in vit"),
    ("export_resnet", {"stem": "small"}, "config.model.stem = 'small'"),
    ("export_siglip", {"bias_init": None}, "config.model.bias_init = None; it is -10.0 in siglip"),
    ("export_clip", {"bias_init": -1.0}, "config.model.bias_init"),
  ],
)
def test_what_does_not_fit(name, model, message, tmp_path):
  config, run = changed(name, **model)
  with pytest.raises(UserError, match=message):
    huggingface.save(tmp_path / "out", config, run.params, run.aux)
  assert not (tmp_path / "out").exists()


def test_command(tmp_path, monkeypatch, capsys):
  run = exports.Run("export_vit")
  state = State(run.params, run.aux, (), np.int32(7))
  restored = lambda workdir, step=None: (run.config, run.method, state, None)
  monkeypatch.setattr("big_vision_like.train.restore", restored)
  argv = ["--workdir", "x", "--format", "hf", "--out", str(tmp_path / "hf")]
  assert export.main(argv) == 0 and capsys.readouterr().out == f"{tmp_path / 'hf'}\n"
  names = sorted(file.name for file in (tmp_path / "hf").iterdir())
  assert names == ["config.json", "model.safetensors"]
  np.testing.assert_array_equal(foreign.read(tmp_path / "hf").arrays["cls"], run.params["cls"])


def test_other_methods(tmp_path):
  run = exports.Run("export_vit")
  config = run.config.to_dict() | {"method": "ddpm"}
  with pytest.raises(
    UserError, match="'ddpm' has no model of Hugging Face; expected one of siglip"
  ):
    huggingface.save(tmp_path, wrap(config), run.params, run.aux)
