"""Decoding against exhaustive search over a small random language model with a memory."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_like.config import UserError
from big_vision_like.generation import autoregressive

PAD, EOS, VOCAB, LENGTH, BATCH = 0, 1, 5, 4, 3
rng = np.random.default_rng(0)
# The next token depends on the last, on all before it (their sum) and on the row.
TABLE = 2.0 * rng.normal(size=(BATCH, VOCAB * LENGTH, VOCAB, VOCAB))
TABLE[..., PAD] = 20.0  # must not be chosen
WORDS = np.where(np.arange(VOCAB) == PAD, -np.inf, TABLE)


def step_fn(tokens, cache, position):
  """The cache: the row of each example, and the sum of its tokens so far."""
  cache = {**cache, "sum": cache["sum"] + tokens}
  return jnp.asarray(TABLE)[cache["row"], cache["sum"], tokens], cache


def new_cache():
  return {"row": jnp.arange(BATCH), "sum": jnp.zeros(BATCH, jnp.int32)}


def log_probability(row, tokens):
  """log P of the tokens after a start of 2, up to the end-of-text."""
  total, last, value = 0, 2, 0.0
  for token in tokens:
    total += last
    logits = WORDS[row, total, last]
    value += logits[token] - np.log(np.exp(logits).sum())
    last = token
  return value


START = jnp.full(BATCH, 2)
OPTIONS = dict(eos_id=EOS, pad_id=PAD)


def decode(key=None, **options):
  fn = lambda cache, key: autoregressive.generate(
    step_fn, cache, START, LENGTH, rng=key, **OPTIONS, **options
  )
  return np.asarray(jax.jit(fn)(new_cache(), key))


def test_greedy_takes_the_best_token_and_pads_after_the_end():
  out = decode()
  for row in range(BATCH):
    total, last, want = 0, 2, []
    while len(want) < LENGTH and last != EOS:
      total += last
      last = int(np.argmax(WORDS[row, total, last]))
      want.append(last)
    assert out[row].tolist() == want + [PAD] * (LENGTH - len(want))
  assert (out == EOS).any() and not (out == EOS).any(axis=1).all()  # both kinds of row


def test_sampling_follows_the_distribution():
  keys = jax.random.split(jax.random.key(0), 4000)
  fn = lambda key, **o: autoregressive.generate(
    step_fn, new_cache(), START, 1, rng=key, temperature=2.0, **OPTIONS, **o
  )
  tokens = np.asarray(jax.jit(jax.vmap(fn))(keys))[:, 0, 0]
  logits = WORDS[0, 2, 2] / 2
  want = np.exp(logits) / np.exp(logits).sum()
  np.testing.assert_allclose(np.bincount(tokens, minlength=VOCAB) / 4000, want, atol=0.03)
  top = np.asarray(jax.jit(jax.vmap(lambda k: fn(k, top_k=2)))(keys))[:, 0, 0]
  assert set(top) == set(np.argsort(logits)[-2:])


def test_top_1_is_greedy():
  sampled = decode(jax.random.key(3), temperature=0.7, top_k=1)
  np.testing.assert_array_equal(sampled, decode())


def test_filter_logits():
  logits = jnp.log(jnp.array([[0.1, 0.5, 0.15, 0.25]]))
  kept = lambda **o: np.isfinite(autoregressive.filter_logits(logits, **o))[0].tolist()
  assert kept(top_k=2) == [False, True, False, True]
  assert kept(top_p=0.5) == [False, True, False, False]
  assert kept(top_p=0.51) == [False, True, False, True]
  assert kept(top_p=1.0) == [True] * 4
  # p of what the k left: 0.5 of 0.75 is two thirds.
  assert kept(top_k=2, top_p=0.6) == [False, True, False, False]


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_wide_beams_find_the_best_of_all(length_penalty):
  fn = lambda cache, beams: autoregressive.beam_search(
    step_fn, cache, START, LENGTH, beams=beams, length_penalty=length_penalty, **OPTIONS
  )
  tokens, scores = jax.jit(fn, static_argnums=1)(new_cache(), VOCAB**LENGTH)
  for row in range(BATCH):
    ended = [
      (*body, EOS) for n in range(LENGTH) for body in itertools.product(range(2, VOCAB), repeat=n)
    ]
    open_ = list(itertools.product(range(2, VOCAB), repeat=LENGTH))
    score = lambda t: log_probability(row, t) / len(t) ** length_penalty  # noqa: B023
    best = max(ended + open_, key=score)
    assert tokens[row].tolist() == list(best) + [PAD] * (LENGTH - len(best))
    np.testing.assert_allclose(scores[row], score(best), rtol=1e-5)


def test_one_beam_is_greedy_and_two_are_no_worse():
  fn = lambda cache, beams: autoregressive.beam_search(
    step_fn, cache, START, LENGTH, beams=beams, length_penalty=0.0, **OPTIONS
  )
  fn = jax.jit(fn, static_argnums=1)
  one, score_one = fn(new_cache(), 1)
  np.testing.assert_array_equal(one, decode())
  assert (fn(new_cache(), 3)[1] >= score_one - 1e-6).all()


@pytest.mark.parametrize(
  "options, message",
  [
    (dict(temperature=-1.0), "temperature = -1.0"),
    (dict(temperature=1.0), "needs a random key"),
    (dict(top_k=0), "top_k = 0"),
    (dict(top_p=1.5), "top_p = 1.5"),
  ],
)
def test_mistakes(options, message):
  with pytest.raises(UserError, match=message):
    decode(**options)
