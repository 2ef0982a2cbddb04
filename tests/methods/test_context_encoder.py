"""One loss for two players: each term against NumPy, each gradient from its own player's terms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_like import models, optim, tree
from big_vision_like.config import Durations, UserError, wrap
from big_vision_like.methods import context_encoder
from big_vision_like.models import context_encoder as networks
from configs import context_encoder as configs

RNG = np.random.default_rng(0)
IMAGE = RNG.uniform(-1, 1, size=(6, 8, 16, 2)).astype(np.float32)
BATCH = {"image": IMAGE, "index": np.arange(6)}
KEY, STEP = jax.random.key(3), jnp.int32(0)
MODEL = dict(encoder=(4, 8), bottleneck=6, decoder=(8, 4), discriminator=(4, 8))
LOSS = dict(
  mask="center(8, 8, overlap=1)",
  fill=(-0.4, 0.1),
  lambda_rec=0.9,
  lambda_adv=0.3,
  overlap_weight=10.0,
)


def make(**loss):
  return context_encoder.make(wrap(dict(model=MODEL, loss=LOSS | loss)))


@pytest.fixture(scope="module")
def start():
  """Away from the initialisation, where weights of 0.02 make all logits alike."""
  params, aux = jax.jit(make().init)(jax.random.key(0), BATCH)
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda x: x + 0.2 * rng.normal(size=x.shape).astype(np.float32), params), aux


def grads(params, aux, **loss):
  return jax.jit(jax.grad(lambda p: make(**loss).loss(p, aux, BATCH, KEY, STEP)[0]))(params)


def outputs(params, aux):
  """What the two networks say in training, called by hand; and hidden, box of the central hole."""
  g, d = networks.make(wrap(MODEL), (8, 8))
  hidden, box = np.zeros((1, 8, 16, 1)), np.zeros((1, 8, 16, 1))
  box[:, 0:8, 4:12] = 1
  hidden[:, 1:7, 5:11] = 1
  context = np.where(hidden > 0, np.array([-0.4, 0.1], np.float32).reshape(1, 1, 1, 2), IMAGE)
  run = lambda net, name, p, x: models.apply(net, p, aux["stats"][name], x, train=True)[0][0]
  fake = run(g, "generator", params["generator"], context)
  discriminate = lambda p, x: run(d, "discriminator", p, x)
  real = jnp.asarray(IMAGE[:, :, 4:12])
  return fake, real, discriminate, hidden, box


def test_loss_against_numpy(start):
  params, aux = start
  value, (new, metrics) = jax.jit(make().loss)(params, aux, BATCH, KEY, STEP)
  fake, real, discriminate, hidden, box = outputs(params, aux)
  d = params["discriminator"]
  on_real, on_fake = (np.asarray(discriminate(d, x), np.float64) for x in (real, fake))

  x, f = np.asarray(IMAGE, np.float64), np.zeros(IMAGE.shape)
  f[:, :, 4:12] = fake
  total = 0.0
  for b, i, j, c in np.ndindex(x.shape):
    if box[0, i, j, 0]:
      weight = 1 if hidden[0, i, j, 0] else 10
      total += weight * (x[b, i, j, c] - f[b, i, j, c]) ** 2
  rec = total / (6 * 8 * 8 * 2)
  big_d = lambda logit: 1 / (1 + np.exp(-logit))
  adv = -np.mean(np.log(big_d(on_fake)))
  dis = -np.mean(np.log(big_d(on_real))) - np.mean(np.log(1 - big_d(on_fake)))
  np.testing.assert_allclose(metrics["reconstruction"], rec, rtol=1e-5)
  np.testing.assert_allclose(metrics["adversarial"], adv, rtol=1e-5)
  np.testing.assert_allclose(metrics["discriminator"], dis, rtol=1e-5)
  np.testing.assert_allclose(value, 0.9 * rec + 0.3 * adv + dis, rtol=1e-5)
  assert metrics["d_accuracy"] == ((on_real > 0).mean() + (on_fake < 0).mean()) / 2
  assert jax.tree.structure(new) == jax.tree.structure(aux)
  moved = tree.flatten(new)
  assert all(np.any(moved[k] != x) for k, x in tree.flatten(aux).items())


def test_each_player_learns_from_its_own_terms(start):
  """Against both players' objectives written apart, without `stop_gradient`."""
  params, aux = start
  got = grads(params, aux)

  def generators(g):
    fake, real, discriminate, hidden, _ = outputs(params | {"generator": g}, aux)
    weight = jnp.asarray(np.where(hidden > 0, 1.0, 10.0)[:, :, 4:12], jnp.float32)
    rec = jnp.mean(weight * jnp.square(fake - real))
    return 0.9 * rec - 0.3 * jnp.mean(jnp.log(jax.nn.sigmoid(discriminate(constant, fake))))

  def discriminators(d):
    on_real, on_fake = discriminate(d, real), discriminate(d, fake)
    log = lambda x: jnp.mean(jnp.log(jax.nn.sigmoid(x)))
    return -log(on_real) - log(-on_fake)

  constant = params["discriminator"]
  fake, real, discriminate, _, _ = outputs(params, aux)
  expected = {
    "generator": jax.jit(jax.grad(generators))(params["generator"]),
    "discriminator": jax.jit(jax.grad(discriminators))(params["discriminator"]),
  }
  expected = tree.flatten(expected)
  for name, grad in tree.flatten(got).items():
    scale = float(jnp.max(jnp.abs(expected[name])))
    np.testing.assert_allclose(grad, expected[name], rtol=1e-4, atol=1e-5 * scale, err_msg=name)

  # Without weight on what the generator wants, it does not move, and the discriminator does.
  other = grads(params, aux, lambda_rec=0.0, lambda_adv=1e-30)
  assert all(np.max(np.abs(x)) < 1e-25 for x in jax.tree.leaves(other["generator"]))
  for a, b in zip(*(jax.tree.leaves(g["discriminator"]) for g in (other, got))):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mask", ["center(8, 8)", "blocks(3, 4, 5)", "region(0.25, 4)"])
