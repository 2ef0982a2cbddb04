"""Decoding one token at a time with a cache: greedy, sampling, beam search. For use inside jit.

A model is one pure function of its past:

    step_fn(tokens int32 [B], cache, position int32 []) -> (logits [B, V], cache)

which reads `tokens` at `position`, and returns the logits of the token after them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from big_vision_like.config import UserError

Cache = Any
StepFn = Callable[[jax.Array, Cache, jax.Array], tuple[jax.Array, Cache]]


def filter_logits(
  logits: jax.Array, top_k: int | None = None, top_p: float | None = None
) -> jax.Array:
  """-inf for all tokens but the `top_k` best, or the fewest that hold `top_p` of the probability.

  Nucleus sampling (Holtzman et al., arXiv:1904.09751): the token that crosses `top_p` stays. Both
  may be given: first k, then p of what is left. logits [..., V]. Ties with the last one stay.
  """
  if top_k is not None:
    worst = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][..., -1:]
    logits = jnp.where(logits < worst, -jnp.inf, logits)
  if top_p is not None:
    best_first = -jnp.sort(-logits, axis=-1)
    probability = jax.nn.softmax(best_first, axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    worst = jnp.min(jnp.where(before < top_p, best_first, jnp.inf), axis=-1, keepdims=True)
    logits = jnp.where(logits < worst, -jnp.inf, logits)
  return logits


def generate(
  step_fn: StepFn,
  cache: Cache,
  start: jax.Array,
  max_new_tokens: int,
  *,
  eos_id: int,
  pad_id: int = 0,
  rng: jax.Array | None = None,
  temperature: float = 0.0,
  top_k: int | None = None,
  top_p: float | None = None,
) -> jax.Array:
  """Tokens after `start` [B] -> int32 [B, max_new_tokens], `pad_id` after the first `eos_id`.

  Padding is no word: it is never chosen before the end.

  Args:
    step_fn, cache: as above; the cache has room for `max_new_tokens` positions.
    rng: needed with a temperature above 0.
    temperature: 0 takes the best token (greedy), else samples softmax(logits / temperature).
    top_k, top_p: see `filter_logits`.

  Raises:
    UserError: an option out of its range.
  """
  _check(max_new_tokens, temperature, top_k, top_p)
  if temperature > 0 and rng is None:
    raise UserError(f"generate: temperature = {temperature} needs a random key; temperature = 0")

  def choose(logits: jax.Array, position: jax.Array) -> jax.Array:
    logits = _words(logits, pad_id)
    if temperature == 0:
      return jnp.argmax(logits, axis=-1)
    logits = filter_logits(logits / temperature, top_k, top_p)
    return jax.random.categorical(jax.random.fold_in(rng, position), logits, axis=-1)

  def body(carry):
    position, tokens, done, out, cache = carry
    logits, cache = step_fn(tokens, cache, position)
    tokens = jnp.where(done, pad_id, choose(logits, position)).astype(jnp.int32)
    out = jax.lax.dynamic_update_index_in_dim(out, tokens, position, axis=1)
    return position + 1, tokens, done | (tokens == eos_id), out, cache

  # Ends as soon as every row has: captions are short.
  unfinished = lambda carry: (carry[0] < max_new_tokens) & ~jnp.all(carry[2])
  batch = start.shape[0]
  out = jnp.full((batch, max_new_tokens), pad_id, jnp.int32)
  first = (jnp.int32(0), start.astype(jnp.int32), jnp.zeros(batch, bool), out, cache)
  return jax.lax.while_loop(unfinished, body, first)[3]


def beam_search(
  step_fn: StepFn,
  cache: Cache,
  start: jax.Array,
  max_new_tokens: int,
  *,
  beams: int,
  eos_id: int,
  pad_id: int = 0,
  length_penalty: float = 1.0,
  cache_axis: int = 0,
) -> tuple[jax.Array, jax.Array]:
  """The best of `beams` hypotheses: (int32 [B, max_new_tokens], score [B]).

  Score = log P(y) / |y|^length_penalty, where |y| counts the end-of-text. A hypothesis that has
  ended keeps its place among the `beams` and is compared by the same score, so that long ones are
  not driven out by short ones before they end.

  Args:
    cache: of `B` rows; it is repeated for the beams, whose order it follows.
    cache_axis: the batch's axis in every leaf of the cache.
    others: as in `generate`.

  Raises:
    UserError: an option out of its range.
  """
  _check(max_new_tokens, 0.0, None, None)
  if beams < 1:
    raise UserError(f"generate: beams = {beams}; expected at least 1")
  batch = start.shape[0]
  cache = jax.tree.map(lambda x: jnp.repeat(x, beams, axis=cache_axis), cache)

  def follow(cache: Cache, parent: jax.Array) -> Cache:
    rows = (jnp.arange(batch)[:, None] * beams + parent).reshape(-1)
    return jax.tree.map(lambda x: jnp.take(x, rows, axis=cache_axis), cache)

  def body(carry):
    position, tokens, length, total, done, out, cache = carry
    logits, cache = step_fn(tokens.reshape(-1), cache, position)
    step = jax.nn.log_softmax(_words(logits, pad_id)).reshape(batch, beams, -1)
    vocab = step.shape[-1]
    # A hypothesis that has ended goes on with padding, at no cost.
    only_pad = jnp.where(jnp.arange(vocab) == pad_id, 0.0, -jnp.inf)
    step = jnp.where(done[..., None], only_pad[None, None, :], step)
    totals = total[..., None] + step
    lengths = length + ~done
    scores = totals / lengths[..., None].astype(jnp.float32) ** length_penalty
    _, best = jax.lax.top_k(scores.reshape(batch, -1), beams)
    parent, tokens = best // vocab, (best % vocab).astype(jnp.int32)
    take = lambda x: jnp.take_along_axis(x, parent, axis=1)
    total = jnp.take_along_axis(totals.reshape(batch, -1), best, axis=1)
    out = jnp.take_along_axis(out, parent[..., None], axis=1)
    out = jax.lax.dynamic_update_index_in_dim(out, tokens, position, axis=2)
    done = take(done) | (tokens == eos_id)
    return position + 1, tokens, take(lengths), total, done, out, follow(cache, parent)

  # All beams start alike: only the first one counts until they differ.
  total = jnp.where(jnp.arange(beams) == 0, 0.0, -jnp.inf)
  first = (
    jnp.int32(0),
    jnp.broadcast_to(start.astype(jnp.int32)[:, None], (batch, beams)),
    jnp.zeros((batch, beams), jnp.int32),
    jnp.broadcast_to(total[None, :], (batch, beams)),
    jnp.zeros((batch, beams), bool),
    jnp.full((batch, beams, max_new_tokens), pad_id, jnp.int32),
    cache,
  )
  unfinished = lambda carry: (carry[0] < max_new_tokens) & ~jnp.all(carry[4])
  _, _, length, total, _, out, _ = jax.lax.while_loop(unfinished, body, first)
  scores = total / length.astype(jnp.float32) ** length_penalty
  best = jnp.argmax(scores, axis=1)[:, None]
  tokens = jnp.take_along_axis(out, best[..., None], axis=1)[:, 0]
  return tokens, jnp.take_along_axis(scores, best, axis=1)[:, 0]


def _words(logits: jax.Array, pad_id: int) -> jax.Array:
  """float32, and -inf for padding."""
  return logits.astype(jnp.float32).at[:, pad_id].set(-jnp.inf)


def _check(max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None) -> None:
  for name, value, good, wanted in (
    ("max_new_tokens", max_new_tokens, max_new_tokens >= 1, "at least 1"),
    ("temperature", temperature, temperature >= 0, "a number >= 0"),
    ("top_k", top_k, top_k is None or top_k >= 1, "at least 1"),
    ("top_p", top_p, top_p is None or 0 < top_p <= 1, "above 0, at most 1"),
  ):
    if not good:
      raise UserError(f"generate: {name} = {value!r}; expected {wanted}")
