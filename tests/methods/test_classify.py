"""The loss in float64, labels of every kind, statistics that move, several labels an image."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_mesh

from big_vision_like import axes, train
from big_vision_like.config import UserError, wrap
from big_vision_like.methods import classify
from configs import classify as configs

RNG = np.random.default_rng(0)
BATCH = {
  "image": RNG.normal(size=(6, 8, 8, 1)).astype(np.float32),
  "label": np.array([0, 3, 1, 1, 2, 3], np.int32),
  "index": np.arange(6, dtype=np.int32),
}
RESNET = dict(name="resnet", variant="18", stages=(1,), width=4, stem="small", num_classes=4)
KEY = jax.random.key(0)


def make(model=RESNET, **loss):
  config = wrap(dict(method="classify", model=model, loss={"type": "softmax", **loss}))
  method = classify.make(config)
  return method, *jax.jit(method.init)(KEY, BATCH)


def head(pooled, params):
  weights = {k: np.asarray(v, np.float64) for k, v in params["head"].items()}
  return np.asarray(pooled, np.float64) @ weights["kernel"] + weights["bias"]


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("mixed", [False, True], ids=["class", "mixed"])
def test_loss_in_float64(kind, mixed):
  method, params, aux = make(type=kind, label_smoothing=0.2)
  one_hot = np.eye(4)[BATCH["label"]]
  q = 0.7 * one_hot + 0.3 * np.roll(one_hot, 1, 0) if mixed else one_hot
  batch = {**BATCH, "label": q.astype(np.float32) if mixed else BATCH["label"]}
  value, (moved, metrics) = jax.jit(method.loss)(params, aux, batch, KEY, 0)
  # The features in training: of this batch's own statistics.
  model = classify.models.make(RESNET)
  (_, out), stats = classify.models.apply(model, params, aux["stats"], BATCH["image"], train=True)
  z, q = head(out["pooled"], params), 0.8 * q + 0.2 / 4
  if kind == "softmax":
    expected = -(q * (z - np.log(np.exp(z).sum(1, keepdims=True)))).sum(1).mean()
  else:
    p = 1 / (1 + np.exp(-z))
    expected = -(q * np.log(p) + (1 - q) * np.log(1 - p)).sum(1).mean()
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  np.testing.assert_allclose(metrics["accuracy"], (z.argmax(1) == BATCH["label"]).mean())
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), moved["stats"], stats)


def test_statistics_move_and_serve_predictions():
  method, params, aux = make()
  loss, logits = jax.jit(method.loss), jax.jit(method.predict["logits"])
  before = logits(params, aux, BATCH)
  for _ in range(100):
    _, (aux, _) = loss(params, aux, BATCH, KEY, 0)
  after = logits(params, aux, BATCH)
  assert np.abs(after - before).max() > 1e-3
  # A running mean over the same batch ends at that batch: as in training, but for n / (n - 1).
  model = classify.models.make(RESNET)
  (trained, _), _ = classify.models.apply(model, params, aux["stats"], BATCH["image"], train=True)
  np.testing.assert_allclose(after, trained, atol=2e-3)


def test_batch_statistics_on_eight_devices_equal_one():
  """Loss, gradients and running statistics; and in two groups they are others."""
  batch = {k: np.concatenate([v, v[:2] * 2]) for k, v in BATCH.items() if k != "label"}
  batch["label"] = np.arange(8, dtype=np.int32) % 4
  outs = []
  for groups, mesh in ((1, None), (1, make_mesh(fsdp=4, tensor=2)), (2, None)):
    method, params, aux = make({**RESNET, "groups": groups, "zero_init": False})
    step = jax.jit(jax.value_and_grad(method.loss, has_aux=True))
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
      put = batch if mesh is None else axes.put_batch(mesh, batch)
      (value, (moved, _)), grads = step(params, aux, put, KEY, 0)
    outs.append(jax.device_get((value, moved, grads)))
  one, eight, grouped = outs
  jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5), one, eight)
  assert abs(one[0] - grouped[0]) > 1e-4


def test_predictions_of_a_transformer():
  model = configs.get_config("smoke").model.to_dict()
  method, params, aux = make(model)
  assert aux == {"stats": {}}
  predict = {k: jax.jit(fn)(params, aux, BATCH) for k, fn in method.predict.items()}
  np.testing.assert_allclose(
    predict["logits"], head(predict["image_embed"], params), rtol=1e-4, atol=1e-5
  )
  z = np.asarray(predict["logits"], np.float64)
  expected = np.log(np.exp(z).sum(1)) - z[np.arange(6), BATCH["label"]]
  np.testing.assert_allclose(predict["loss_per_example"], expected, rtol=1e-5)
  assert predict["features"]["tokens"].shape == (6, 16, 64)


def test_head_bias_sets_the_loss_of_many_sigmoids():
  """Four classes, each at probability 1 / 4 before anything is learnt."""
  method, params, aux = make(type="sigmoid", head_bias=-np.log(3.0))
  params = jax.tree.map(jnp.copy, params)
  params["head"]["kernel"] = jnp.zeros_like(params["head"]["kernel"])
  value, _ = jax.jit(method.loss)(params, aux, BATCH, KEY, 0)
  np.testing.assert_allclose(value, -np.log(1 / 4) - 3 * np.log(3 / 4), rtol=1e-6)


@pytest.mark.parametrize(
  "model, loss, message",
  [
    (dict(RESNET, num_classes=None), {}, "config.model.num_classes is missing"),
    (RESNET, dict(type="softmx"), "config.loss.type 'softmx' is unknown; did you mean softmax"),
    (RESNET, dict(label_smoothing=-1), "config.loss.label_smoothing = -1; expected a number >= 0"),
    (dict(RESNET, name="resnt"), {}, "config.model.name 'resnt' is unknown; did you mean resnet"),
  ],
)
def test_mistakes(model, loss, message):
  with pytest.raises(UserError, match=message):
    make(model, **loss)


def test_variants_of_the_config():
  spec = lambda arg: train.build(configs.get_config(arg), num_examples=None).abstract
  count = lambda state: sum(x.size for x in jax.tree.leaves(state.params))
  assert count(spec("variant=resnet50")) == 25_557_032
  assert count(spec("variant=B/16,batch_size=512")) == 86_415_592
