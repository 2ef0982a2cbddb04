"""Large files: mapped, cut in shards, loaded leaf by leaf onto the devices."""

import json
import tracemalloc

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from big_vision_like import tree
from big_vision_like.config import UserError
from big_vision_like.interop import build, families, files, huggingface, tables
from tests.interop.test_build import theirs

HF = dict(
  model_type="vit",
  hidden_size=128,
  num_hidden_layers=4,
  num_attention_heads=4,
  intermediate_size=1024,
  image_size=16,
  patch_size=8,
  num_labels=5,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """About 6 MB, its largest leaf 2 MB, in five files or so."""
  folder = tmp_path_factory.mktemp("hf")
  huggingface.write(folder, HF, theirs(HF), shard_bytes=1_500_000)
  assert len(list(folder.glob("*.safetensors"))) > 3
  return folder


def test_straight_into_a_sharded_state(folder):
  mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))

  def sharded(x):
    axis = next((i for i, n in enumerate(x.shape) if n % 8 == 0), None)
    spec = PartitionSpec(*["fsdp" if i == axis else None for i in range(len(x.shape))])
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

  like = jax.tree.map(sharded, build.like(HF))
  rules = families.family(HF).rules(HF)
  largest = max(x.size * 4 for x in jax.tree.leaves(like))
  put = tables.placed(like)
  put("head/bias", np.zeros(5, np.float32))  # what JAX keeps of its own
  tracemalloc.start()
  try:
    _, tensors = huggingface.read(folder)
    params = tables.to_ours(rules, tensors, like, put=put)
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert peak < 1.3 * largest, (peak, largest)
  assert tree.num_bytes(params) > 2.5 * largest  # whole, it would be seen
  again = tables.to_theirs(rules, params, sizes={"p": 8, "q": 8})
  for name, x in theirs(HF).items():
    np.testing.assert_array_equal(again[name], x, err_msg=name)
  assert all(a.sharding == b.sharding for a, b in zip(*map(jax.tree.leaves, (params, like))))


def test_nothing_is_read_before_it_is_asked_for(folder):
  config, tensors = huggingface.read(folder)
  found = build.leaves(config, tensors)
  assert found.shape("encoder/blocks/mlp/up/kernel") == (4, 128, 1024)
  assert all(not x.flags.owndata and not x.flags.writeable for x in tensors.values())


def test_index_and_files_must_agree(folder, tmp_path):
  for file in folder.iterdir():
    (tmp_path / file.name).write_bytes(file.read_bytes())
  index = tmp_path / "model.safetensors.index.json"
  told = json.loads(index.read_text())
  told["weight_map"]["extra"] = next(iter(told["weight_map"].values()))
  index.write_text(json.dumps(told))
  with pytest.raises(UserError, match="do not agree on extra"):
    huggingface.read(tmp_path)
  index.write_text("[]")
  with pytest.raises(UserError, match="cannot be read"):
    huggingface.read(tmp_path)
  index.unlink()
  with pytest.raises(UserError, match="cannot be read"):
    huggingface.read(tmp_path)


def test_configs_of_other_libraries(tmp_path, monkeypatch):
  """open_clip's names of files; `detect` of a family gives the model_type that is not written."""
  for name in ("config.json", "open_clip_config.json"):
    (tmp_path / name).write_text(json.dumps({"name": name}))
  files.save_safetensors(tmp_path / "open_clip_model.safetensors", {"a": np.ones(2)})
  config, tensors = huggingface.read(tmp_path)
  assert config == {"name": "open_clip_config.json"} and tensors.keys() == {"a"}
  known = lambda config: {"model_type": "x", **config} if "name" in config else None
  monkeypatch.setattr(families.vit, "detect", known, raising=False)
  assert huggingface.read(tmp_path)[0]["model_type"] == "x"
  assert families.detected({"model_type": "vit"}) == {"model_type": "vit"}


def test_all_types_and_shapes(tmp_path):
  from safetensors.numpy import load_file

  arrays = {
    "a": np.arange(3, dtype=np.uint8),
    "b/c": np.float64(2.5) * np.ones(()),
    "d": np.ones((0, 4), np.float32),
    "e": np.arange(6).reshape(2, 3).T,
    "f": np.array([True, False]),
  }
  half = {"g": np.arange(5).astype(ml_dtypes.bfloat16)}
  file = tmp_path / "x.safetensors"
  files.save_safetensors(file, arrays)
  for found in (files.load_safetensors(file), load_file(file)):  # also as the library reads it
    assert found.keys() == arrays.keys()
    for name, x in arrays.items():
      assert found[name].dtype == x.dtype and found[name].shape == x.shape
      np.testing.assert_array_equal(found[name], x)
  files.save_safetensors(file, arrays | half)
  assert files.load_safetensors(file)["g"].dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize(
  "header",
  [
    {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
    {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
    {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}},
    {"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}},
    {"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 4]}},
    {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}},
    {"a": 3},
    [],
  ],
)
def test_a_header_that_lies(tmp_path, header):
  text = json.dumps(header).encode()
  (tmp_path / "x").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
  with pytest.raises(UserError, match="cannot be read as safetensors"):
    files.load_safetensors(tmp_path / "x")
