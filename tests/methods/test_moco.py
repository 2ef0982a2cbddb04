"""MoCo against a float64 transcription of its equations; queue, shuffling and momentum by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_like import models, tree
from big_vision_like.config import Durations, UserError, wrap
from big_vision_like.losses.info_nce import info_nce
from big_vision_like.methods import moco

RNG = jax.random.key(3)


def unit(rng, *shape):
  x = rng.normal(size=shape)
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def transcription(q, k, queue, t):
  """Eq. 1, query by query: (loss, gradient with respect to q, accuracy)."""
  loss, grad, right = 0.0, np.zeros_like(q), 0
  for i in range(len(q)):
    # The own key first, then the negatives.
    others = np.delete(k, i, axis=0) if queue is None else queue
    keys = np.concatenate([k[i : i + 1], others])
    e = np.exp(keys @ q[i] / t)
    p = e / e.sum()
    loss += -np.log(p[0]) / len(q)
    grad[i] = (p @ keys - keys[0]) / t / len(q)
    right += p[0] > p[1:].max()
  return loss, grad, right / len(q)


@pytest.mark.parametrize("with_queue", [True, False])
def test_loss_and_gradient_are_the_papers(with_queue):
  rng = np.random.default_rng(0)
  q, k, queue = unit(rng, 6, 5), unit(rng, 6, 5), unit(rng, 9, 5) if with_queue else None
  cast = lambda x: None if x is None else jnp.asarray(x, jnp.float32)
  fn = lambda q: info_nce(q, cast(k), cast(queue), temperature=0.3)
  (value, accuracy), grad = jax.value_and_grad(fn, has_aux=True)(cast(q))
  loss, expected, share = transcription(q, k, queue, 0.3)
  np.testing.assert_allclose(value, loss, rtol=1e-5)
  np.testing.assert_allclose(grad, expected, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(accuracy, share)


def test_a_collapsed_encoder_is_never_right():
  same = jnp.ones((4, 2)) / 2**0.5
  value, accuracy = info_nce(same, same, same[:3], temperature=0.1)
  assert accuracy == 0 and value == pytest.approx(np.log(4), rel=1e-5)


def test_queue_is_first_in_first_out_and_wraps():
  queue = {"keys": jnp.arange(5.0)[:, None], "at": jnp.int32(0)}
  rows = lambda *v: jnp.asarray(v, jnp.float32)[:, None]
  queue = moco.enqueue(queue, rows(10, 11))
  assert queue["keys"][:, 0].tolist() == [10, 11, 2, 3, 4] and queue["at"] == 2
  queue = moco.enqueue(moco.enqueue(queue, rows(12, 13)), rows(14, 15))
  # 15 took the place of 10, the oldest of those that had come in.
  assert queue["keys"][:, 0].tolist() == [15, 11, 12, 13, 14] and queue["at"] == 1
  queue = moco.enqueue(queue, rows(20, 21, 22, 23, 24))
  assert queue["keys"][:, 0].tolist() == [24, 20, 21, 22, 23] and queue["at"] == 1
  with pytest.raises(UserError, match=r"queue_size = 5; expected at least the batch of 6"):
    moco.enqueue(queue, rows(*range(6)))


def test_shuffling_changes_the_groups_and_is_undone():
  x = jnp.arange(16.0)[:, None]
  identity, rest = moco.shuffled(lambda x: (x, x), x, RNG)
  np.testing.assert_array_equal(identity, x)
  assert sorted(rest[:, 0].tolist()) == list(range(16)) and rest.tolist() != x.tolist()

  def in_groups(x):  # what batch statistics of 4 groups do
    groups = x.reshape(4, 4, 1)
    return ((groups - groups.mean(axis=1, keepdims=True)).reshape(16, 1),)

  (alone,), (mixed,) = in_groups(x), moco.shuffled(in_groups, x, RNG)
  assert np.abs(alone - mixed).max() > 1
  order = np.asarray(jax.random.permutation(RNG, 16))
  for group in order.reshape(4, 4):
    np.testing.assert_allclose(mixed[group, 0], group - group.mean())


SMALL = dict(name="resnet", bottleneck=False, stages=(1,), width=4, stem="small", groups=2)


def make(**changes):
  c = dict(model=SMALL, head=dict(widths=(8, 6)))
  c["loss"] = dict(temperature=0.2, queue_size=12, momentum=0.9) | changes.pop("loss", {})
  config = wrap(c | changes).timed(Durations(8, 100, 100))
  return moco.make(config), config


@pytest.fixture(scope="module")
def batch():
  image = np.random.default_rng(1).uniform(size=(8, 2, 6, 6, 1))
  return {"global": jnp.asarray(image, jnp.float32)}


@pytest.fixture(scope="module")
def v2(batch):
  """Method, its network, parameters, and `aux` with a key encoder that differs."""
  method, config = make()
  net = moco.Encoder(models.make(config.model), moco.Head((8, 6)))
  params, aux = method.init(jax.random.key(0), batch)
  other, _ = method.init(jax.random.key(1), batch)
  return method, net, params, {**aux, "teacher": other}


def test_v2_is_the_transcription_of_its_outputs(v2, batch):
  method, net, params, aux = v2
  value, (new, metrics) = jax.jit(method.loss)(params, aux, batch, RNG, 0)
  step = lambda params, x: models.apply(net, params, aux["stats"]["query"], x, train=True)
  (q, _), stats = step(params, batch["global"][:, 0])
  # The permutation is found from the outside: the one whose keys lie in the queue.
  order = jax.random.permutation(jax.random.split(jax.random.fold_in(RNG, 0), 3)[0], 8)
  assert order.tolist() != list(range(8))
  (shuffled, _), key_stats = step(aux["teacher"], batch["global"][order, 1])
  k = np.zeros_like(shuffled)
  k[order] = shuffled
  loss, _, accuracy = transcription(
    *(np.asarray(x, np.float64) for x in (q, k, aux["queue"]["keys"])), 0.2
  )
  np.testing.assert_allclose(value, loss, rtol=1e-5)
  np.testing.assert_allclose(metrics["contrast_accuracy"], accuracy)
  np.testing.assert_allclose(new["queue"]["keys"][:8], k, atol=1e-5)  # in the batch's order
  np.testing.assert_array_equal(new["queue"]["keys"][8:], aux["queue"]["keys"][8:])
  assert new["queue"]["at"] == 8
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
  jax.tree.map(close, new["stats"], {"query": stats, "key": key_stats})
  (plain, _), _ = step(aux["teacher"], batch["global"][:, 1])
  assert np.abs(plain - k).max() > 1e-3  # groups of another order give other keys


def test_v2_starts_equal_and_follows_by_momentum(v2, batch):
  method, _, params, _ = v2
  _, aux = method.init(jax.random.key(0), batch)
  jax.tree.map(np.testing.assert_array_equal, params, aux["teacher"])
  np.testing.assert_allclose(jnp.linalg.norm(aux["queue"]["keys"], axis=1), 1, rtol=1e-5)
  moved = jax.tree.map(lambda x: x + 1.0, params)
  new = method.after_update(moved, aux, jnp.int32(50))
  for name, x in tree.flatten(aux["teacher"]).items():
    np.testing.assert_allclose(tree.flatten(new["teacher"])[name], x + 0.1, atol=1e-5)
  jax.tree.map(np.testing.assert_array_equal, new["queue"], aux["queue"])


def test_embeddings_are_the_queries_without_batch_statistics(v2, batch):
  method, _, params, aux = v2
  embed = jax.jit(method.predict["image_embed"])
  z = embed(params, aux, batch)
  assert z.shape == (8, 4)
  np.testing.assert_allclose(
    embed(params, aux, {"image": batch["global"][:3, 0]}), z[:3], rtol=1e-4
  )
  other = {**aux, "teacher": jax.tree.map(jnp.zeros_like, aux["teacher"])}
  np.testing.assert_array_equal(embed(params, other, batch), z)


def test_v3_is_symmetric_with_a_predictor_and_no_queue(batch):
  """2 T (L(q1, k2) + L(q2, k1)); the other keys of the batch are the negatives."""
  head = dict(widths=(8, 8, 6), batch_norm=True)
  vit = dict(name="vit", width=8, depth=1, mlp_dim=8, num_heads=2, patch_size=3, image_size=6)
  method, config = make(
    model=vit | dict(scan=False),
    head=head,
    predictor=dict(widths=(8, 6), batch_norm=True),
    loss=dict(queue_size=0, momentum_end=1.0),
  )
  params, aux = method.init(jax.random.key(0), batch)
  assert "queue" not in aux and set(aux["teacher"]) == {"backbone", "head"}
  assert "bias" not in params["head"]["fc0"] and "bn2" not in params["head"]  # without affine
  assert set(params["head"]["bn1"]) == {"scale", "bias"}
  net = moco.Encoder(
    models.make(config.model),
    moco.Head((8, 8, 6), batch_norm=True),
    moco.Head((8, 6), batch_norm=True),
  )
  value, (new, _) = jax.jit(method.loss)(params, aux, batch, RNG, 0)
  out = {}
  for side, p in (("query", params), ("key", aux["teacher"])):
    for v in range(2):
      (z, _), _ = models.apply(
        net, p, aux["stats"][side], batch["global"][:, v], train=True, predict=side == "query"
      )
      out[side, v] = np.asarray(z, np.float64)
  losses = [transcription(out["query", v], out["key", 1 - v], None, 0.2)[0] for v in (0, 1)]
  np.testing.assert_allclose(value, 2 * 0.2 * sum(losses), rtol=1e-4)
  assert not np.allclose(out["query", 0], out["key", 0])  # the predictor is on one side only
  assert jax.tree.structure(new) == jax.tree.structure(aux)
  moved = method.after_update(jax.tree.map(lambda x: x + 1.0, params), aux, jnp.int32(50))
  kernel = lambda t: t["head"]["fc0"]["kernel"]
  np.testing.assert_allclose(kernel(moved["teacher"]), kernel(aux["teacher"]) + 0.05, atol=1e-5)


def test_mistakes_are_one_line():
  with pytest.raises(UserError, match=r"config\.loss\.queue_size = -1; expected a whole number"):
    make(loss=dict(queue_size=-1))
  with pytest.raises(UserError, match=r"config\.head: key 'width' is unknown"):
    make(head=dict(width=3))
  with pytest.raises(UserError, match=r"config\.loss\.temperature = 0; expected a number > 0"):
    make(loss=dict(temperature=0))
