"""Uniformity, alignment and entropy by NumPy, the numbers of known distributions."""

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_mesh

from big_vision_like.config import UserError, wrap
from big_vision_like.evaluators import health
from big_vision_like.state import State

STATE = State({}, {}, {}, 0)
MESHES = [dict(replica=1, fsdp=1), dict(replica=2, fsdp=2, tensor=2)]
PP = "random_place(10)|drop(text)"


def rows_of(params, aux, batch, rng=None):
  return jnp.sum(batch["image"].astype(jnp.float32), axis=(2, 3)) - 50.0


def of_text(params, aux, batch, rng=None):
  return batch["text"].astype(jnp.float32) + 1


def evaluator(shape=MESHES[1], **kwargs):
  base = dict(source="digits(split='test')", pp=PP, batch_size=100)
  cfg = wrap({"evals": {"x": base | kwargs}}).evals.x
  return health.Evaluator(cfg, {"image_embed": rows_of, "text_embed": of_text}, make_mesh(**shape))


def unit(x):
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def squares(x):
  """|z_i - z_j|^2 of all pairs, the diagonal at infinity."""
  z = unit(x.astype(np.float64))
  d = ((z[:, None] - z[None]) ** 2).sum(-1)
  np.fill_diagonal(d, np.inf)
  return d


@pytest.mark.parametrize("shape", MESHES)
def test_against_all_pairs(shape, monkeypatch):
  monkeypatch.setattr(health, "CHUNK", 50)
  found = evaluator(shape)
  x, y = (s.map(lambda b: {"x": rows_of(0, 0, b)})["x"] for s in (found.split, found.again))
  assert len(x) == 364 and (x != y).any(axis=1).mean() > 0.5  # the views differ
  scores, d = found.run(STATE), squares(x)
  n = len(x)
  assert scores["uniformity"] == pytest.approx(np.log(np.exp(-2 * d).sum() / (n * n - n)), abs=1e-5)
  assert scores["alignment"] == pytest.approx(((unit(x) - unit(y)) ** 2).sum(1).mean(), abs=1e-5)
  nearest = np.maximum(np.sqrt(d.min(axis=1)), 1e-8)
  assert scores["entropy"] == pytest.approx(np.log(nearest).mean(), abs=1e-4)
  assert scores["dim"] == 10 and 1 < scores["rank"] <= 10 and 0 < scores["std"] < 1


def test_views_are_the_same_without_random_ops():
  scores = evaluator(pp="drop(text)").run(STATE)
  assert scores["alignment"] == 0.0


def test_text():
  tokens = "tokenize(4, model='train:digits', vocab_size=40)|keep(text)"
  scores = evaluator(pp=tokens, embed="text_embed").run(STATE)
  assert scores["dim"] == 4 and scores["alignment"] == 0.0


def test_known_values():
  mesh = make_mesh(**MESHES[1])
  one, two = np.ones((9, 3)), np.repeat(np.eye(2), 5, axis=0)
  assert health.uniformity(one, mesh) == pytest.approx(0, abs=1e-6)
  assert health.nearest_entropy(one, mesh) == pytest.approx(np.log(1e-8))
  # Of 90 ordered pairs 40 are the same point, 50 are at squared distance 2.
  expected = np.log((40 + 50 * np.exp(-4)) / 90)
  assert health.uniformity(two, mesh) == pytest.approx(expected, abs=1e-6)
  assert health.alignment(np.eye(2), np.eye(2)[::-1]) == 2.0
  assert health.nearest_entropy(np.eye(4), mesh) == pytest.approx(np.log(2) / 2)
  sphere = np.random.default_rng(0).normal(size=(1500, 64))
  assert health.uniformity(sphere, mesh) == pytest.approx(-4, abs=0.15)


def test_not_finite_and_mistakes():
  found = evaluator()
  found.embed = lambda *args: rows_of(*args) * jnp.nan
  assert found.run(STATE) == {"rank": 0.0}
  with pytest.raises(UserError, match="embed 'text_embbed' is unknown; did you mean text_embed"):
    evaluator(embed="text_embbed")