def test_hidden_pixels_are_not_seen_and_the_rest_is_pasted(mask):
  method = make(mask=mask)
  params, aux = jax.jit(method.init)(jax.random.key(0), BATCH)
  fn = jax.jit(method.predict["reconstruct"])
  out = fn(params, aux, BATCH, KEY)
  hidden = np.broadcast_to(out["mask"] == 1, IMAGE.shape)
  np.testing.assert_array_equal(out["target"], IMAGE)
  np.testing.assert_array_equal(np.asarray(out["image"])[~hidden], IMAGE[~hidden])
  assert np.all(np.asarray(out["image"])[hidden] != IMAGE[hidden])
  other = fn(params, aux, {"image": np.where(hidden, 0.7, IMAGE).astype(np.float32)}, KEY)
  np.testing.assert_allclose(other["image"], out["image"], atol=1e-6)

  errors = jax.jit(method.predict["loss_per_example"])(params, aux, BATCH, KEY)
  squares = np.where(hidden, np.asarray(out["image"], np.float64) - IMAGE, 0) ** 2
  expected = [s.sum() / h.sum() for s, h in zip(squares, hidden)]
  np.testing.assert_allclose(errors, expected, rtol=1e-5)


def test_masks():
  shape = (40, 12, 16, 3)
  hide, box = context_encoder.make_mask("center(8, 4, overlap=1)")
  hidden = np.asarray(hide(KEY, shape))[..., 0]
  assert box == (8, 4) and np.all(hidden[:, 3:9, 7:9]) and hidden.sum() == 40 * 6 * 2

  hide, box = context_encoder.make_mask("blocks(1, 3, 5)")
  hidden = np.asarray(hide(KEY, shape))[..., 0]
  assert box is None and len(np.unique(hidden, axis=0)) > 20
  for one in hidden:
    rows, columns = np.flatnonzero(one.any(axis=1)), np.flatnonzero(one.any(axis=0))
    assert one.sum() == 15 and len(rows) == 3 and len(columns) == 5
  assert hidden.any((0, 1)).all() and hidden.any((0, 2)).all()  # the edges too
  several = np.asarray(context_encoder.make_mask("blocks(4, 3, 5)")[0](KEY, shape)).sum((1, 2, 3))
  assert np.all(several <= 60) and several.max() > 45

  hidden = np.asarray(context_encoder.make_mask("region(0.25, 4)")[0](KEY, shape))[..., 0]
  np.testing.assert_array_equal(hidden.sum((1, 2)), 12 * 16 // 4)
  flips = np.sum(hidden[:, :, 1:] != hidden[:, :, :-1]) / len(hidden)
  assert flips < 50  # a shape, not salt and pepper (about 70)


@pytest.mark.parametrize(
  "mask, message",
  [
    ("centre(8, 8)", "config.loss.mask 'centre' is unknown; did you mean center"),
    ("center", "config.loss.mask: missing a required argument: 'height'"),
    ("center(8, 8, overlap=4)", "overlap 4 leaves nothing of 8 x 8"),
    ("center(8, wide)", "expected one mask with numbers"),
    ("blocks(3, 9, 4)", "9 x 4 is larger than the image"),
  ],
)
def test_mistakes(mask, message):
  with pytest.raises(UserError, match=message):
    jax.eval_shape(make(mask=mask).init, KEY, BATCH)
    context_encoder.make_mask(mask)[0](KEY, IMAGE.shape)


@pytest.mark.parametrize("arg, rates", [("", {"generator": 2e-3, "discriminator": 2e-4})])
def test_the_discriminator_has_its_own_rate(start, arg, rates):
  """Adam's first update is the learning rate wherever there is a gradient."""
  params, _ = start
  c = configs.get_config(arg)
  tx, schedules = optim.make(
    c.optim, total_steps=10, durations=Durations(64, None, 10), params=params
  )
  assert {k: float(f(0)) for k, f in schedules.items()} == pytest.approx(
    {"lr": rates["generator"], "lr_group0": rates["discriminator"]}
  )
  ones = jax.tree.map(jnp.ones_like, params)
  updates, _ = tx.update(ones, tx.init(params), params)
  for name, rate in rates.items():
    for x in jax.tree.leaves(updates[name]):
      np.testing.assert_allclose(x, -rate, rtol=1e-5)


def test_without_an_adversary_there_is_no_discriminator():
  c = configs.get_config("smoke,lambda_adv=0")
  assert c.loss.lambda_adv == 0 and c.optim.groups == ()
  method = make(lambda_adv=0)
  params, aux = jax.jit(method.init)(jax.random.key(0), BATCH)
  assert set(params) == set(aux["stats"]) == {"generator"}
  value, (_, metrics) = jax.jit(method.loss)(params, aux, BATCH, KEY, STEP)
  np.testing.assert_allclose(value, 0.9 * metrics["reconstruction"], rtol=1e-6)
  assert set(metrics) == {"reconstruction"}
