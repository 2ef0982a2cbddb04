"""InfoNCE (van den Oord et al., arXiv:1807.03748) of queries against keys, in one direction."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def info_nce(
  queries: Float[Array, "B E"],
  keys: Float[Array, "B E"],
  queue: Float[Array, "K E"] | None = None,
  *,
  temperature: float,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """(-log exp(q.k+ / T) / sum_i exp(q.k_i / T), accuracy), means over B; MoCo's Eq. 1.

  Args:
    queries, keys: row i of one belongs to row i of the other; of length 1.
    queue: the negatives, for all queries alike. Without it they are the other keys of the global
      batch.
    temperature: T.

  Returns:
    The loss, and the share of queries whose own key is nearer than all negatives.
  """
  dot = lambda x, y: jnp.einsum("iE,jE->ij", x, y, preferred_element_type=jnp.float32)
  if queue is None:
    logits, own = dot(queries, keys) / temperature, jnp.arange(queries.shape[0])
  else:
    positive = jnp.sum(queries.astype(jnp.float32) * keys.astype(jnp.float32), axis=1)
    logits = jnp.concatenate([positive[:, None], dot(queries, queue)], axis=1) / temperature
    own = jnp.zeros(queries.shape[0], jnp.int32)
  right = jnp.take_along_axis(logits, own[:, None], axis=1)[:, 0]
  loss = jnp.mean(jax.nn.logsumexp(logits, axis=1) - right)
  # A negative as near as the key counts against it, so that a collapsed model scores zero.
  nearer = jnp.sum(logits >= right[:, None], axis=1)
  return loss, jnp.mean((nearer == 1).astype(jnp.float32))
