"""Captioning: the likelihood of the next token."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def token_nll(logits: Float[Array, "*B L V"], targets: Int[Array, "*B L"]) -> Float[Array, "*B L"]:
  """-log P(y_t | y_<t, x) of every token, in float32. logits[..., t, :] predict targets[..., t]."""
  logits = logits.astype(jnp.float32)
  right = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  return jax.nn.logsumexp(logits, axis=-1) - right


def mean_over_tokens(x: Float[Array, "B L"], mask: Bool[Array, "B L"]) -> Float[Array, ""]:
  """The mean of `x` where `mask` is True; what is False (padding) does not count.

  Of `token_nll` it is -sum_t log P(y_t | y_<t, x), CoCa (arXiv:2205.01917) Eq. 3, divided by the
  number of tokens in the batch, so that long captions do not outweigh the other loss.
  """
  return jnp.sum(jnp.where(mask, x, 0.0)) / jnp.maximum(jnp.sum(mask), 1)
