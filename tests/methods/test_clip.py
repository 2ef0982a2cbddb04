"""CLIP: loss and gradient against NumPy in float64, the published size, the temperature."""

import jax
import jax.numpy as jnp
import numpy as np

from big_vision_like import compose, optim, train, tree
from big_vision_like.config import Durations, wrap
from big_vision_like.layers.mlp import GELU
from configs import clip


def config():
  c = clip.get_config("smoke")
  for tower in (c.model.image, c.model.text):
    tower.update(width=32, depth=1, mlp_dim=64, num_heads=2)
  c.model.embed_dim = 8
  return wrap(c)


def batch(n=6):
  rng = np.random.default_rng(0)
  return {
    "index": np.arange(n, dtype=np.int32),
    "image": rng.normal(size=(n, 8, 16, 1)).astype(np.float32),
    "text": rng.integers(3, 90, (n, 12)).astype(np.int32),
  }


def figure_3(x, y, t):
  """Radford et al., Figure 3: labels are arange(n), cross-entropy over both axes."""
  logits = np.exp(t) * x @ y.T
  log_softmax = lambda axis: logits - np.log(np.sum(np.exp(logits), axis, keepdims=True))
  return -(np.trace(log_softmax(0)) + np.trace(log_softmax(1))) / 2 / len(x)


def test_loss_and_its_gradient_are_the_papers():
  method = compose.make_method(config())
  params, aux = jax.jit(method.init)(jax.random.key(0), batch())
  np.testing.assert_allclose(np.exp(params["logit_scale"]), 1 / 0.07, rtol=1e-6)
  assert "logit_bias" not in params and "bias" not in params["text"]["head"]
  represent, compare = method.split
  z = jax.jit(represent)(params, aux, batch(), jax.random.key(1))
  for embeddings in z.values():
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)
  x, y, t = (np.float64(v) for v in (z["image"], z["text"], params["logit_scale"]))

  value, (_, metrics) = jax.jit(method.loss)(params, aux, batch(), jax.random.key(1), 0)
  np.testing.assert_allclose(value, figure_3(x, y, t), rtol=1e-5)
  np.testing.assert_allclose(metrics["temperature"], 1 / 0.07, rtol=1e-6)
  per_example = jax.jit(method.predict["loss_per_example"])
  np.testing.assert_allclose(np.mean(per_example(params, aux, batch())), value, rtol=1e-5)
  # Rows that only fill the batch are no negatives.
  padded = {k: np.concatenate([v, v[:2]]) for k, v in batch().items()}
  padded["_mask"] = np.arange(8) < 6
  got = per_example(params, aux, padded)
  np.testing.assert_allclose(got[:6], per_example(params, aux, batch()), rtol=1e-4)

  of = lambda t, x: compare({"logit_scale": t}, {}, {**z, "image": x}, None, None, 0)[0]
  by_t, by_x = jax.grad(of, argnums=(0, 1))(params["logit_scale"], z["image"])
  h = 1e-6
  np.testing.assert_allclose(
    by_t, (figure_3(x, y, t + h) - figure_3(x, y, t - h)) / (2 * h), rtol=1e-4
  )
  for at in ((0, 0), (3, 5)):
    step = np.zeros_like(x)
    step[at] = h
    want = (figure_3(x + step, y, t) - figure_3(x - step, y, t)) / (2 * h)
    np.testing.assert_allclose(by_x[at], want, rtol=1e-3, atol=1e-5)


def test_quick_gelu():
  x = np.linspace(-3, 3, 7, dtype=np.float32)
  np.testing.assert_allclose(GELU["quick"](x), x / (1 + np.exp(-1.702 * x)), rtol=1e-5)


def test_temperature_stays_below_one_hundred():
  params = {"logit_scale": jnp.float32(4.6), "kernel": jnp.ones((2, 2))}
  for cfg in (clip.get_config("smoke").optim, clip.get_config().optim):
    cfg = {**cfg.to_dict(), "lr": 1.0, "schedule": dict(name="constant"), "wd_mask": "kernel"}
    tx, _ = optim.make(wrap(cfg), total_steps=10, durations=Durations(1, 1, 10), params=params)
    grads = {"logit_scale": jnp.float32(-1.0), "kernel": jnp.zeros((2, 2))}
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(np.exp(params["logit_scale"] + updates["logit_scale"]), 100, 1e-4)


def test_parameters_are_openais():
  """ViT-B/32, to the last one."""
  c = wrap(clip.get_config())
  method = compose.make_method(c)
  params, _ = jax.eval_shape(method.init, jax.random.key(0), train.batch_spec(c.input))
  assert tree.num_params(params) == 151_277_313
  assert tree.num_params(params["text"]) == 49_408 * 512 + 77 * 512 + 12 * 3_152_384 + 1024 + 512**2
