"""Perplexity by hand, on uneven batches and 8 devices."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_mesh

from big_vision_like.config import UserError, wrap
from big_vision_like.evaluators import perplexity
from big_vision_like.input.sources import digits
from big_vision_like.state import State

STATE = State({}, {}, {}, 0)
MESHES = [dict(replica=1, fsdp=1), dict(replica=2, fsdp=2, tensor=2)]
LENGTH = 10


def token_logprob(params, aux, batch, rng=None):
  """A digit k has k + 1 tokens, each of probability 2^-(k + 1); what lies behind is poison."""
  tokens = batch["label"][:, None] + 1
  real = jnp.arange(LENGTH)[None, :] < tokens
  return {"logprob": jnp.where(real, -tokens * math.log(2), jnp.nan), "real": real}


def cfg(pp="tokenize(4, model='train:digits', vocab_size=40)"):
  base = dict(type="perplexity", source="digits(split='test')", pp=pp, batch_size=100)
  return wrap({"evals": {"x": base}}).evals.x


@pytest.mark.parametrize("shape", MESHES)
def test_every_token_weighs_the_same(shape):
  predict = {"token_logprob": jax.jit(token_logprob)}
  evaluator = perplexity.Evaluator(cfg(), predict, make_mesh(**shape))
  tokens = np.asarray(digits.digits("test").labels) + 1
  assert len(tokens) % evaluator.split.batch_size  # the last batch is not full
  bits = np.sum(tokens * tokens) / np.sum(tokens)  # not the mean over the examples
  assert bits != pytest.approx(tokens.mean(), rel=0.1)
  assert evaluator.run(STATE) == {
    "bits": pytest.approx(bits, rel=1e-6),
    "nll": pytest.approx(bits * math.log(2), rel=1e-6),
    "perplexity": pytest.approx(2**bits, rel=1e-5),
  }


def test_two_texts_by_hand():
  """p = 1/2, 1/4 and, of the other text, 1/8: perplexity is the cube root of 64."""
  logprob = np.log([[0.5, 0.25], [0.125, 1.0]]).astype(np.float32)
  real = np.array([[True, True], [True, False]])
  evaluator = perplexity.Evaluator.__new__(perplexity.Evaluator)
  evaluator.logprob = lambda params, aux, batch: {"logprob": logprob, "real": real}
  evaluator.split = type("Split", (), {"map": lambda self, fn: jax.device_get(fn({}))})()
  assert evaluator.run(STATE)["perplexity"] == pytest.approx(4)
  assert evaluator.run(STATE)["bits"] == pytest.approx(2)


def test_limits():
  mesh = make_mesh(**MESHES[0])
  made = lambda logprob, real: {
    "token_logprob": lambda p, a, b, rng=None: {
      "logprob": jnp.full((len(b["text"]), 1), logprob),
      "real": jnp.full((len(b["text"]), 1), real),
    }
  }
  found = perplexity.Evaluator(cfg(), made(-1e4, True), mesh).run(STATE)
  assert found["perplexity"] == math.inf and found["nll"] == pytest.approx(1e4)
  with pytest.raises(UserError, match="no text of the split has a token"):
    perplexity.Evaluator(cfg(), made(-1.0, False), mesh).run(STATE)
  with pytest.raises(UserError, match="has no predict 'token_logprob'"):
    perplexity.Evaluator(cfg(), {}, mesh)
  with pytest.raises(UserError, match="leaves text of type str; add tokenize"):
    perplexity.Evaluator(cfg(pp=""), made(-1.0, True), mesh)
