"""big_vision's npz, both ways: equal to the bit, and the names that its files have."""

import numpy as np
import pytest

from big_vision_like import tree
from big_vision_like.config import UserError
from big_vision_like.interop import build, files, foreign
from big_vision_like.interop.families import big_vision
from tests.interop import tiny_models
from tools import convert

ATTN = "MultiHeadDotProductAttention_0"
# As in a file of SigLIP (models/vit.py and text_transformer.py there): name -> shape.
NAMES = {
  "t": (1,),
  "b": (1,),
  "img/embedding/kernel": (8, 8, 3, 32),
  "img/pos_embedding": (1, 4, 32),
  f"img/Transformer/encoderblock_1/{ATTN}/query/kernel": (32, 4, 8),
  f"img/Transformer/encoderblock_0/{ATTN}/value/bias": (4, 8),
  f"img/Transformer/encoderblock_0/{ATTN}/out/kernel": (4, 8, 32),
  "img/Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel": (32, 48),
  "img/Transformer/encoder_norm/scale": (32,),
  "img/MAPHead_0/probe": (1, 1, 32),
  f"img/MAPHead_0/{ATTN}/key/kernel": (32, 4, 8),
  "img/MAPHead_0/LayerNorm_0/bias": (32,),
  "img/MAPHead_0/MlpBlock_0/Dense_1/bias": (32,),
  "txt/Embed_0/embedding": (50, 32),
  "txt/pos_embedding": (1, 8, 32),
  f"txt/Encoder_0/encoderblock_1/{ATTN}/query/kernel": (32, 2, 16),
  "txt/Encoder_0/encoderblock_1/LayerNorm_1/scale": (32,),
  "txt/Encoder_0/encoder_norm/bias": (32,),
  "txt/head/kernel": (32, 32),
}


def same(found, wanted):
  found, wanted = tree.flatten(found), tree.flatten(wanted)
  assert found.keys() == wanted.keys()
  for name, x in wanted.items():
    np.testing.assert_array_equal(found[name], x, err_msg=name)


MODELS = {
  "big_vision_two_towers": tiny_models.siglip(),
  "big_vision_vit": tiny_models.plain(pool="cls", num_classes=3),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("form", ["plain", "scanned", "checkpoint"])
def test_there_and_back(tmp_path, kind, form):
  model = MODELS[kind]
  params = tiny_models.random(model)
  _, tensors = build.export(kind, model, params)
  if kind == "big_vision_two_towers":
    assert {k: tensors[k].shape for k in NAMES} == NAMES
  if form == "scanned":
    for name in [n for n in tensors if "encoderblock_0" in n]:
      rows = [tensors.pop(name.replace("block_0", f"block_{i}")) for i in range(2)]
      tensors[name.replace("block_0", "block")] = np.stack(rows)
  elif form == "checkpoint":
    tensors = {f"params/{k}": v for k, v in tensors.items()} | {"opt/0/count": np.zeros(())}
  files.save_npz(tmp_path / "x.npz", tensors)
  source = foreign.read(tmp_path / "x.npz")
  same(foreign.nested(source), params)
  rebuilt = build.make(source.config)
  assert rebuilt.image == model.image if kind != "big_vision_vit" else rebuilt == model


def test_files_from_before_2022(tmp_path):
  """The class token had a position; the second half was LayerNorm_2 and MlpBlock_3."""
  model = tiny_models.plain(pool="cls", patch_size=8, image_size=16, num_classes=3)
  params = tiny_models.random(model)
  _, tensors = build.export("big_vision_vit", model, params)
  rename = [("LayerNorm_1", "LayerNorm_2"), ("Attention_0", "Attention_1"), ("Block_0", "Block_3")]
  old = {}
  for name, x in tensors.items():
    for now, before in rename:
      name = name.replace(now, before) if "encoderblock" in name else name
    old[name] = x
  half = 0.5 * old["cls"]
  table = np.concatenate([half, old.pop("pos_embedding")], axis=1)
  old |= {"cls": half, "Transformer/posembed_input/pos_embedding": table}
  files.save_npz(tmp_path / "x.npz", old)
  same(foreign.nested(foreign.read(tmp_path / "x.npz")), params)


def test_what_it_cannot_hold():
  model = tiny_models.siglip(gelu="exact")
  with pytest.raises(
    UserError, match=r"image.gelu = 'exact'; it is 'tanh' in big_vision_two_towers"
  ):
    build.export("big_vision_two_towers", model, tiny_models.random(model))
  _, tensors = build.export(
    "big_vision_vit", tiny_models.plain(), tiny_models.random(tiny_models.plain())
  )
  broken = tensors | {"pre_logits/kernel": np.ones((2, 2))}
  with pytest.raises(UserError, match="unused: pre_logits/kernel"):
    build.leaves(big_vision.config_of(broken), broken)


def test_convert_between_all_forms(tmp_path):
  """npz of big_vision -> Hugging Face -> our names -> Hugging Face -> big_vision."""
  model = tiny_models.siglip()
  params = tiny_models.random(model)
  _, tensors = build.export("big_vision_two_towers", model, params)
  files.save_npz(tmp_path / "first.npz", tensors)
  at = tmp_path / "first.npz"
  for to, file in (
    ("hf", ""),
    ("safetensors", "params.safetensors"),
    ("hf", ""),
    ("npz", "params.npz"),
    ("big_vision", "params.npz"),
  ):
    out = tmp_path / f"{to}_of_{at.name}"
    assert convert.main(["--from", str(at), "--to", to, "--out", str(out)]) == 0
    at = out / file
    if to in ("safetensors", "npz"):
      same(foreign.nested(foreign.read(at)), params)
  found = files.load_npz(at)
  assert found.keys() == tensors.keys()
  for name, x in tensors.items():
    np.testing.assert_array_equal(found[name], x, err_msg=name)
  with pytest.raises(UserError, match="is no Hugging Face folder"):
    convert.main(["--from", str(tmp_path), "--to", "hf", "--out", str(tmp_path / "x")])
  (tmp_path / "model.pth").write_bytes(b"x")
  with pytest.raises(UserError, match="is a pickle"):
    convert.main(["--from", str(tmp_path / "model.pth"), "--to", "hf", "--out", "x"])
