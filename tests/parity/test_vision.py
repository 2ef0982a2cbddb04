"""DeiT, DINOv2, DINOv3 and I-JEPA give what the references give, also at another resolution."""

import jax
import jax.numpy as jnp
import optax
import pytest

from big_vision_like import tree
from big_vision_like.config import UserError
from big_vision_like.interop import families
from big_vision_like.models import vit
from tests.parity import compare, vision, weights


@pytest.mark.parametrize("scan", [True, False], ids=["scanned", "unrolled"])
@pytest.mark.parametrize("name", vision.CASES)
def test_outputs_loss_and_gradient(name, scan):
  hf, given = vision.CASES[name], vision.inputs(name)
  model = vit.make(**families.family(hf).model(hf), scan=scan)
  like = jax.eval_shape(model.init, jax.random.key(0), given["image"])["params"]

  def loss(params):
    _, out = model.apply({"params": params}, given["image"], mask=given.get("mask"))
    tokens = jnp.concatenate([out["prefix"], out["tokens"]], axis=1)
    got = {"tokens": tokens}
    if "num_labels" in hf:
      got |= {k: out[k] for k in ("logits", "logits_dist") if k in out}
      xent = optax.softmax_cross_entropy_with_integer_labels(out["logits"], given["labels"])
      got["loss"] = jnp.mean(xent)
    else:
      got["pooled"] = out["pooled"]
      got["loss"] = jnp.mean((tokens - weights.tensor("target", tokens.shape)) ** 2)
    return got["loss"], got

  worst = compare.with_stored(name, loss, compare.there_and_back(hf, like))
  print(f"{name}: largest difference {worst:.1e} of the scale")


@pytest.mark.parametrize("name", vision.CASES)
def test_the_config_back_means_the_same(name):
  hf = vision.CASES[name]
  family = families.family(hf)
  model = vit.make(**family.model(hf))
  back = family.config(model, 3)
  assert back["model_type"] == hf["model_type"] and back["architectures"] == hf["architectures"]
  assert vit.make(**family.model(back)) == model
  assert family.rules(back) == family.rules(hf)


_GIANT = dict(hidden_size=1536, num_hidden_layers=40, num_attention_heads=24, use_swiglu_ffn=True)
_7B = dict(hidden_size=4096, num_hidden_layers=40, num_attention_heads=32, intermediate_size=8192)
_7B |= dict(use_gated_mlp=True, hidden_act="silu", query_bias=False, value_bias=False)


@pytest.mark.parametrize(
  "hf, count",
  [
    (dict(model_type="deit", num_labels=1000), 87_338_192),  # distilled DeiT-B
    (dict(model_type="dinov2", image_size=518), 86_580_480),
    (dict(model_type="dinov2", image_size=518, **_GIANT), 1_136_480_768),
    (dict(model_type="dinov3_vit", num_register_tokens=4, **_7B), 6_716_035_072),  # 6716M there
  ],
)
def test_published_parameter_counts(hf, count):
  model = vit.make(**families.family(hf).model(hf))
  image = jax.ShapeDtypeStruct((1, *model.image_size, 3), jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
  assert tree.num_params(shapes) == count


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(rope_theta=10.0), "rope_theta = 10.0; our model has 100.0"),
    (dict(value_bias=False), r"= \[True, False, False\]; expected all, none or all but key_bias"),
  ],
)
def test_a_dinov3_that_we_do_not_have(change, message):
  hf = vision.CASES["dinov3"] | change
  with pytest.raises(UserError, match=message):
    families.family(hf).model(hf)
