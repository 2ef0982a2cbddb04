"""Tiny runs that `tools.export --format hf` writes, and what `transformers` makes of the folders.

Weights come from the names of our parameters; `reference` loads the exported folder, which must
neither miss nor drop a tensor, and gives its outputs.
"""

import os
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from big_vision_like import tree
from big_vision_like.compose import batch_spec, make_method
from big_vision_like.config import Durations, wrap
from big_vision_like.layers.masking import random_masking
from configs import classify, clip, dino, mae, siglip
from tests.parity import weights
from tools import huggingface

TOWER = dict(width=32, depth=2, mlp_dim=48, num_heads=4, patch_size=(8, 8), image_size=(16, 16))
TEXT = dict(width=32, depth=2, mlp_dim=48, num_heads=2, vocab_size=50, max_len=8)
CLASSES = {  # of transformers
  "siglip": "SiglipModel",
  "clip": "CLIPModel",
  "vit_mae": "ViTMAEForPreTraining",
  "vit": "ViTForImageClassification",
  "resnet": "ResNetForImageClassification",
}


def _towers(c: Any, pool: str) -> Any:
  c.model.image.update(TOWER, pool=pool)
  c.model.text.update(TEXT)
  c.input.spec = dict(image="float32(16, 16, 1)", text="int32(8)")
  return c


def _siglip() -> Any:
  c = _towers(siglip.get_config("smoke"), "map")
  c.model.text.pool = "last"
  return c


def _clip() -> Any:
  c = _towers(clip.get_config("smoke"), "cls")
  c.model.text.pool = "argmax"
  c.model.update(embed_dim=24)
  return c


def _mae() -> Any:
  c = mae.get_config("smoke")
  c.embed, c.loss.norm_pix = "cls", True
  return c


def _vit(**model: Any) -> Any:
  c = classify.get_config("smoke")
  c.model.update(width=32, num_heads=4, mlp_dim=48, pool="cls", **model)
  return c


def _resnet() -> Any:
  c = classify.get_config("smoke,variant=resnet18")
  c.model.update(width=8, stem="imagenet")
  c.input.spec.image = "float32(32, 32, 1)"
  return c


def _dino() -> Any:
  c = dino.get_config("smoke")
  c.model = dict(
    TOWER, name="vit", image_size=(12, 12), patch_size=(4, 4), pool="cls", cls_pos=True
  )
  return c


RUNS = {
  "export_siglip": _siglip,
  "export_clip": _clip,
  "export_mae": _mae,
  "export_vit": _vit,
  "export_vit_sincos": lambda: _vit(pos_embed="sincos2d"),
  "export_resnet": _resnet,
  "export_dino": _dino,
}
CASES = tuple(RUNS)


class Run:
  """Config, method, name-seeded params and aux, and a batch."""

  def __init__(self, name: str):
    config = wrap(RUNS[name]())
    self.config = config = config.timed(Durations(config.input.batch_size, 100, 100))
    self.method = make_method(config)
    spec = batch_spec(config.input)
    zeros = {k: jnp.zeros((4, *x.shape[1:]), x.dtype) for k, x in spec.items()}
    shapes = jax.eval_shape(self.method.init, jax.random.key(0), zeros)
    seeded = tree.map_with_name(lambda n, x: np.asarray(_seeded(n, x.shape), x.dtype), shapes)
    self.params, self.aux = seeded
    size = tuple(spec["image" if "image" in spec else "global"].shape[-3:])
    self.batch = {"image": weights.image(4, *size)}
    if "text" in spec:
      end = TEXT["vocab_size"] - 1  # the highest id, which CLIP reads
      self.batch["text"] = weights.tokens(4, TEXT["max_len"], TEXT["vocab_size"], end)

  def predict(self, name: str) -> np.ndarray:
    fn = jax.jit(self.method.predict[name])
    return np.asarray(fn(self.params, self.aux, self.batch, jax.random.key(1)))

  def outputs(self) -> dict[str, np.ndarray]:
    """Ours, by the names that `reference` has."""
    names = [n for n in ("logits", "image_embed", "text_embed") if n in self.method.predict]
    out = {n: self.predict(n) for n in names}
    if self.config.method == "mae":
      out["loss"] = self.predict("loss_per_example").mean()
    return out


def _seeded(name: str, shape: tuple[int, ...]) -> np.ndarray:
  name = name.split("/", 1)[1]  # of the pair (params, aux)
  if name.endswith(("/var", "logit_scale")):
    return 1 + 0.5 * np.abs(weights.tensor(name, shape))
  return weights.tensor(name, shape)


def reference(name: str) -> dict[str, np.ndarray]:
  """Outputs of `transformers` for the exported run."""
  os.environ["HF_HUB_OFFLINE"] = "1"
  import torch
  import transformers

  run = Run(name)
  with tempfile.TemporaryDirectory() as folder:
    huggingface.save(folder, run.config, run.params, run.aux)
    kind = transformers.AutoConfig.from_pretrained(folder).model_type
    cls, options = CLASSES[kind], {}
    if run.config.method == "dino":  # without a head
      cls, options = "ViTModel", {"add_pooling_layer": False}
    model, info = getattr(transformers, cls).from_pretrained(
      folder, output_loading_info=True, dtype=torch.float32, **options
    )
    problems = {k: v for k, v in info.items() if v}
    assert not problems, problems
    model = model.eval()
    pixels = torch.tensor(run.batch["image"]).permute(0, 3, 1, 2)
    with torch.no_grad():
      out = _outputs(run, model, pixels)
  return {k: v.numpy() for k, v in out.items()}


def _outputs(run: Run, model: Any, pixels: Any) -> dict[str, Any]:
  import torch

  if "text" in run.batch:
    got = model(input_ids=torch.tensor(run.batch["text"]).long(), pixel_values=pixels)
    return {"image_embed": got.image_embeds, "text_embed": got.text_embeds}
  if run.config.method == "dino":
    return {"image_embed": model(pixels).last_hidden_state[:, 0]}
  if run.config.method == "mae":
    ratio, n = model.config.mask_ratio, model.vit.embeddings.patch_embeddings.num_patches
    first, _ = jax.random.split(jax.random.key(1))  # as the method draws its masks
    restore = random_masking(first, len(pixels), n, ratio).restore
    out = {"loss": model(pixels, noise=torch.tensor(np.asarray(restore)).float()).loss}
    for config in (model.config, model.vit.config, model.vit.embeddings.config):
      config.mask_ratio = 0.0
    whole = model.vit(pixels, noise=torch.arange(n).float().expand(len(pixels), n))
    return out | {"image_embed": whole.last_hidden_state[:, 0]}
  got = model(pixels, output_hidden_states=True)
  last = got.hidden_states[-1]
  if model.config.model_type == "resnet":
    return {"logits": got.logits, "image_embed": last.mean((2, 3))}
  return {"logits": got.logits, "image_embed": model.vit(pixels).last_hidden_state[:, 0]}
