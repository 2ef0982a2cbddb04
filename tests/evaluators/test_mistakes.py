"""The hardest mistakes of evaluators: by hand, the same on 8 devices."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_mesh

from big_vision_like.config import wrap
from big_vision_like.evaluators import accuracy, caption, hardest, retrieval, zeroshot
from big_vision_like.input.sources import digits
from big_vision_like.state import State

STATE = State({}, {}, {}, 0)
MESHES = [dict(replica=1, fsdp=1), dict(replica=2, fsdp=2, tensor=2)]
TOKENS = "tokenize(4, model='train:digits', vocab_size=40)"
HASH = np.array([1, 41, 1681, 68921])  # tells the ten texts apart
W = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32) / 255


def cfg(**changes):
  base = dict(source="digits(split='test')", batch_size=100, pp="drop(text)")
  return wrap({"evals": {"x": base | changes}}).evals.x


def scores(batch):
  return batch["image"].reshape(-1, 64).astype(jnp.float32) @ W


def expected(values, labels, n):
  """Rows, wrong classes and margins, the largest first."""
  right = values[np.arange(len(values)), labels]
  wrong = np.where(np.arange(values.shape[1]) == labels[:, None], -np.inf, values)
  margin = wrong.max(1) - right
  rows = np.argsort(-margin)[:n]
  return rows.tolist(), wrong.argmax(1)[rows], margin[rows]


def test_hardest():
  margin = np.array([0.5, -0.1, np.nan, 0.0, 2.0, -np.inf])
  assert hardest(margin, 9) == [2, 4, 0, 3]  # a tie is one, being right is none
  assert hardest(margin, 2) == [2, 4] and hardest(margin, 0) == []


@pytest.mark.parametrize("shape", MESHES)
def test_accuracy(shape):
  predict = {"logits": jax.jit(lambda p, a, b, rng=None: scores(b))}
  found = accuracy.Evaluator(cfg(), predict, make_mesh(**shape)).mistakes(STATE, 5)
  test = digits.digits("test")
  x, labels = test.images.reshape(-1, 64).astype(np.float32), np.asarray(test.labels)
  rows, wrong, margin = expected(x @ W, labels, 5)
  assert [m.index for m in found] == rows
  assert [m.predicted for m in found] == [str(k) for k in wrong]
  assert [m.right for m in found] == [str(k) for k in labels[rows]]
  assert [m.score for m in found] == pytest.approx(margin, rel=1e-4)
  image = test.images[rows[0]].reshape(8, 8).astype(float)
  image = np.round((image - image.min()) * 255 / np.ptp(image))
  assert found[0].image.dtype == np.uint8 and found[0].image.shape == (8, 8, 1)
  np.testing.assert_allclose(found[0].image[..., 0], image, atol=1)


def test_accuracy_of_the_best_head_and_of_several_labels():
  def logits(params, aux, batch, rng=None, head="good"):
    right = 9.0 * jax.nn.one_hot(batch["label"], 10)
    return right if head == "good" else -right

  predict = {"logits": jax.jit(logits, static_argnames="head")}
  config = cfg(heads=("bad", "good"))
  assert accuracy.Evaluator(config, predict, make_mesh(**MESHES[0])).mistakes(STATE, 5) == []
  out = accuracy.margin(jnp.asarray([[3.0, 1.0, 2.0]]), jnp.asarray([[0, 1, 1]]))
  assert [float(out[k][0]) for k in ("margin", "wrong", "right")] == [1, 0, 2]


@pytest.mark.parametrize("shape", MESHES)
def test_zeroshot(tmp_path, shape):
  file = tmp_path / "classes.json"
  file.write_text(json.dumps({"classes": digits.WORDS, "templates": ["{}"]}))
  # Class k's embedding is the k-th unit vector, whatever its tokens.
  predict = {
    "image_embed": jax.jit(lambda p, a, b, rng=None: scores(b)),
    "text_embed": lambda p, a, b, rng=None: jnp.eye(10)[jnp.arange(len(b["text"])) % 10],
  }
  config = cfg(pp_txt=TOKENS, classes=str(file))
  found = zeroshot.Evaluator(config, predict, make_mesh(**shape)).mistakes(STATE, 4)
  test = digits.digits("test")
  labels = np.asarray(test.labels)
  rows, wrong, margin = expected(test.images.reshape(-1, 64).astype(np.float32) @ W, labels, 4)
  assert [(m.index, m.predicted, m.right) for m in found] == [
    (i, digits.WORDS[k], digits.WORDS[labels[i]]) for i, k in zip(rows, wrong)
  ]
  assert [m.score for m in found] == pytest.approx(margin, rel=1e-4)


@pytest.mark.parametrize("shape", MESHES)
def test_retrieval(shape):
  """Images by their label, but nines are embedded as if they were fours."""
  told = jnp.asarray([0, 1, 2, 3, 4, 5, 6, 7, 8, 4])

  def by_token(params, aux, batch, rng=None):
    return jnp.asarray(table)[batch["text"] @ jnp.asarray(HASH) % 997]

  predict = {
    "image_embed": jax.jit(lambda p, a, b, rng=None: jnp.eye(10)[told[b["label"]]]),
    "text_embed": by_token,
  }
  table = np.zeros((997, 10), np.float32)
  evaluator = retrieval.Evaluator(cfg(pp=TOKENS), predict, make_mesh(**shape))
  rows = evaluator.split.map(lambda b: {"tokens": b["text"]})
  slots = rows["tokens"] @ HASH % 997
  assert len(set(slots)) == 10
  table[slots] = np.eye(10)[rows["label"]]
  found = evaluator.mistakes(STATE, 3)
  nines = np.flatnonzero(rows["label"] == 9)[:3]
  assert [m.index for m in found] == nines.tolist()
  raw = evaluator.split.raw_text
  four = raw(int(np.flatnonzero(rows["label"] == 4)[0]))
  assert digits.WORDS[4] in four
  assert {(m.predicted, m.right, m.score) for m in found} == {(four, raw(int(nines[0])), 1.0)}
  everything = evaluator.mistakes(STATE, 10**6)
  # Nines, and ties of theirs alone: every other image finds its own text.
  assert {m.right for m in everything} == {raw(int(nines[0]))}


def test_caption():
  says = lambda p, a, b, rng, **o: jnp.zeros((len(b["label"]), 3), jnp.int32)  # nothing
  config = cfg(pp="", source_train="digits(split='train')", tokenizer=TOKENS)
  evaluator = caption.Evaluator(config, {"generate": says}, make_mesh(**MESHES[0]))
  found = evaluator.mistakes(STATE, 2)
  assert [(m.index, m.predicted, m.score) for m in found] == [(0, "", 1.0), (1, "", 1.0)]
  assert found[0].right == evaluator.references[0][0]
  evaluator.captions = lambda state: [r[0] for r in evaluator.references]
  assert evaluator.mistakes(STATE, 2) == []
  assert evaluator.run(STATE)["rouge_l"] == 1.0
