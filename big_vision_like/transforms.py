"""Transforms method -> method: what wraps a paper instead of being one.

The config asks for them (`config.freeze`, `config.augment`); `train.make_method` applies them.
"""

from collections.abc import Callable, Sequence

import jax

from big_vision_like import augment as augment_lib
from big_vision_like import tree
from big_vision_like.config import UserError
from big_vision_like.method import Aux, Batch, Method, Params

AUGMENT = 0x617567  # "aug": a branch of the random tree that no method takes


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

  return method._replace(
    init=init,
    loss=loss,
    predict={name: thawed(fn) for name, fn in method.predict.items()},
    after_update=after_update,
    grad=None if method.grad is None else grad,
  )


def augment(method: Method, ops: str) -> Method:
  """Batched augmentation before the loss, and there only: `"color_jitter(0.4)|mixup(0.2)"`.

  The ops are in `augment.py`. The method's own random numbers do not change.
  """
  op = augment_lib.build(ops, "config.augment")

  def loss(params: Params, aux: Aux, batch: Batch, rng: jax.Array, step: jax.Array):
    return method.loss(params, aux, op(jax.random.fold_in(rng, AUGMENT), batch), rng, step)

  def grad(params: Params, aux: Aux, batch: Batch, rng: jax.Array, step: jax.Array):
    return method.grad(params, aux, op(jax.random.fold_in(rng, AUGMENT), batch), rng, step)

  return method._replace(loss=loss, grad=None if method.grad is None else grad)
