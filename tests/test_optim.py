"""Schedules by hand, every optimizer on a quadratic, and which leaf gets which rate and decay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from big_vision_like import optim, schedules, tree
from big_vision_like.config import Config, Durations, UserError

DURATIONS = Durations(batch_size=10, num_examples=100, total_steps=100)


def make(cfg, params, total_steps=100):
  return optim.make(
    Config(cfg, "config.optim"), total_steps=total_steps, durations=DURATIONS, params=params
  )


def normal(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def towers(depth=3, scan=True):
  """Parameters as the models name them; both forms hold the same numbers."""
  block = lambda i: {
    "up": {"kernel": normal(4, 6, seed=i), "bias": normal(6, seed=50 + i)},
    "ln": {"scale": normal(4, seed=100 + i)},
  }
  blocks = [block(i) for i in range(depth)]
  if scan:
    encoder = {"blocks": jax.tree.map(lambda *x: jnp.stack(x), *blocks)}
  else:
    encoder = {f"block_{i}": b for i, b in enumerate(blocks)}
  return {
    "image": {
      "patch_embed": {"proj": {"kernel": normal(5, 4, seed=7)}},
      "encoder": {**encoder, "norm": {"scale": normal(4, seed=8)}},
      "head": {"kernel": normal(4, 3, seed=9)},
    },
    "logit_scale": jnp.float32(2.0),
  }


def step(cfg, params, grads, n=1, **kwargs):
  tx, _ = make(cfg, params, **kwargs)
  state = tx.init(params)
  update = jax.jit(tx.update)
  for _ in range(n):
    updates, state = update(grads, state, params)
    params = optax.apply_updates(params, updates)
  return params


def assert_close(a, b, **kwargs):
  a, b = tree.flatten(a), tree.flatten(b)
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_allclose(a[name], b[name], err_msg=name, **kwargs)


# --------------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize(
  "schedule, expected",
  [
    (dict(name="constant"), {0: 2, 50: 2, 100: 2}),
    (dict(name="constant", warmup_steps=10, cooldown_steps=20), {0: 0, 5: 1, 10: 2, 90: 1, 100: 0}),
    (dict(name="linear"), {0: 2, 50: 1, 100: 0, 120: 0}),
    (dict(name="linear", warmup_epochs=2, end_factor=0.1), {10: 1, 20: 2, 60: 1.1, 100: 0.2}),
    (dict(name="linear", cooldown_percent=20, end_factor=0.5), {40: 1.5, 80: 1, 90: 0.5, 100: 0}),
    (dict(name="cosine", warmup_examples=200), {10: 1, 20: 2, 40: 1 + np.sqrt(0.5), 60: 1, 100: 0}),
    (dict(name="cosine", end_factor=0.5), {0: 2, 50: 1.5, 100: 1, 200: 1}),
    (dict(name="cosine", warmup_steps=20, cooldown_steps=20, end_factor=0.5), {50: 1.5, 90: 0.5}),
    (
      dict(name="rsqrt", warmup_steps=10, timescale_steps=10, cooldown_steps=20),
      {5: 1, 10: 2, 40: 1, 80: 2 / np.sqrt(8), 90: 1 / 3, 100: 0},
    ),
    (dict(name="rsqrt", warmup_steps=10), {110: 2 / np.sqrt(1.01)}),
  ],
  ids=str,
)
def test_schedule_by_hand(schedule, expected):
  fn = schedules.make(schedule, 2.0, 100, DURATIONS)
  for at, value in expected.items():
    np.testing.assert_allclose(fn(at), value, atol=1e-6, err_msg=str(at))
    np.testing.assert_allclose(jax.jit(fn)(jnp.int32(at)), value, atol=1e-6)


# -------------------------------------------------------------------------------------- optimizers


@pytest.mark.parametrize("name", [*optim.TRANSFORMS, *optim.FROM_OPTAX])
def test_every_optimizer_reduces_a_quadratic(name):
  target = {"blocks": {"kernel": normal(2, 4, 4)}, "bias": normal(4, seed=1)}
  start = jax.tree.map(lambda x: x + 1.0, target)
  loss = lambda p: optax.tree.norm(optax.tree.sub(p, target), squared=True)
  lr = {"lars": 1.0, "adadelta": 10.0, "sm3": 0.1}.get(name, 0.01)
  tx, schedules = make(dict(name=name, lr=lr), start)
  update = jax.jit(lambda p, s: tx.update(jax.grad(loss)(p), s, p))
  params, state = start, tx.init(start)
  for _ in range(20):
    updates, state = update(params, state)
    params = optax.apply_updates(params, updates)
  moved = jax.tree.map(lambda a, b: float(jnp.min(jnp.abs(a - b))), params, start)
  assert all(x > 0 for x in jax.tree.leaves(moved)), moved
  assert loss(params) < 0.95 * loss(start)
  assert float(schedules["lr"](0)) == pytest.approx(lr)


def run_optax(tx, params, grads, n):
  state = tx.init(params)
  for _ in range(n):
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
  return params


def test_equals_optax():
  params = {"a": {"kernel": normal(3, 4), "bias": normal(4)}}
  grads = jax.tree.map(jnp.sin, params)
  mask = {"a": {"kernel": True, "bias": False}}
  ours = step(
    dict(name="adamw", lr=0.1, b2=0.95, weight_decay=0.3, schedule=dict(name="linear")),
    params,
    grads,
    n=4,
  )
  schedule = optax.linear_schedule(0.1, 0.0, 100)
  theirs = optax.adamw(schedule, b2=0.95, weight_decay=0.3, mask=mask)
  assert_close(ours, run_optax(theirs, params, grads, 4), rtol=1e-6)

  ours = step(dict(name="lamb", lr=0.1, weight_decay=0.3), params, grads, n=4)
  theirs = optax.lamb(0.1, weight_decay=0.3, mask=mask)
  assert_close(ours, run_optax(theirs, params, grads, 4), rtol=1e-5)

  ours = step(
    dict(name="lars", lr=0.1, weight_decay=0.3, schedule=dict(name="linear")), params, grads, n=4
  )
  theirs = optax.lars(schedule, weight_decay=0.3, weight_decay_mask=mask, trust_ratio_mask=mask)
  assert_close(ours, run_optax(theirs, params, grads, 4), rtol=1e-6)


def test_adafactor_by_hand():
  """Unfactored, first two steps: beta2 is 0 and then 1 - 2^-0.8; the update's rms is at most 1."""
  params, grads = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([3.0, -4.0])}
  tx, _ = make(dict(name="adafactor", lr=1.0, mu_dtype="float32"), params)
  state = tx.init(params)
  updates, state = tx.update(grads, state, params)
  np.testing.assert_allclose(updates["w"], -0.1 * np.array([1.0, -1.0]), rtol=1e-5)
  grads = {"w": jnp.array([6.0, -4.0])}
  updates, state = tx.update(grads, state, params)
  beta = 1 - 2**-0.8
  direction = np.array([6.0, -4.0]) / np.sqrt(
    beta * np.array([9, 16]) + (1 - beta) * np.array([36, 16])
  )
  direction /= max(1, np.sqrt(np.mean(direction**2)))
  expected = 0.9 * 0.1 * np.array([1.0, -1.0]) + 0.1 * direction
  np.testing.assert_allclose(updates["w"], -expected, rtol=1e-5)


