"""The contract between a paper and the training loop, and the transforms method -> method.

A method is five pure functions. `methods/<name>.py` has `make(config) -> Method`; that file name is
all the registration there is. The training state is `{params, aux, opt, step}`: `aux` is everything
without a gradient (momentum teachers, queues, batch statistics, frozen parts), so that sharding and
checkpoints never know which method they carry.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from big_vision_like import tree
from big_vision_like.config import UserError

Params = Any
Aux = Any
Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


def keep_aux(params: Params, aux: Aux, step: jax.Array) -> Aux:
  """The identity, for methods that have nothing to move after an update."""
  del params, step
  return aux


class Method(NamedTuple):
  """What a paper has to say.

  Attributes:
    init: `(rng, batch) -> params, aux`. `batch` may hold `jax.ShapeDtypeStruct`-shaped zeros.
    loss: `(params, aux, batch, rng, step) -> loss, (aux, metrics)`. A mean over the examples of the
      global batch; every batch has `index` [B], the global example index.
    predict: name -> `(params, aux, batch, rng, **static options) -> outputs`. Names an evaluator
      may ask for: `image_embed`, `text_embed`, `logits`, `features`, `reconstruct`, `generate`,
      `sample`, `segment`, `loss_per_example`, `similarity`, `match`, `score`.
    after_update: `(params, aux, step) -> aux`, after each optimizer update: momentum teachers,
      queues, centers.
    grad: None, or `(params, aux, batch, rng, step) -> (loss, (aux, metrics)), grads` where a
      transform changes how a gradient is taken (GradCache, sharpness-aware minimisation).
  """

  init: Callable[..., tuple[Params, Aux]]
  loss: Callable[..., tuple[jax.Array, tuple[Aux, Metrics]]]
  predict: Mapping[str, Callable[..., Any]]
  after_update: Callable[..., Aux] = keep_aux
  grad: Callable[..., tuple[tuple[jax.Array, tuple[Aux, Metrics]], Params]] | None = None


def value_and_grad(method: Method) -> Callable[..., tuple[tuple[jax.Array, Any], Params]]:
  """`method.grad`, or autodiff of `method.loss` with respect to `params`."""
  return method.grad or jax.value_and_grad(method.loss, has_aux=True)


# ------------------------------------------------------------------------------------- transforms


def freeze(method: Method, patterns: Sequence[str]) -> Method:
  """Moves the leaves of `params` whose path matches into `aux["frozen"]`.

  They then have no gradient and no optimizer state, and stay as they were initialised or loaded
  (`config.init_from = {"aux/frozen/image": "DIR::params/image"}`). The method's own `aux` becomes
  `aux["method"]`.

  Raises:
    UserError: when `init` runs and a pattern matches nothing, or everything matches.
  """

  def split(params: Params) -> tuple[Params, Params]:
    flat = tree.flatten(params)
    frozen = {n for n in flat if tree.first_match(patterns, n) is not None}
    for pattern in patterns:
      if not any(tree.matches(pattern, n) for n in flat):
        raise UserError(f"config.freeze: {pattern!r} matches no parameter")
    if len(frozen) == len(flat):
      raise UserError(f"config.freeze = {list(patterns)!r} freezes all parameters")
    return tuple(
      tree.nest({n: x for n, x in flat.items() if (n in frozen) == which})
      for which in (False, True)
    )

  def join(params: Params, aux: Aux) -> Params:
    return tree.nest(tree.flatten(params) | tree.flatten(aux["frozen"]))

  def init(rng: jax.Array, batch: Batch) -> tuple[Params, Aux]:
    params, aux = method.init(rng, batch)
    params, frozen = split(params)
    return params, {"frozen": frozen, "method": aux}

  def loss(params: Params, aux: Aux, batch: Batch, rng: jax.Array, step: jax.Array):
    value, (inner, metrics) = method.loss(join(params, aux), aux["method"], batch, rng, step)
    return value, ({**aux, "method": inner}, metrics)

  def after_update(params: Params, aux: Aux, step: jax.Array) -> Aux:
    return {**aux, "method": method.after_update(join(params, aux), aux["method"], step)}

  def thawed(fn: Callable) -> Callable:
    return lambda params, aux, *args, **options: fn(
      join(params, aux), aux["method"], *args, **options
    )

  def grad(params: Params, aux: Aux, batch: Batch, rng: jax.Array, step: jax.Array):
    (value, (inner, metrics)), grads = method.grad(
      join(params, aux), aux["method"], batch, rng, step
    )
    flat = tree.flatten(grads)
    grads = tree.map_with_name(lambda name, _: flat[name], params)
    return (value, ({**aux, "method": inner}, metrics)), grads

  return Method(
    init=init,
    loss=loss,
    predict={name: thawed(fn) for name, fn in method.predict.items()},
    after_update=after_update,
    grad=None if method.grad is None else grad,
  )
