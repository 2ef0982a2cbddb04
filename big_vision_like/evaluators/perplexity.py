"""How likely held-out text is, token by token, by `predict["token_logprob"]`.

    nll            -sum_t log P(y_t | y_<t) / T over all T real tokens of the split, in nats
    perplexity     exp(nll)
    bits           nll / ln 2, bits a token

Every token weighs the same, so that a long text counts for more than a short one; padding does not
count. Models with different tokens cannot be compared by it.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from big_vision_like.config import Config, UserError
from big_vision_like.evaluators import Split, need


class Evaluator:
  """Keys: source, pp (yields what the method reads, text as tokens), batch_size.

  `predict["token_logprob"]` gives `logprob` [B, L] and `real` bool [B, L].
  """

  def __init__(self, config: Config, predict: Mapping[str, Callable], mesh: jax.sharding.Mesh):
    self.where = config.path
    self.logprob = need(predict, "token_logprob", config)
    self.split = Split(config, mesh, needs=("text",))

  def run(self, state: Any) -> dict[str, float]:
    """`{"nll": nats a token, "perplexity": its exponential, "bits": bits a token}`."""
    rows = self.split.map(lambda b: _sums(self.logprob(state.params, state.aux, b)))
    tokens = int(rows["tokens"].sum(dtype=np.int64))
    if not tokens:
      raise UserError(f"{self.where}: no text of the split has a token that is not padding")
    nll = -float(rows["logprob"].sum(dtype=np.float64)) / tokens
    # Of a model that is sure of the wrong token it is beyond any number.
    perplexity = math.exp(nll) if nll < 700 else math.inf
    return {"nll": nll, "perplexity": perplexity, "bits": nll / math.log(2)}


@jax.jit
def _sums(out: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
  """Log probability and number of the real tokens of each row: [B, L] -> [B]."""
  real = out["real"]
  logprob = jnp.where(real, out["logprob"].astype(jnp.float32), 0.0)
  return {"logprob": jnp.sum(logprob, axis=1), "tokens": jnp.sum(real, axis=1, dtype=jnp.int32)}