def test_adafactor_beta2_is_capped():
  """Capped at 0, each step is the gradient's sign."""
  params = {"w": jnp.array([1.0, 2.0])}
  tx, _ = make(dict(name="adafactor", lr=1.0, b1=0, beta2_cap=0.0), params)
  state = tx.init(params)
  for scale in (1.0, 10.0):
    updates, state = tx.update({"w": jnp.array([scale, -scale])}, state, params)
    np.testing.assert_allclose(updates["w"], [-1.0, 1.0], rtol=1e-5)


def test_adafactor_state_is_small():
  params = {"blocks": {"kernel": jnp.zeros((2, 128, 256))}}
  tx, _ = make(dict(name="adafactor", lr=1.0), params)
  state = tree.flatten(jax.eval_shape(tx.init, params))
  shapes = {(x.shape, str(x.dtype)) for x in state.values() if x.ndim}
  assert ((2, 128, 256), "bfloat16") in shapes  # momentum
  assert ((2, 128), "float32") in shapes and ((2, 256), "float32") in shapes
  assert ((2, 128, 256), "float32") not in shapes
  assert all(name.endswith("blocks/kernel") for name, x in state.items() if x.ndim)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lamb", "lars", "muon"])
def test_a_scanned_stack_trains_like_its_layers(name):
  cfg = dict(name=name, lr=0.1, weight_decay=0.1, layer_decay=0.5)
  if name == "adafactor":
    cfg.update(min_dim_size_to_factor=4)
  out = []
  for scan in (True, False):
    params = towers(scan=scan)
    out.append(step(cfg, params, jax.tree.map(jnp.sin, params), n=2))
  stacked = out[0]["image"]["encoder"].pop("blocks")
  for i in range(3):
    layer = out[1]["image"]["encoder"].pop(f"block_{i}")
    assert_close(jax.tree.map(lambda x, i=i: x[i], stacked), layer, rtol=1e-5, atol=1e-6)
  assert_close(*out, rtol=1e-6)


