"""Transforms method -> method."""

import jax
import numpy as np
import pytest

from big_vision_like import state as state_lib
from big_vision_like import step, train, tree
from big_vision_like.config import UserError
from tests import tiny


def test_freeze_has_no_gradient_and_no_optimizer_state():
  whole = train.build(tiny.config(), num_examples=100)
  built = train.build(tiny.config(freeze=("image/.*", "logit_bias")), num_examples=100)
  flat = tree.flatten(built.abstract)
  assert "params/logit_scale" in flat and "aux/frozen/logit_bias" in flat
  assert not any("image/" in n for n in flat if not n.startswith("aux/frozen/image/"))
  assert tree.num_bytes(built.abstract.opt) < 0.6 * tree.num_bytes(whole.abstract.opt)
  total = tree.num_params(built.abstract.params) + tree.num_params(built.abstract.aux)
  assert total == tree.num_params(whole.abstract.params)

  with jax.set_mesh(built.mesh):
    make = lambda b: state_lib.init(b.method, b.tx, jax.random.key(0), b.batch, b.shardings)
    before, free = make(built), make(whole)
    start = jax.device_get(before)
    rng = np.random.default_rng(0)
    batch = {
      "image": rng.normal(size=built.batch["image"].shape).astype(np.float32),
      "text": rng.integers(3, 30, built.batch["text"].shape).astype(np.int32),
      "index": np.arange(16, dtype=np.int32),
    }
    args = (batch, jax.random.key(1), before.step)
    loss = built.method.loss(before.params, before.aux, *args)[0]
    np.testing.assert_allclose(loss, whole.method.loss(free.params, free.aux, *args)[0], rtol=1e-6)
    train_step = step.make_train_step(built.method, built.tx, seed=0, shardings=built.shardings)
    for _ in range(2):  # the first update has learning rate zero
      before, _ = train_step(before, batch)
  after = jax.device_get(before)
  jax.tree.map(np.testing.assert_array_equal, after.aux, start.aux)
  embedding = lambda s: s.params["text"]["embed"]["embedding"]
  assert (embedding(after) != embedding(start)).any()


@pytest.mark.parametrize("patterns, message", [(("imag",), "'imag'"), ((".*",), "freezes all")])
def test_freeze_mistakes(patterns, message):
  with pytest.raises(UserError, match=message):
    train.build(tiny.config(freeze=patterns), num_examples=100)


def test_augment_changes_the_loss_and_not_the_predictions():
  plain, loud = (
    train.build(tiny.config(**kw), num_examples=100)
    for kw in ({}, dict(augment="normalize(0.0, 2.0)|solarize(p=0.0)"))
  )
  key = jax.random.key(0)
  batch = {
    "index": np.arange(16, dtype=np.int32),
    "image": np.random.default_rng(0).random((16, 8, 16, 1), np.float32),
    "text": np.ones((16, 12), np.int32),
  }
  params, aux = plain.method.init(key, batch)
  halved = {**batch, "image": batch["image"] / 2}
  loss = lambda built, batch: built.method.loss(params, aux, batch, key, 0)[0]
  np.testing.assert_allclose(loss(loud, batch), loss(plain, halved), rtol=1e-6)
  embed = lambda built: built.method.predict["image_embed"](params, aux, batch)
  np.testing.assert_array_equal(embed(loud), embed(plain))
