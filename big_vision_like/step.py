"""One jitted, donated training step for every method, and the jitted `predict` functions."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from big_vision_like import axes
from big_vision_like.config import UserError
from big_vision_like.method import Batch, Method, Metrics, value_and_grad
from big_vision_like.state import State


def accumulated(method: Method, k: int) -> Callable:
  """`value_and_grad(method)` as the mean over k micro-batches, each with its own rng.

  For losses that are means over examples. `aux` moves from one micro-batch to the next.
  """
  grad_fn = value_and_grad(method)
  if k == 1:
    return grad_fn

  def fn(params, aux, batch, rng, step):
    def body(carry, xs):
      aux, total = carry
      i, micro = xs
      (loss, (aux, metrics)), grads = grad_fn(params, aux, micro, jax.random.fold_in(rng, i), step)
      total = jax.tree.map(lambda t, g: t + g.astype(t.dtype) / k, total, grads)
      return (aux, total), (loss, metrics)

    zeros = jax.tree.map(jnp.zeros_like, params)
    xs = (jnp.arange(k), axes.micro_batches(batch, k))
    (aux, grads), (losses, metrics) = jax.lax.scan(body, (aux, zeros), xs)
    mean = lambda x: jnp.mean(x, axis=0)
    return (mean(losses), (aux, jax.tree.map(mean, metrics))), grads

  return fn


def make_train_step(
  method: Method,
  tx: optax.GradientTransformation,
  *,
  seed: int,
  shardings: State | None = None,
  accumulate: int = 1,
) -> Callable[[State, Batch], tuple[State, Metrics]]:
  """`(state, batch) -> (state, metrics)`, jitted, the state donated and its shardings kept.

  Randomness is a function of (seed, step) alone. Metrics hold `loss`, `grad_norm`, `param_norm` (of
  the new parameters) and the method's own; a NaN or Inf anywhere shows in one of these three.
  """
  grad_fn = accumulated(method, accumulate)

  def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
    rng = jax.random.fold_in(jax.random.key(seed), state.step)
    (loss, (aux, metrics)), grads = grad_fn(state.params, state.aux, batch, rng, state.step)
    if shardings is not None:  # gradients are reduce-scattered to where their parameters live
      grads = jax.lax.with_sharding_constraint(grads, shardings.params)
    updates, opt = tx.update(grads, state.opt, state.params)
    params = optax.apply_updates(state.params, updates)
    aux = method.after_update(params, aux, state.step)
    metrics = {
      **metrics,
      "loss": loss,
      "grad_norm": optax.tree.norm(grads),
      "param_norm": optax.tree.norm(params),
    }
    return State(params, aux, opt, state.step + 1), metrics

  return jax.jit(
    train_step,
    donate_argnums=0,
    out_shardings=None if shardings is None else (shardings, None),
  )


def nonfinite(metrics: Mapping[str, Any]) -> list[str]:
  """Which of loss, gradients and parameters hold a NaN or Inf, by host values of one step."""
  names = {"loss": "loss", "grad_norm": "gradients", "param_norm": "parameters"}
  return [what for key, what in names.items() if not math.isfinite(metrics[key])]


def jit_predict(method: Method) -> dict[str, Callable[..., Any]]:
  """`method.predict`, each jitted; keyword options are static."""

  def jitted(fn: Callable) -> Callable:
    def call(params, aux, batch, rng=None, **options):
      key = tuple(sorted(options.items()))
      if key not in cache:
        cache[key] = jax.jit(lambda p, a, b, r: fn(p, a, b, r, **options))
      return cache[key](params, aux, batch, rng)

    cache: dict[tuple, Callable] = {}
    return call

  return {name: jitted(fn) for name, fn in method.predict.items()}


def check_accumulate(
  accumulate: int, batch_size: int, batch_shards: int, key: str = "grad_accum"
) -> None:
  """Raises `UserError` where the batch does not split into equal micro-batches on every device.

  `batch_size` is what `config.<key>` splits into `accumulate` parts.
  """
  if accumulate < 1 or batch_size % (accumulate * batch_shards):
    raise UserError(
      f"config.{key} = {accumulate}: a batch of {batch_size} must be a multiple of "
      f"{key} x batch shards = {accumulate} x {batch_shards}"
    )
