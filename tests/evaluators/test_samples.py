"""Distances by hand; a generator that knows the answer, and one that does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_mesh

from big_vision_like.config import UserError, wrap
from big_vision_like.evaluators import samples
from big_vision_like.input.sources import digits
from big_vision_like.state import State

STATE = State({}, {}, {}, 0)
RNG = np.random.default_rng(0)


def test_frechet_distance_is_the_formula():
  """With commuting covariances (Fréchet 1957): sum of squared gaps of means and of deviations."""
  x = RNG.normal(size=(5000, 3))
  x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False)).T)
  a, b = x * [1.0, 2.0, 3.0] + [0, 1, 0], x * [2.0, 2.0, 0.5] + [3, 1, 0]
  assert samples.frechet_distance(a, b) == pytest.approx(9 + 1 + 2.5**2, rel=1e-9)
  assert samples.frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_any_covariances():
  """Against scipy's root of the product."""
  from scipy.linalg import sqrtm

  a, b = (RNG.normal(size=(200, 6)) @ RNG.normal(size=(6, 6)) for _ in range(2))
  ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
  gap = np.square(a.mean(0) - b.mean(0)).sum()
  want = gap + np.trace(ca + cb - 2 * np.real(sqrtm(ca @ cb)))
  assert samples.frechet_distance(a, b) == pytest.approx(want, rel=1e-6)
  a[:, 3] = b[:, 3] = 0  # a dead feature
  assert np.isfinite(samples.frechet_distance(a, b))


def test_nearest_distance_by_hand():
  a, b = np.array([[0.0, 0.0], [3.0, 4.0]]), np.array([[0.0, 1.0], [3.0, 4.0], [9.0, 9.0]])
  assert samples.nearest_distance(a, b) == pytest.approx(0.5)


def cfg(**kwargs):
  base = dict(
    source_train="digits(split='train')",
    source="digits(split='test')",
    pp="value_range(-1, 1)|keep(image, label)",
    batch_size=200,
  )
  return wrap({"evals": {"x": base | kwargs}}).evals.x


IMAGES, LABELS = digits._scans(False)
BY_CLASS = np.stack([IMAGES[k == LABELS][:100] for k in range(10)]).astype(np.float32) / 127.5 - 1


@jax.jit
def copies(params, aux, batch, rng):
  """Training images of the asked class."""
  which = jax.random.randint(rng, batch["label"].shape, 0, 100)
  return jnp.asarray(BY_CLASS)[batch["label"], which]


def noise(params, aux, batch, rng, *, size=1.0):
  return size * jax.random.normal(rng, (*batch["label"].shape, 8, 8, 1))


@pytest.fixture(scope="module")
def evaluators():
  build = lambda fn, shape, **kwargs: samples.Evaluator(
    cfg(**kwargs), {"sample": fn}, make_mesh(**shape)
  )
  one, eight = dict(replica=1, fsdp=1), dict(replica=2, fsdp=2, tensor=2)
  first = build(copies, one)
  second = build(copies, eight)
  blind = build(jax.jit(noise, static_argnames="size"), one, options=dict(size=0.5), num_samples=90)
  for other in (second, blind):
    other.__dict__.update(real=first.real, classifier=first.classifier)  # fitted once
  return first, second, blind


def test_training_images_are_recognised_and_near(evaluators):
  first, _, _ = evaluators
  found = first.run(STATE)
  assert found["classifier"] > 0.95 and found["recognised"] > 0.98
  assert found["frechet"] < 3 * found["frechet_train"]
  assert found["nearest"] == pytest.approx(0, abs=1e-3) and found["nearest_test"] > 1
  assert len(first.real[0]) == 1433 and len(first.real[2]) == 364


def test_noise_is_neither(evaluators):
  _, _, blind = evaluators
  found = blind.run(STATE)
  assert found["recognised"] < 0.3
  assert found["frechet"] > 5 * found["frechet_train"]
  assert found["nearest"] > found["nearest_test"]
  # The option arrives, and every batch has its own numbers.
  labels = np.zeros(400, np.int32)
  images = blind.draw(STATE, labels)
  assert images.std() == pytest.approx(0.5, rel=0.02)
  assert np.abs(images[:200] - images[200:]).max() > 0.1


def test_eight_devices_equal_one(evaluators):
  first, second, _ = evaluators
  assert second.run(STATE) == pytest.approx(first.run(STATE), rel=1e-6)


def test_classifier_is_of_the_training_split_alone(evaluators):
  first, _, _ = evaluators
  train, labels, _, _ = first.real
  assert first.classifier.n_iter_ > 1 and first.classifier.score(train, labels) > 0.99
  np.testing.assert_allclose(
    first.classifier.predict_proba(train[:5]).argmax(1),
    (
      first.features(train[:5]) @ first.classifier.coefs_[1] + first.classifier.intercepts_[1]
    ).argmax(1),
  )


def test_grid_has_a_row_for_each_class(evaluators):
  first, _, _ = evaluators
  grid = first.pictures(STATE, columns=4)["grid"]
  scale = -(-400 // 36)  # cells of 8 x 8 and a line between them
  assert grid.shape == (90 * scale, 36 * scale, 1) and grid.dtype == np.uint8
  cells = grid[::scale, ::scale].reshape(10, 9, 4, 9).transpose(0, 2, 1, 3)
  cells = cells[..., :8, :8].reshape(40, 64)
  guess = first.classifier.predict(cells.astype(np.float32) / 127.5 - 1)
  assert (guess == np.repeat(np.arange(10), 4)).mean() > 0.9


def test_mistakes():
  mesh = make_mesh(replica=1, fsdp=1)
  with pytest.raises(UserError, match="has no predict 'sample'; it has logits"):
    samples.Evaluator(cfg(), {"logits": copies}, mesh)
  with pytest.raises(UserError, match="num_samples = 1; expected at least 2"):
    samples.Evaluator(cfg(num_samples=1), {"sample": copies}, mesh)
  with pytest.raises(UserError, match="type needs label"):
    samples.Evaluator(cfg(pp="keep(image)"), {"sample": copies}, mesh)
