"""DINO against a float64 transcription of Eq. 1, 3 and 4, and what is special about it by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_like import tree
from big_vision_like.config import Durations, UserError, wrap
from big_vision_like.losses import self_distillation as sd
from big_vision_like.methods import dino


def softmax(x):
  e = np.exp(x - x.max(axis=-1, keepdims=True))
  return e / e.sum(axis=-1, keepdims=True)


def transcription(student, teacher, center, student_temp, teacher_temp):
  """Loss and its gradient with respect to the student's logits, pair by pair."""
  loss, grad, pairs = 0.0, np.zeros_like(student), 0
  batch = student.shape[1]
  for g in range(len(teacher)):
    p = softmax((teacher[g] - center) / teacher_temp)
    for v in range(len(student)):
      if v != g:
        q = softmax(student[v] / student_temp)
        loss += -(p * np.log(q)).sum() / batch
        grad[v] += (q - p) / student_temp / batch
        pairs += 1
  return loss / pairs, grad / pairs


def test_loss_and_gradient_are_the_papers():
  rng = np.random.default_rng(0)
  student, teacher = rng.normal(size=(5, 3, 7)), rng.normal(size=(2, 3, 7))
  center = rng.normal(size=7)
  cast = lambda x: jnp.asarray(x, jnp.float32)

  def loss(s, t, c):
    return sd.cross_view_loss(s, sd.teacher_probs(t, c, 0.3), 0.5)

  found, grads = jax.value_and_grad(loss, (0, 1, 2))(cast(student), cast(teacher), cast(center))
  value, grad = transcription(student, teacher, center, 0.5, 0.3)
  np.testing.assert_allclose(found, value, rtol=1e-5)
  np.testing.assert_allclose(grads[0], grad, rtol=1e-4, atol=1e-6)
  assert not np.any(grads[1]) and not np.any(grads[2])  # the teacher has no gradient


def test_a_view_is_not_compared_with_itself():
  """Both views agree with the other's teacher and not with their own: no loss at all."""
  a, b = 50.0 * jnp.eye(4)[None, :2], 50.0 * jnp.eye(4)[None, 2:]
  teacher = sd.teacher_probs(jnp.concatenate([a, b]), jnp.zeros(4), 1.0)
  assert sd.cross_view_loss(jnp.concatenate([b, a]), teacher, 1.0) < 1e-6
  assert sd.cross_view_loss(jnp.concatenate([a, b]), teacher, 1.0) > 10


def test_centering_and_sharpening_undo_each_other():
  """Sec. 5.3: a logit that wins everywhere is centred away; a low temperature sharpens."""
  logits = jnp.array([[[9.0, 1.0, 0.0], [9.0, 0.0, 1.0]]])
  center = jnp.zeros(3)
  for _ in range(200):
    center = sd.update_center(center, logits, 0.9)
  np.testing.assert_allclose(center, [9.0, 0.5, 0.5], rtol=1e-5)
  flat = sd.teacher_probs(logits, jnp.zeros(3), 1.0)
  assert sd.entropy(flat) < 0.01  # one prototype has all
  both = sd.teacher_probs(logits, center, 0.04)
  np.testing.assert_array_equal(jnp.argmax(both, -1), [[1, 2]])
  assert sd.entropy(both) < 0.01 and sd.entropy(sd.teacher_probs(logits, center, 10.0)) > 1.09
  assert sd.entropy(jnp.array([[[1.0, 0.0, 0.0]]])) == 0.0


VIT = dict(width=16, depth=1, mlp_dim=16, num_heads=2, patch_size=4, image_size=16, scan=False)


def tiny(**changes):
  c = dict(model=VIT | dict(pool="cls"))
  c["head"] = dict(prototypes=12, hidden=16, bottleneck=8, init_std=0.2)
  c["loss"] = dict(student_temp=0.1, teacher_temp=0.07) | changes.pop("loss", {})
  return wrap(c | changes).timed(Durations(4, 100, 100))


@pytest.fixture(scope="module")
def batch():
  rng = np.random.default_rng(1)
  image = lambda *shape: jnp.asarray(rng.uniform(size=shape), jnp.float32)
  return {"global": image(4, 2, 16, 16, 1), "local": image(4, 3, 8, 8, 1)}


