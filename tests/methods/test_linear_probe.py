"""Heads are independent, the backbone stays, and the result is scikit-learn's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from big_vision_like import optim, step
from big_vision_like.config import Durations, UserError, wrap
from big_vision_like.input.sources.digits import digits
from big_vision_like.methods import linear_probe
from configs import linear_probe as configs

VIT = dict(variant="mu/4", image_size=8, scan=False)
RNG = np.random.default_rng(0)
BATCH = {
  "image": RNG.normal(size=(6, 8, 8, 1)).astype(np.float32),
  "label": np.array([0, 3, 1, 1, 2, 3], np.int32),
  "index": np.arange(6, dtype=np.int32),
}
KEY = jax.random.key(0)


def make(model=VIT, batch=BATCH, **probe):
  probe = {"classes": 4, "heads": ("a", "b"), **probe}
  method = linear_probe.make(wrap(dict(method="linear_probe", model=model, probe=probe)))
  return method, *jax.jit(method.init)(KEY, batch)


def xent(z, label):
  z = np.asarray(z, np.float64)
  return (np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), label]).mean()


@pytest.mark.parametrize("batch_norm", [False, True])
def test_loss_and_gradient_in_float64(batch_norm):
  features = (("a", "pooled"), (".*", "tokens+pooled"))
  method, params, aux = make(batch_norm=batch_norm, features=features)
  args = (params, aux, BATCH, KEY, 0)
  (value, (moved, metrics)), grads = jax.jit(jax.value_and_grad(method.loss, has_aux=True))(*args)
  out = method.predict["features"](params, aux, BATCH)
  tokens = np.asarray(out["tokens"], np.float64)
  pooled = np.asarray(out["pooled"], np.float64)
  total = 0
  for name, x in (("a", pooled), ("b", np.concatenate([tokens.mean(1), pooled], 1))):
    if batch_norm:
      x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    head = {k: np.asarray(v, np.float64) for k, v in params["heads"][name].items()}
    z = x @ head["kernel"] + head["bias"]
    expected = xent(z, BATCH["label"])
    np.testing.assert_allclose(metrics[f"{name}/loss"], expected, rtol=1e-5)
    accuracy = (z.argmax(1) == BATCH["label"]).mean()
    np.testing.assert_allclose(metrics[f"{name}/accuracy"], accuracy)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True) - np.eye(4)[BATCH["label"]]
    np.testing.assert_allclose(grads["heads"][name]["kernel"], x.T @ p / 6, atol=1e-5)
    total += expected
  np.testing.assert_allclose(value, total, rtol=1e-5)
  jax.tree.map(np.testing.assert_array_equal, moved["frozen"], aux["frozen"])
  assert bool(moved["stats"]) == batch_norm


def test_predictions_by_head():
  method, params, aux = make()
  predict = step.jit_predict(method)
  first, a, b = (
    predict["logits"](params, aux, BATCH, **options)
    for options in ({}, dict(head="a"), dict(head="b"))
  )
  np.testing.assert_array_equal(first, a)
  assert np.abs(a - b).max() > 1e-3
  embed = predict["image_embed"](params, aux, BATCH)
  np.testing.assert_array_equal(embed, predict["features"](params, aux, BATCH)["pooled"])
  per_example = predict["loss_per_example"](params, aux, BATCH, head="b")
  np.testing.assert_allclose(per_example.mean(), xent(b, BATCH["label"]), rtol=1e-5)
  with pytest.raises(UserError, match="head 'c' is unknown; known: a, b"):
    predict["logits"](params, aux, BATCH, head="c")


def test_statistics_of_a_frozen_resnet_do_not_move():
  resnet = dict(name="resnet", variant="18", stages=(1,), width=4, stem="small")
  method, params, aux = make(resnet, batch_norm=True, features="stage1")
  _, (moved, _) = jax.jit(method.loss)(params, aux, BATCH, KEY, 0)
  jax.tree.map(np.testing.assert_array_equal, moved["frozen"], aux["frozen"])
  assert aux["frozen"]["stats"]["batch_stats"]
  changed = jax.tree.map(lambda x, y: np.any(x != y), moved["stats"], aux["stats"])
  assert all(jax.tree.leaves(changed))


def test_equals_scikit_learn():
  """The same features, the same L2: accuracies of every head within 1 %, probabilities alike."""
  from sklearn.linear_model import LogisticRegression

  def data(split):
    source = digits(split)
    return source.images.astype(np.float32) / 127.5 - 1, source.labels

  (x, y), (x_test, y_test) = data("train"), data("test")
  batch = {"image": x, "label": y, "index": np.arange(len(y), dtype=np.int32)}
  method, params, aux = make(batch=batch, classes=10, batch_norm=True)
  # The batch is the whole split: with a momentum of 0 the running statistics are the split's.
  embed = jax.jit(method.predict["image_embed"])
  z, z_test = (np.asarray(embed(params, aux, {"image": i}), np.float64) for i in (x, x_test))
  mean, std = z.mean(0), np.sqrt(z.var(0) + 1e-5)
  z, z_test = (z - mean) / std, (z_test - mean) / std
  stats = {"norm_pooled": {"mean": jnp.float32(mean), "var": jnp.float32(std**2 - 1e-5)}}
  aux = {**aux, "stats": {"batch_stats": stats}}
  decay = 1e-2
  model = LogisticRegression(C=1 / (decay * len(y)), max_iter=2000, tol=1e-6).fit(z, y)

  tx, _ = optim.make(
    dict(name="sgd", momentum=0.9, lr=0.1, lr_mults=(("heads/b/.*", 0.5),)),
    total_steps=600,
    durations=Durations(len(y), len(y)),
    params=params,
  )

  def objective(heads):
    """Mean loss + decay / 2 |W|^2, what scikit-learn minimises; the backbone's features are `z`."""
    out = {"pooled": jnp.asarray(z * std + mean, jnp.float32)}
    variables = {"params": heads, **aux["stats"]}
    scores = probe.apply(variables, out)
    total = 0.0
    for name, logits in scores.items():
      total += jnp.mean(linear_probe.classification.softmax_xent(logits, jnp.asarray(y)))
      total += decay / 2 * jnp.sum(heads[name]["kernel"] ** 2)
    return total

  probe = linear_probe.Heads((("a", "pooled"), ("b", "pooled")), 10, True)

  @jax.jit
  def run(params):
    def body(carry, _):
      params, opt = carry
      grads = {"heads": jax.grad(objective)(params["heads"])}
      updates, opt = tx.update(grads, opt, params)
      return (optax.apply_updates(params, updates), opt), None

    return jax.lax.scan(body, (params, tx.init(params)), None, length=600)[0][0]

  params = run(params)
  expected = model.score(z_test, y_test)
  for head in ("a", "b"):
    logits = method.predict["logits"](params, aux, {"image": x_test}, head=head)
    assert abs((np.argmax(logits, 1) == y_test).mean() - expected) <= 0.01
    p = jax.nn.softmax(logits)
    np.testing.assert_allclose(p, model.predict_proba(z_test), atol=0.02)


@pytest.mark.parametrize(
  "model, probe, message",
  [
    (dict(VIT, num_classes=4), {}, "num_classes is set; a probe brings its own heads"),
    (VIT, dict(heads="lr_1"), "heads = 'lr_1'; expected a tuple of different names"),
    (VIT, dict(heads=("a", "a")), "expected a tuple of different names"),
    (VIT, dict(features="poled"), "intermediate 'poled' is unknown; did you mean pooled"),
    (VIT, dict(features=(("a", "pooled"),)), "no pattern matches head 'b'"),
  ],
)
def test_mistakes(model, probe, message):
  with pytest.raises(UserError, match=message):
    make(model, **probe)


def test_config_starts_from_a_saved_run():
  config = configs.get_config("variant=resnet50,protocol=mae,backbone=runs/moco::params/query")
  assert config.init_from.to_dict() == {
    "aux/frozen/backbone": "runs/moco::params/query",
    "aux/frozen/stats": "runs/moco::aux/stats",
  }
  assert config.optim.name == "lars" and config.probe.batch_norm
  with pytest.raises(ValueError, match="protocol='simclr' is unknown; dino or mae"):
    configs.get_config("protocol=simclr")
