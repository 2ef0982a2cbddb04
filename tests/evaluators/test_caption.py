"""Hand-worked scores; captions of a method that copies, on uneven batches and on 8 devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_mesh

from big_vision_like.config import UserError, wrap
from big_vision_like.evaluators import caption
from big_vision_like.input import tokenizers
from big_vision_like.state import State

STATE = State({}, {}, {}, 0)
MESHES = [dict(replica=1, fsdp=1), dict(replica=2, fsdp=2, tensor=2)]
TOKENIZER = "tokenize(6, model='train:digits', vocab_size=40)"


def cfg(**changes):
  base = dict(
    source="digits(split='test')",
    source_train="digits(split='train')",
    pp="keep(image, text)",
    tokenizer=TOKENIZER,
    batch_size=100,
  )
  return wrap({"evals": {"x": base | changes}}).evals.x


def says(text):
  """A method that says `text` of dark images and "nine" of bright ones."""
  encode = tokenizers.sentencepiece("train:digits", 40).encode
  rows = np.zeros((2, 9), np.int32)
  for row, t in zip(rows, (text, "nine")):
    ids = [*encode(t), 1]
    row[: len(ids)] = ids
  bright = lambda b: jnp.mean(b["image"].astype(jnp.float32), axis=(1, 2, 3)) > 80
  generate = lambda p, a, b, rng, **o: jnp.asarray(rows)[bright(b).astype(int)]
  return {"generate": jax.jit(generate, static_argnames=("max_new_tokens", "beams"))}


@pytest.mark.parametrize(
  "said, reference, f1, exact",
  [
    ("greek letter alpha", "greek letter alpha", 1.0, True),
    ("Greek letter, alpha", "greek letter alpha", 1.0, True),
    ("alpha letter greek", "greek letter alpha", 1.0, False),  # any order
    ("greek letter", "greek letter alpha", 0.8, False),  # precision 1, recall 2/3
    ("greek greek greek", "greek letter", 0.4, False),  # 1/3 and 1/2: counted once
    ("latin", "greek", 0.0, False),
    ("", "greek", 0.0, False),
    ("braille dots-12", "braille dots-13", 2 / 3, False),
  ],
)
def test_hand_worked(said, reference, f1, exact):
  assert caption.token_f1(said, reference) == pytest.approx(f1)
  got = caption.scores([said], [[reference]])
  assert got == {"exact_match": float(exact), "token_f1": pytest.approx(f1)}
  # The best of several references.
  assert caption.scores([said], [["something else", said]])["exact_match"] == 1


@pytest.mark.parametrize("shape", MESHES)
def test_run(shape):
  evaluator = caption.Evaluator(cfg(max_new_tokens=9, beams=2), says("three"), make_mesh(**shape))
  assert evaluator.options == {"max_new_tokens": 9, "beams": 2}
  got = evaluator.run(STATE)
  from sklearn.neighbors import KNeighborsClassifier

  from big_vision_like.input.sources import digits

  train, test = digits.digits("train"), digits.digits("test")
  flat = lambda d: d.images.reshape(len(d), -1).astype(float)
  said = np.where(flat(test).mean(axis=1) > 80, "nine", "three")
  right = np.array([digits.WORDS[k] for k in test.labels]) == said
  assert 0 < right.mean() < 1
  assert got["exact_match"] == got["token_f1"] == pytest.approx(right.mean())
  near = KNeighborsClassifier(1).fit(flat(train), train.labels)
  accuracy = near.score(flat(test), test.labels)
  assert got["nearest_exact_match"] == got["nearest_token_f1"] == pytest.approx(accuracy, abs=3e-3)

  examples = evaluator.examples(STATE, 4)
  assert [e["label"] == e["predictions"][0][0] for e in examples] == [False, False, True, True]
  assert examples[0]["image"].dtype == np.uint8


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(pp=f"{TOKENIZER}|keep(image, text)"), "has to leave text as a string"),
    (dict(tokenizer="lower"), "expected tokenize"),
    (dict(tokenizer="tokenize(6, modle='x')"), "key 'modle' is unknown; did you mean model"),
    (dict(source_train="digits(split='tain')"), "split 'tain' is unknown"),
  ],
)
def test_mistakes(changes, message):
  with pytest.raises(UserError, match=message):
    caption.Evaluator(cfg(**changes), says("three"), make_mesh(replica=1, fsdp=1))