def test_muon_orthogonalises_hidden_matrices_only():
  params = towers()
  moved = optax.tree.sub(
    step(dict(name="muon", lr=1.0), params, jax.tree.map(jnp.sin, params)), params
  )
  singular = jnp.linalg.svd(moved["image"]["encoder"]["blocks"]["up"]["kernel"])[1]
  np.testing.assert_allclose(singular, 0.2 * np.sqrt(6), rtol=0.4)  # Newton-Schulz is rough
  for leaf in (moved["image"]["head"], moved["image"]["patch_embed"]["proj"]):
    np.testing.assert_allclose(jnp.abs(leaf["kernel"]), 1.0, rtol=1e-3)  # Adam's first step


# ------------------------------------------------------------------------------------ which leaves

SGD = dict(name="sgd", momentum=0.0, lr=1.0)


def test_decay_is_on_kernels_and_follows_the_rate():
  params = towers()
  zero = jax.tree.map(jnp.zeros_like, params)
  schedule = dict(name="constant", cooldown_steps=2)
  out = step({**SGD, "weight_decay": 0.1, "schedule": schedule}, params, zero, n=2, total_steps=2)
  factor = lambda name, p: p * (0.9 * 0.95 if name.endswith("kernel") else 1.0)
  assert_close(out, tree.map_with_name(factor, params), rtol=1e-6)
  out = step({**SGD, "weight_decay": 0.1, "wd_mask": ["bias", "image/head/.*"]}, params, zero)
  factor = lambda name, p: p * (0.9 if "head" in name or name.endswith("bias") else 1.0)
  assert_close(out, tree.map_with_name(factor, params), rtol=1e-6)


def test_a_stacked_vector_named_kernel_has_no_decay():
  params = {"blocks": {"kernel": jnp.ones((2, 3))}, "kernel": jnp.ones((2, 3))}
  out = step({**SGD, "weight_decay": 0.5}, params, jax.tree.map(jnp.zeros_like, params))
  assert_close(out, {"blocks": {"kernel": jnp.ones((2, 3))}, "kernel": jnp.full((2, 3), 0.5)})


def rates(cfg, params):
  """path -> how far a gradient of 1 moves the leaf."""
  ones = jax.tree.map(jnp.ones_like, params)
  return tree.flatten(jax.tree.map(lambda a, b: b - a, step(cfg, params, ones), params))


def test_first_lr_mult_wins():
  mults = [("image/head/kernel", 0.5), ("image/.*", 0.1), ("kernel", 7.0)]
  for name, rate in rates({**SGD, "lr_mults": mults}, towers()).items():
    expected = 0.5 if "head" in name else 0.1 if "image" in name else 1.0
    np.testing.assert_allclose(rate, expected, rtol=1e-5, err_msg=name)


def test_layer_decay_counts_each_tower():
  params = {**towers(depth=3), "text": towers(depth=2, scan=False)["image"]}
  params["text"]["embed"] = {"embedding": normal(4, 4)}
  out = rates({**SGD, "layer_decay": 0.5, "lr_mults": [("text/head/kernel", 3.0)]}, params)
  np.testing.assert_allclose(
    out["image/encoder/blocks/up/kernel"][:, 0, 0], [0.125, 0.25, 0.5], rtol=1e-5
  )
  expected = {
    "image/patch_embed/proj/kernel": 0.0625,
    "image/encoder/norm/scale": 1,
    "image/head/kernel": 1,
    "text/embed/embedding": 0.125,
    "text/encoder/block_0/up/bias": 0.25,
    "text/encoder/block_1/up/bias": 0.5,
    "text/head/kernel": 3,
    "logit_scale": 1,
  }
  for name, value in expected.items():
    np.testing.assert_allclose(out[name], value, rtol=1e-5, err_msg=name)


def test_clip_norm_is_over_all_parameters():
  params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
  grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
  cfg = {**SGD, "clip_norm": 1.0, "groups": [("b", dict(lr=10.0))]}
  expected = {"a": np.array([-0.6]), "b": np.array([-8.0])}
  assert_close(step(cfg, params, grads), expected, rtol=1e-6)


def test_project_keeps_a_box():
  params = {"logit_scale": jnp.float32(4.0), "w": jnp.float32(4.0)}
  cfg = {**SGD, "project": [("logit_scale", "clip(0, 4.6052)")]}
  up = jax.tree.map(lambda x: jnp.float32(-50.0), params)
  assert_close(step(cfg, params, up), {"logit_scale": 4.6052, "w": 54.0}, rtol=1e-6)
  down = jax.tree.map(lambda x: jnp.float32(50.0), params)
  assert_close(step(cfg, params, down, n=2), {"logit_scale": 0.0, "w": -96.0}, atol=1e-6)


