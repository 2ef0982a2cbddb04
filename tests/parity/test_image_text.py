"""NaFlex, open_clip, timm, and CLIP and SigLIP at other sizes, against stored reference outputs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from big_vision_like.config import wrap
from big_vision_like.interop import families, tables
from big_vision_like.interop.families import open_clip, timm
from big_vision_like.losses import contrastive
from big_vision_like.models import two_towers, vit
from tests.parity import image_text
from tests.parity.test_huggingface import OUTPUTS, TOLERANCE, theirs


def config_of(name: str) -> dict:
  config = image_text.CASES[name]["config"]
  return timm.detect(config) or open_clip.detect(config) or config


def model_of(name: str, hf: dict, scan: bool):
  kwargs = families.family(hf).model(hf)
  image = kwargs.get("image", kwargs)
  if "naflex" not in image.values() and not image.keys() <= vit.ViT.__dataclass_fields__.keys():
    pytest.skip("models/vit.py has no layer scale, distillation token or gated MLP yet")
  if hf["model_type"] == "timm":
    return vit.make(**kwargs, scan=scan)
  for tower in ("image", "text"):
    kwargs[tower]["scan"] = scan
  kwargs["text"]["pad_id"] = image_text.CASES[name].get("pad")
  return two_towers.make(wrap(kwargs))


def outputs(hf: dict, model, params, batch) -> dict[str, jax.Array]:
  if hf["model_type"] == "timm":
    logits, _ = model.apply({"params": params}, batch["image"])
    return {"logits": logits, "loss": jnp.mean(logits**2)}
  image, text, out = model.apply({"params": params}, two_towers.pictures(batch), batch["text"])
  if "logit_bias" in out:
    scale = (out["logit_scale"], out["logit_bias"])
    loss = contrastive.sigmoid_loss(image, text, *scale, impl="dense")
  else:
    loss = contrastive.softmax_loss(image, text, out["logit_scale"], impl="dense")
  return {"image": image, "text": text, "loss": loss}


@pytest.mark.parametrize("name", image_text.CASES)
def test_outputs_loss_and_gradient(name):
  hf, batch = config_of(name), image_text.batch(name)
  # Both forms of the stack over the cases, not both for each.
  scan = list(image_text.CASES).index(name) % 2 == 0 or name == "open_clip_siglip"
  model, family = model_of(name, hf, scan), families.family(hf)
  inputs = (
    [batch["image"]] if hf["model_type"] == "timm" else [two_towers.pictures(batch), batch["text"]]
  )
  like = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs)["params"])
  tensors, rules = theirs(hf, like), family.rules(hf)
  params = tables.to_ours(rules, tensors, like, ignore=family.ignore)
  back = tables.to_theirs(rules, params, sizes=family.sizes(hf))
  assert back.keys() == tensors.keys()
  for key in back:  # the way back is equal to the bit
    np.testing.assert_array_equal(back[key], tensors[key], err_msg=key)

  def loss(p):
    out = outputs(hf, model, p, batch)
    return out["loss"], out

  (_, got), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  got["grad_norm"] = optax.tree.norm(grads)
  stored = json.loads((OUTPUTS / f"{name}.json").read_text())
  assert got.keys() == stored.keys()
  for key, value in got.items():
    want = np.asarray(stored[key])
    scale = np.abs(want).max()
    print(f"{name} {key} {np.abs(value - want).max() / scale:.1e}")
    np.testing.assert_allclose(value, want, rtol=0, atol=TOLERANCE * scale, err_msg=key)