def test_loss_of_the_method_is_the_transcription_of_its_outputs(batch):
  config = tiny(loss=dict(teacher_temp_start=0.04, teacher_temp_warmup_steps=10))
  method = dino.make(config)
  params, aux = method.init(jax.random.key(0), batch)
  aux = {
    "teacher": method.init(jax.random.key(1), batch)[0],
    "center": jnp.linspace(-0.2, 0.2, 12),
    "stats": {"student": {}, "teacher": {}},
  }
  net = dino.Network(dino.models.make(config.model), dino.Head(12, 16, 8))
  of = lambda p, x: net.apply({"params": p}, x)[0]
  views = [batch["global"][:, v] for v in range(2)] + [batch["local"][:, v] for v in range(3)]
  student = np.stack([of(params, x) for x in views]).astype(np.float64)
  teacher = np.stack([of(aux["teacher"], x) for x in views[:2]]).astype(np.float64)
  assert np.abs(student).max() <= 1 + 1e-6  # cosines
  found, (new, metrics) = jax.jit(method.loss)(params, aux, batch, jax.random.key(0), 5)
  expected, _ = transcription(student, teacher, np.asarray(aux["center"]), 0.1, 0.055)
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  p = softmax((teacher - np.asarray(aux["center"])) / 0.055)
  entropy = -(p * np.log(p)).sum(-1).mean()
  np.testing.assert_allclose(metrics["teacher_entropy"], entropy, rtol=1e-3)
  np.testing.assert_allclose(metrics["kl"], expected - entropy, rtol=1e-3)
  center = 0.9 * np.asarray(aux["center"]) + 0.1 * teacher.mean(axis=(0, 1))
  np.testing.assert_allclose(new["center"], center, atol=1e-5)
  jax.tree.map(np.testing.assert_array_equal, new["teacher"], aux["teacher"])  # not yet


def test_teacher_follows_by_a_cosine_momentum(batch):
  method = dino.make(tiny(loss=dict(teacher_momentum=0.9)))
  params, aux = method.init(jax.random.key(0), batch)
  jax.tree.map(np.testing.assert_array_equal, params, aux["teacher"])
  moved = jax.tree.map(lambda x: x + 1.0, params)
  for step, keep in ((0, 0.9), (50, 0.95), (100, 1.0)):
    new = method.after_update(moved, aux, jnp.int32(step))
    expected = jax.tree.map(lambda t, keep=keep: t + (1 - keep), aux["teacher"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), new["teacher"], expected)
    np.testing.assert_array_equal(new["center"], aux["center"])


def test_prototypes_wait_and_their_length_does_not_matter(batch):
  method = dino.make(tiny(loss=dict(freeze_last_steps=3)))
  params, aux = method.init(jax.random.key(0), batch)
  loss = lambda p, step: method.loss(p, aux, batch, jax.random.key(0), step)[0]
  grad = jax.jit(jax.grad(loss))
  for step, moves in ((0, False), (2, False), (3, True)):
    grads = tree.flatten(grad(params, step))
    assert bool(np.any(grads.pop("head/prototypes/kernel"))) == moves
    assert all(np.any(g) for name, g in grads.items() if "head" in name)
  longer = tree.map_with_name(lambda n, x: x * 7 if "prototypes" in n else x, params)
  values = [loss(p, 0) for p in (params, longer)]
  np.testing.assert_allclose(*values, rtol=1e-5)


def test_local_crops_are_optional_and_embeddings_are_the_teachers(batch):
  method = dino.make(tiny())
  params, aux = method.init(jax.random.key(0), batch)
  value, _ = method.loss(params, aux, {"global": batch["global"]}, jax.random.key(0), 0)
  assert np.isfinite(value)
  embed = method.predict["image_embed"]
  z = embed(params, aux, batch)
  assert z.shape == (4, 16)
  np.testing.assert_array_equal(embed(params, aux, {"image": batch["global"][:, 0]}), z)
  np.testing.assert_array_equal(embed(jax.tree.map(jnp.zeros_like, params), aux, batch), z)
  assert method.predict["features"](params, aux, batch)["tokens"].shape == (4, 16, 16)


def test_batch_statistics_of_student_and_teacher_move_apart(batch):
  small = dict(name="resnet", bottleneck=False, stages=(1,), width=4, stem="small")
  method = dino.make(tiny(model=small))
  params, aux = method.init(jax.random.key(0), batch)
  _, (new, _) = jax.jit(method.loss)(params, aux, batch, jax.random.key(0), 0)
  mean = lambda side: new["stats"][side]["batch_stats"]["backbone"]["stem_bn"]["mean"]
  # The teacher saw the global crops, the student the local ones after them.
  stem = params["backbone"]["stem_conv"]["kernel"]
  conv = lambda x: jax.lax.conv_general_dilated(
    x.reshape(-1, *x.shape[2:]), stem, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  first, second = (conv(batch[k]).mean(axis=(0, 1, 2)) for k in ("global", "local"))
  np.testing.assert_allclose(mean("teacher"), 0.1 * first, atol=1e-5)
  np.testing.assert_allclose(mean("student"), 0.09 * first + 0.1 * second, atol=1e-5)
  assert method.predict["image_embed"](params, new, batch).shape == (4, 4)


def test_mistakes_are_one_line():
  with pytest.raises(UserError, match=r"config\.loss.student_temp = 0; expected a number > 0"):
    dino.make(tiny(loss=dict(student_temp=0)))
  with pytest.raises(UserError, match=r"config\.head: key 'prototype' is unknown"):
    dino.make(tiny(head=dict(prototype=3)))