def test_groups_have_their_own_optimizer():
  params = {"gen": {"kernel": normal(2, 2)}, "disc": {"kernel": normal(2, 2)}, "x": normal(3)}
  grads = jax.tree.map(jnp.sin, params)
  base = dict(name="adam", lr=0.1, b1=0.5, project=[("x", "clip(-9, 9)")])
  other = dict(name="sgd", lr=0.01, schedule=dict(name="linear"))
  cfg = {**base, "groups": [("disc/.*", other), (".*/kernel", dict(b1=0.0))]}
  out = step(cfg, params, grads, n=2)
  _, schedules = make(cfg, params)
  assert {k: round(float(f(50)), 6) for k, f in schedules.items()} == {
    "lr": 0.1,
    "lr_group0": 0.005,
    "lr_group1": 0.1,
  }
  one = lambda key, cfg: step(cfg, {key: params[key]}, {key: grads[key]}, n=2)[key]
  assert_close(out["disc"], one("disc", other), rtol=1e-6)
  assert_close(out["gen"], one("gen", dict(name="adam", lr=0.1, b1=0.0)), rtol=1e-6)
  assert_close({"x": out["x"]}, {"x": one("x", base)}, rtol=1e-6)


def test_all_keys_count_as_read():
  cfg = Config(dict(name="adamw", lr=1.0, b2=0.9, schedule=dict(name="cosine", warmup_steps=1)))
  optim.make(cfg, total_steps=10, durations=DURATIONS, params={"w": jnp.ones(2)})
  assert cfg.unread() == []


# ----------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
  "cfg, message",
  [
    (dict(name="adamv"), r"config.optim.name 'adamv' is unknown; did you mean adam"),
    (dict(name=3), "config.optim.name 3"),
    (dict(lr="abc"), "config.optim.lr = 'abc'; expected a number"),
    (dict(lr=True), "config.optim.lr"),
    (dict(lr=float("nan")), "config.optim.lr"),
    (dict(lr=-1.0), ">= 0"),
    (dict(b3=0.9), "key 'b3' is unknown; did you mean b"),
    (dict(wieght_decay=0.9), "did you mean weight_decay"),
    (dict(b1="x"), "config.optim.b1"),
    (dict(nesterov=1), "expected True or False"),
    (dict(mu_dtype="bf16"), "bfloat16"),
    (dict(schedule=dict(name="cosine", warmup_steps=1, warmup_percent=2)), "given 2 times"),
    (dict(clip_norm=0), "config.optim.clip_norm = 0"),
    (dict(schedule=dict(name="cosin")), "did you mean cosine"),
    (dict(schedule=dict(name="cosine", warmup=3)), "did you mean warmup_"),
    (dict(schedule=dict(name="rsqrt", end_factor=0.1)), "end_factor"),
    (dict(schedule=dict(name="cosine", end_factor="x")), "config.optim.schedule.end_factor"),
    (dict(schedule=dict(name="cosine", warmup_steps="x")), "warmup_steps"),
    (dict(schedule=dict(name="cosine", warmup_steps=99, cooldown_steps=2)), "exceed"),
    (dict(schedule="cosine"), "config.optim.schedule"),
    (dict(lr_mults=[("hed/.*", 2.0)]), "'hed/.*' matches no parameter"),
    (dict(lr_mults=[("head", "x")]), "pairs"),
    (dict(lr_mults=[("(", 1.0)]), "not a regular expression"),
    (dict(wd_mask="kernl"), "'kernl' matches no parameter"),
    (dict(layer_decay=-1), "layer_decay"),
    (dict(project=[("logit_scal", "clip(0, 1)")]), "matches no parameter"),
    (dict(project=[("logit_scale", "clamp(0, 1)")]), "clip"),
    (dict(project=[("logit_scale", "clip(1, 0)")]), "smaller first"),
    (dict(groups=[("text/.*", dict(lr=1.0))]), "matches no parameter"),
    (dict(groups=[("image/.*", dict(lrr=1.0))]), "did you mean lr"),
    (dict(groups=[("image/.*", dict(clip_norm=1.0))]), "clip_norm holds for all"),
  ],
  ids=str,
)
def test_mistakes(cfg, message):
  with pytest.raises(UserError, match=message) as error:
    make({"name": "adamw", "lr": 1e-3, **cfg}, towers())
  assert "\n" not in str(error.value)


def test_layer_decay_needs_blocks():
  with pytest.raises(UserError, match="layer_decay"):
    make(dict(name="sgd", lr=1.0, layer_decay=0.5), {"w": jnp.ones(3)})
