"""Our models with the references' weights give the references' outputs, loss and gradient norm.

Weights come from their tensors' names, so that every day only the stored outputs are needed;
`bash tools/test.sh --live` runs the references themselves (`references.py`).
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from big_vision_like.config import UserError, wrap
from big_vision_like.interop import families, files, huggingface, tables
from big_vision_like.layers import masking
from big_vision_like.layers.patch_embed import grid_of, patchify
from big_vision_like.losses import contrastive, masked
from big_vision_like.models import mae_decoder, resnet, two_towers, vit
from tests.parity import cases, compare, weights

NAMES = list(cases.CONFIGS)


class Ours:
  """A model of ours for a config of theirs: variables like theirs, outputs and loss."""

  def __init__(self, name: str, scan: bool):
    self.hf = hf = cases.CONFIGS[name]
    self.kind, kwargs = hf["model_type"], families.family(hf).model(hf)
    size = hf.get("vision_config", hf).get("image_size", 32)
    size = tuple(size) if isinstance(size, list) else (size, size)
    self.batch = {"image": weights.image(cases.BATCH, *size, 3)}
    if self.kind == "vit":
      self.model = vit.make(**kwargs, num_classes=hf["num_labels"], scan=scan)
    elif self.kind == "resnet":
      self.model = resnet.make(**kwargs, num_classes=hf["num_labels"])
    elif self.kind == "vit_mae":
      self.model = vit.make(**kwargs["model"], scan=scan)
      self.decoder = mae_decoder.make(**kwargs["decoder"], scan=scan)
      grid = grid_of(*size, self.model.patch_size)
      self.sizes = dict(grid=grid, out_dim=3 * self.model.patch_size[0] ** 2)
      noise = weights.tensor("input/noise", (cases.BATCH, grid[0] * grid[1]))
      self.masking = masking.by_noise(jnp.asarray(noise), hf["mask_ratio"])
    else:
      for tower in ("image", "text"):
        kwargs[tower]["scan"] = scan
      self.model = two_towers.make(wrap(kwargs))
      text = hf["text_config"]
      size = (text["max_position_embeddings"], text["vocab_size"])
      self.batch["text"] = weights.tokens(cases.BATCH, *size, text.get("eos_token_id"))
    self.like = jax.eval_shape(self.init)

  def init(self):
    key, image = jax.random.key(0), self.batch["image"]
    if self.kind == "vit_mae":
      (_, out), variables = self.model.init_with_output(key, image, keep=self.masking.keep)
      tokens = (out["tokens"], out["prefix"], self.masking.restore)
      decoder = self.decoder.init(key, *tokens, **self.sizes)
      return {"encoder": variables["params"], "decoder": decoder["params"]}
    variables = self.model.init(key, image, *([self.batch["text"]] if "text" in self.batch else []))
    return variables if self.kind == "resnet" else variables["params"]

  def outputs(self, variables):
    image = self.batch["image"]
    if self.kind == "vit_mae":
      _, out = self.model.apply({"params": variables["encoder"]}, image, keep=self.masking.keep)
      tokens = (out["tokens"], out["prefix"], self.masking.restore)
      pred, _ = self.decoder.apply({"params": variables["decoder"]}, *tokens, **self.sizes)
      target = patchify(jnp.asarray(image), self.model.patch_size)
      if self.hf["norm_pix_loss"]:
        target = masked.normalize_patches(target)[0]
      return {"logits": pred, "loss": masked.masked_mse(pred, target, self.masking.mask)}
    if self.kind in ("vit", "resnet"):
      variables = variables if self.kind == "resnet" else {"params": variables}
      logits, _ = self.model.apply(variables, image)
      labels = jnp.arange(cases.BATCH) % self.hf["num_labels"]
      xent = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      return {"logits": logits, "loss": jnp.mean(xent)}
    zimg, ztxt, out = self.model.apply({"params": variables}, image, self.batch["text"])
    if self.kind == "siglip":
      scale = (out["logit_scale"], out["logit_bias"])
      loss = contrastive.sigmoid_loss(zimg, ztxt, *scale, impl="dense")
    else:
      loss = contrastive.softmax_loss(zimg, ztxt, out["logit_scale"], impl="dense")
    return {"image": zimg, "text": ztxt, "loss": loss}


@pytest.mark.parametrize("scan", [True, False], ids=["scanned", "unrolled"])
@pytest.mark.parametrize("name", NAMES)
def test_outputs_loss_and_gradient(name, scan):
  ours = Ours(name, scan)
  variables = compare.there_and_back(ours.hf, ours.like)
  trained = variables["params"] if ours.kind == "resnet" else variables
  whole = lambda p: {**variables, "params": p} if ours.kind == "resnet" else p

  def loss(p):
    out = ours.outputs(whole(p))
    return out["loss"], out

  compare.with_stored(name, loss, trained)


def test_what_does_not_fit_is_named():
  ours = Ours("vit", True)
  rules = families.family(ours.hf).rules(ours.hf)
  tensors = compare.theirs(ours.hf, ours.like)
  broken = {k: v for k, v in tensors.items() if "layernorm.bias" not in k} | {"extra": np.ones(2)}
  broken["classifier.bias"] = np.ones(7, np.float32)
  with pytest.raises(UserError) as e:
    tables.to_ours(rules, broken, ours.like)
  for part in ("missing: vit.layernorm.bias", "classifier.bias (7,)", "unused: extra"):
    assert part in str(e.value)


def test_folders(tmp_path):
  """One file, shards with an index, and a pickle, which is refused."""
  tensors = {"a": np.ones(2, np.float32), "b": np.zeros((3, 1), np.float32)}
  (tmp_path / "config.json").write_text('{"model_type": "vit"}')
  (tmp_path / "pytorch_model.bin").write_bytes(b"x")
  with pytest.raises(UserError, match="pickle"):
    huggingface.read(tmp_path)
  for i, name in enumerate(tensors):
    files.save_safetensors(tmp_path / f"model-{i}.safetensors", {name: tensors[name]})
  index = {"weight_map": {n: f"model-{i}.safetensors" for i, n in enumerate(tensors)}}
  (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
  config, found = huggingface.read(tmp_path)
  assert config == {"model_type": "vit"} and found.keys() == tensors.keys()
  index["weight_map"]["a"] = "../a.safetensors"
  (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
  with pytest.raises(UserError, match="not a file of this folder"):
    huggingface.read(tmp_path)
  with pytest.raises(UserError, match="'vitt' is unknown; did you mean vit"):
    families.family({"model_type": "vitt"})
