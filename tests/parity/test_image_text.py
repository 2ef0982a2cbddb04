"""NaFlex, open_clip, timm, and CLIP and SigLIP at other sizes, against stored reference outputs."""

import jax
import jax.numpy as jnp
import pytest

from big_vision_like.config import UserError, wrap
from big_vision_like.interop import families
from big_vision_like.interop.families import open_clip, timm
from big_vision_like.losses import contrastive
from big_vision_like.models import two_towers, vit
from tests.parity import compare, image_text


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
  model = model_of(name, hf, scan)
  is_vit = hf["model_type"] == "timm"
  inputs = [batch["image"]] if is_vit else [two_towers.pictures(batch), batch["text"]]
  like = jax.eval_shape(lambda *args: model.init(jax.random.key(0), *args)["params"], *inputs)
  params = compare.there_and_back(hf, like)

  def loss(p):
    out = outputs(hf, model, p, batch)
    return out["loss"], out

  print(f"{name} {compare.with_stored(name, loss, params):.1e}")


def test_detection():
  assert open_clip.detect({"model_type": "clip", "vision_cfg": 1, "text_cfg": 2}) is None
  assert timm.detect({"model_type": "vit", "architecture": "x"}) is None
  bare = image_text.CASES["open_clip"]["config"]["model_cfg"]
  for config in (bare, {"model_cfg": bare, "preprocess_cfg": {}}):
    found = open_clip.detect(config)
    assert found["model_type"] == "open_clip" and found["model_cfg"] == bare
    assert timm.detect(config) is None
  found = timm.detect({"architecture": "vit_so400m_patch14_siglip_384.webli", "num_classes": 0})
  kwargs = families.family(found).model(found)
  assert kwargs["image_size"] == (378, 378)  # their convolution drops the last 6 pixels
  assert (kwargs["width"], kwargs["mlp_dim"], kwargs["pool"]) == (1152, 4304, "map")


@pytest.mark.parametrize(
  "config, message",
  [
    (dict(architecture="resnet50"), "'resnet50' has no sizes known here; set model_args"),
    (dict(architecture="vit_tiny_patch16_224", model_args={"qk_norm": True}), "model_args.qk_norm"),
    (dict(architecture="vit_tiny_patch16_224", global_pool="avgmax"), "'avgmax' is unknown"),
    (dict(vision_cfg={"layers": [3, 4, 6, 3]}, text_cfg={}), "a ResNet tower"),
    (dict(vision_cfg={}, text_cfg={"hf_model_name": "x"}), "text_cfg.hf_model_name = 'x'"),
    (dict(vision_cfg={}, text_cfg={}, multimodal_cfg={}), "CoCa is not the paper's"),
  ],
)
def test_what_we_do_not_have_is_named(config, message):
  hf = timm.detect(config) or open_clip.detect(config)
  with pytest.raises(UserError, match=message):
    families.family(hf).model(hf)
