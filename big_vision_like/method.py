"""The contract between a paper and the training loop.

A method is a few pure functions. `methods/<name>.py` has `make(config) -> Method`: that file name
is all the registration there is. The training state is `{params, aux, opt, step}`: `aux` is
everything without a gradient (momentum teachers, queues, batch statistics, frozen parts), so that
sharding and checkpoints never know which method they carry.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

Params = Any
Aux = Any
Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


def keep_aux(params: Params, aux: Aux, step: jax.Array) -> Aux:
  """The identity, for methods that have nothing to move after an update."""
  del params, step
  return aux


def keep_params(params: Params, aux: Aux) -> Params:
  """The identity, for methods whose `params` are all there is."""
  del aux
  return params


class Method(NamedTuple):
  """What a paper has to say.

  Attributes:
    init: `(rng, batch) -> params, aux`. `batch` may hold `jax.ShapeDtypeStruct`-shaped zeros.
    loss: `(params, aux, batch, rng, step) -> loss, (aux, metrics)`. A mean over the examples of the
      global batch; every batch has `index` [B], the global example index. `batch` is a dict of
      such batches where `config.input` names several.
    predict: name -> `(params, aux, batch, rng, **static options) -> outputs`. Names an evaluator
      may ask for: `image_embed`, `text_embed`, `logits`, `features`, `reconstruct`, `generate`,
      `sample`, `segment`, `loss_per_example`, `token_logprob`, `similarity`, `match`, `score`,
      `attention`, `image_tokens`.
    after_update: `(params, aux, step) -> aux`, after each optimizer update: momentum teachers,
      queues, centers.
    progress: the metric that falls while the method learns. The loss, but for methods whose loss is
      not a measure of how well they do: two players, or a gradient that is nobody's loss.
    grad: None, or `(params, aux, batch, rng, step) -> (loss, (aux, metrics)), grads` where a
      transform changes how a gradient is taken (GradCache, sharpness-aware minimisation).
    split: None, or `(represent, compare)` where the loss comes apart into what looks at one example
      at a time, `represent(params, aux, batch, rng) -> pytree of float [B, ...]`, and what sees all
      of them, `compare(params, aux, represented, batch, rng, step) -> loss, (aux, metrics)`. The
      loss is the one after the other (`joined`). GradCache asks for it.
    merge: `(params, aux) -> params`, the weights that `predict` runs on, named as the method itself
      names them: what export writes. A transform that renames, hides or averages them says how.
  """

  init: Callable[..., tuple[Params, Aux]]
  loss: Callable[..., tuple[jax.Array, tuple[Aux, Metrics]]]
  predict: Mapping[str, Callable[..., Any]]
  after_update: Callable[..., Aux] = keep_aux
  grad: Callable[..., tuple[tuple[jax.Array, tuple[Aux, Metrics]], Params]] | None = None
  progress: str = "loss"
  split: tuple[Callable, Callable] | None = None
  merge: Callable[..., Params] = keep_params


def joined(represent: Callable, compare: Callable) -> Callable:
  """The loss of a method whose `split` is `(represent, compare)`."""

  def loss(params: Params, aux: Aux, batch: Batch, rng: jax.Array, step: jax.Array):
    return compare(params, aux, represent(params, aux, batch, rng), batch, rng, step)

  return loss


def value_and_grad(method: Method) -> Callable[..., tuple[tuple[jax.Array, Any], Params]]:
  """`method.grad`, or autodiff of `method.loss` with respect to `params`."""
  return method.grad or jax.value_and_grad(method.loss, has_aux=True)
