"""The training state: all a run needs to go on, and nothing that knows which method it is."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from big_vision_like.method import Batch, Method


class State(NamedTuple):
  """Paths are `params/...`, `aux/...`, `opt/...` and `step`.

  Attributes:
    params: what is trained.
    aux: what has no gradient: momentum teachers, queues, batch statistics, frozen parts.
    opt: the optimizer's state.
    step: int32, updates done so far.
  """

  params: Any
  aux: Any
  opt: Any
  step: jax.Array


def _init(method: Method, tx: optax.GradientTransformation, key: jax.Array, batch: Batch) -> State:
  batch = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), batch)
  params, aux = method.init(key, batch)
  return State(params, aux, tx.init(params), jnp.zeros((), jnp.int32))


def abstract(
  method: Method, tx: optax.GradientTransformation, key: jax.Array, batch: Batch
) -> State:
  """Shapes and dtypes of the state; `batch` holds `jax.ShapeDtypeStruct`s."""
  return jax.eval_shape(lambda k: _init(method, tx, k, batch), key)


def init(
  method: Method,
  tx: optax.GradientTransformation,
  key: jax.Array,
  batch: Batch,
  shardings: State | None = None,
) -> State:
  """The state, born sharded: no device ever holds more than its part.

  Drawn under `jax_threefry_partitionable` (jax's default), so values do not depend on the mesh.
  """
  # One example is enough to find shapes; the whole batch would be computed on and thrown away.
  one = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), batch)
  return jax.jit(lambda k: _init(method, tx, k, one), out_shardings=shardings)(key)
