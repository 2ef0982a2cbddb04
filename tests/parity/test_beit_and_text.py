"""BEiT, data2vec-vision, BERT and T5 with the references' weights give the references' numbers."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from big_vision_like import models
from big_vision_like.config import UserError
from big_vision_like.interop import families, tables
from big_vision_like.losses import masked
from tests.parity import beit_and_text as cases
from tests.parity import weights

OUTPUTS = pathlib.Path(__file__).parent / "outputs"
TOLERANCE = 1e-4  # of the scale of the output, float32
MODELS = {"beit": "beit", "data2vec-vision": "beit", "bert": "bert", "t5": "t5"}


def make(name: str, **kwargs):
  hf = cases.config(name)
  if "num_labels" in hf:
    kwargs["num_classes"] = hf["num_labels"]
  return models.make({"name": MODELS[hf["model_type"]], **families.family(hf).model(hf), **kwargs})


def call(x):
  """What a model is given of the inputs: positions and keywords."""
  if "image" in x:
    return (x["image"],), ({"mask": x["mask"]} if "mask" in x else {})
  return (x["tokens"], x["mask"], *([x["types"]] if "types" in x else [])), {}


def abstract(model, x):
  """Shapes of the parameters."""
  args, kwargs = call(x)
  return jax.eval_shape(lambda: model.init(jax.random.key(0), *args, **kwargs))["params"]


def outputs(model, params, x, name):
  args, kwargs = call(x)
  y, out = model.apply({"params": params}, *args, **kwargs)
  if name == "beit_masked":
    loss = masked.masked_cross_entropy(
      y, jnp.asarray(x["labels"]), jnp.asarray(x["mask"], jnp.float32)
    )
  elif name == "bert_masked":
    counted = jnp.asarray(x["labels"] >= 0, jnp.float32)
    loss = masked.masked_cross_entropy(y, jnp.maximum(x["labels"], 0), counted)
  elif "labels" in x and "logits" in out:
    loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(y, x["labels"]))
  else:
    out = {k: out[k] for k in ("tokens", "pooled") if k in out}
    return out | {"loss": sum(jnp.mean(jnp.square(v)) for v in out.values())}
  return {"logits": y, "loss": loss}


@pytest.mark.parametrize(
  "name, scan", [*((n, True) for n in cases.CASES), *((n, False) for n in ("beit", "bert", "t5"))]
)
def test_outputs_loss_and_gradient(name, scan):
  hf, x = cases.config(name), cases.inputs(name)
  model, family = make(name, scan=scan), families.family(hf)
  like = abstract(model, x)
  rules, sizes = family.rules(hf), family.sizes(hf)
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
  shapes = tables.to_theirs(rules, zeros, sizes=sizes)
  tensors = {k: weights.tensor(k, v.shape) for k, v in shapes.items()}
  params = tables.to_ours(rules, tensors, like)

  back = tables.to_theirs(rules, params, sizes=sizes)
  assert back.keys() == tensors.keys()
  for key in back:  # the way back is equal to the bit
    np.testing.assert_array_equal(back[key], tensors[key], err_msg=key)

  def loss(p):
    out = outputs(model, p, x, name)
    return out["loss"], out

  (_, got), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  got["grad_norm"] = optax.tree.norm(grads)
  stored = json.loads((OUTPUTS / f"{name}.json").read_text())
  assert got.keys() == stored.keys()
  for key, value in got.items():
    want = np.asarray(stored[key])
    atol = TOLERANCE * np.abs(want).max()
    np.testing.assert_allclose(value, want, rtol=0, atol=atol, err_msg=key)


@pytest.mark.parametrize("name", list(cases.CASES))
def test_their_config_of_our_model(name):
  """Written and read again it is the same model, and what theirs said of it is the same."""
  hf, model = cases.config(name), make(name)
  family = families.family(hf)
  written = json.loads(json.dumps(family.config(model, 3)))
  again = {"name": MODELS[hf["model_type"]], "num_classes": model.num_classes}
  assert models.make({**again, **family.model(written)}) == model
  assert len(written.get("id2label", ())) == hf.get("num_labels", 0)
  same = (hf.keys() & written.keys()) - {"hidden_act"}
  assert {k: written[k] for k in same} == {k: hf[k] for k in same}


def test_what_the_tables_leave_out():
  """Counters, and the parts of published files that a text tower has no use for."""
  left = {
    "beit": ["beit.encoder.layer.0.attention.attention.relative_position_bias"]
    + ["beit.encoder.relative_position_bias"],
    "bert": ["cls.seq_relationship.weight", "cls.predictions.decoder.weight"]
    + ["bert.embeddings.position_ids", "bert.pooler.dense.weight"],
    "t5": ["encoder.embed_tokens.weight", "decoder.block.0.layer.0.SelfAttention.q.weight"]
    + ["lm_head.weight", "decoder.final_layer_norm.weight"],
  }
  left["beit"] = [f"{name}.relative_position_index" for name in left["beit"]]
  for name, tensors in left.items():
    hf = cases.config(name)
    family, model = families.family(hf), make(name)
    like = abstract(model, cases.inputs(name))
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    theirs = tables.to_theirs(family.rules(hf), zeros, sizes=family.sizes(hf))
    extra = dict.fromkeys(tensors, np.zeros(3))
    tables.to_ours(family.rules(hf), theirs | extra, like, ignore=family.ignore)
    with pytest.raises(UserError, match="unused: other"):
      more = theirs | {"other": np.zeros(3)}
      tables.to_ours(family.rules(hf), more, like, ignore=family.ignore)


@pytest.mark.parametrize(
  "change, match",
  [
    (dict(image_size=[16, 24]), "a grid that is not square"),
    (dict(architectures=["BeitForMaskedImageModeling"], use_mean_pooling=False), "two last norms"),
    (dict(model_type="bert", is_decoder=True), "as a decoder"),
    (dict(model_type="t5", feed_forward_proj="gated-relu6"), "feed_forward_proj"),
  ],
)
def test_configs_that_we_cannot_read(change, match):
  hf = cases.config("beit") | change
  with pytest.raises(UserError, match=match):
    families.family(hf).model(hf)
