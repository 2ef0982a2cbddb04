"""Schedules by hand, every optimizer on a quadratic, masks, multipliers, boxes, groups."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from big_vision_like import optim, tree
from big_vision_like.config import Durations, UserError, wrap

PARAMS = {
  "encoder": {
    "blocks": {"mlp": {"up": {"kernel": jnp.ones((3, 40, 36)), "bias": jnp.ones((3, 36))}}},
  },
  "pos_embed": jnp.ones((4, 8)),
  "head": {"kernel": jnp.ones((8, 4))},
  "logit_scale": jnp.float32(2.0),
}


def make(params=PARAMS, total=100, **cfg):
  cfg = {"name": "sgd", "lr": 0.1, "momentum": 0.0, **cfg}
  if cfg["name"] != "sgd":
    cfg.pop("momentum")
  durations = Durations(10, 1000, total)
  return optim.make(
    wrap({"optim": cfg}).optim, total_steps=total, durations=durations, params=params
  )


def update(tx, params=PARAMS, grads=None):
  grads = jax.tree.map(jnp.ones_like, params) if grads is None else grads
  return tx.update(grads, tx.init(params), params)[0]


@pytest.mark.parametrize(
  "cfg, expected",
  [
    (dict(name="cosine", warmup_steps=10), {0: 0, 5: 0.5, 10: 1, 55: 0.5, 100: 0}),
    (dict(name="linear", warmup_percent=20, end_factor=0.2), {10: 0.5, 20: 1, 60: 0.6, 100: 0.2}),
    (dict(name="rsqrt", timescale=10, cooldown_steps=10), {0: 1, 30: 0.5, 95: 0.5 / 10.5**0.5}),
    (dict(name="constant", cooldown_epochs=0.2), {0: 1, 80: 1, 90: 0.5, 100: 0}),
    (dict(name="cosine", warmup_examples=100), {5: 0.5, 10: 1}),
  ],
)
def test_schedules(cfg, expected):
  _, schedules = make(schedule=cfg, lr=2.0)
  for step, value in expected.items():
    np.testing.assert_allclose(schedules["lr"](step), 2.0 * value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", list(optim.OPTIMIZERS))
def test_every_optimizer_goes_down(name):
  goal = jax.tree.map(lambda p: p * 0.5, PARAMS)
  loss = lambda p: sum(jnp.sum((a - b) ** 2) for a, b in zip(*map(jax.tree.leaves, (p, goal))))
  tx, _ = make(name=name, lr={"lars": 1.0, "muon": 0.3}.get(name, 0.02))

  @jax.jit
  def step(params, state):
    updates, state = tx.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state

  params, state = PARAMS, tx.init(PARAMS)
  start = loss(params)
  for _ in range(10):
    params, state = step(params, state)
  assert loss(params) < 0.9 * start


def test_adamw_is_optax_adamw():
  tx, _ = make(name="adamw", lr=0.1, weight_decay=0.3, wd_mask=".*")
  ours = update(tx)
  theirs = update(optax.adamw(0.1, weight_decay=0.3))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, theirs)


def test_decay_and_multipliers():
  tx, _ = make(lr=1.0, weight_decay=0.5, lr_mults=[("head/.*", 0.1)], layer_decay=0.5)
  u = tree.flatten(update(tx))
  np.testing.assert_allclose(u["head/kernel"], -0.15 * np.ones((8, 4)), rtol=1e-6)
  np.testing.assert_allclose(u["pos_embed"], -(0.5**4) * np.ones((4, 8)), rtol=1e-6)
  np.testing.assert_allclose(u["logit_scale"], -1.0)
  by_layer = u["encoder/blocks/mlp/up/kernel"][:, 0, 0]
  np.testing.assert_allclose(by_layer, -1.5 * np.array([0.125, 0.25, 0.5]), rtol=1e-6)


def test_trust_ratio_is_per_layer_of_a_stack():
  """A scanned stack moves as the same layers one by one."""
  tx, _ = make(name="lamb", lr=0.1)
  kernel = jnp.stack([jnp.ones((4, 4)), 3 * jnp.ones((4, 4))])
  stacked = {"encoder": {"blocks": {"kernel": kernel}}}
  alone = {"encoder": {"block_0": {"kernel": kernel[0]}, "block_1": {"kernel": kernel[1]}}}
  a, b = update(tx, stacked), update(tx, alone)
  for i in range(2):
    np.testing.assert_allclose(
      a["encoder"]["blocks"]["kernel"][i], b["encoder"][f"block_{i}"]["kernel"], rtol=1e-6
    )


def test_boxes_hold():
  tx, _ = make(lr=5.0, project=[("logit_scale", "clip(0, 4.6052)")])
  params = optax.apply_updates(PARAMS, update(tx))
  np.testing.assert_allclose(params["logit_scale"], 0.0)
  np.testing.assert_allclose(params["head"]["kernel"], -4.0 * np.ones((8, 4)))


def test_groups_have_their_own_settings():
  tx, schedules = make(lr=1.0, groups=[("head/.*", dict(lr=0.01))])
  u = tree.flatten(update(tx))
  np.testing.assert_allclose(u["head/kernel"][0, 0], -0.01, rtol=1e-6)
  np.testing.assert_allclose(u["pos_embed"][0, 0], -1.0)
  assert set(schedules) == {"lr", "lr_1"}


@pytest.mark.parametrize(
  "cfg, message",
  [
    (dict(name="adamm"), "did you mean adam"),
    (dict(name="adamw", beta2=0.9), "beta2"),
    (dict(lr="abc"), "config.optim.lr = 'abc'"),
    (dict(schedule=dict(name="cosin")), "cosine"),
    (dict(schedule=dict(name="cosine", warmup_steps=200)), "exceed"),
    (dict(schedule=dict(name="cosine", warmup_steps=1, warmup_percent=2)), "given 2 times"),
    (dict(lr_mults=[("nothing", 2.0)]), "matches no parameter"),
    (dict(project=[("logit_scale", "box(1)")]), "clip(low, high)"),
  ],
)
def test_mistakes(cfg, message):
  with pytest.raises(UserError) as error:
    make(**cfg)
  assert message in str(error.value)
