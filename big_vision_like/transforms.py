"""Transforms method -> method: what wraps a paper instead of being one.

`config.ema = dict(decay=0.999)`, `config.lora = dict(...)`, ...: `train.TRANSFORMS` says which key
asks for which, and in which order they are applied.

How to write one: a function `(method, options) -> method._replace(...)`. Where it needs room in
`aux`, or shows the method other params than the optimizer sees, `_nested` does the wrapping: the
method's own aux becomes `aux["method"]`, and loss, gradient, predictions, `split` and `merge` go
through. It must keep the shapes of the state, take what is random from `rng` or the step, and treat
the batch as the global one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from big_vision_like import augment as augment_lib
from big_vision_like import axes, tree
from big_vision_like.config import UserError, unknown, whole_number
from big_vision_like.losses import distillation
from big_vision_like.method import Aux, Batch, Method, Params, value_and_grad

# Branches of the random tree that no method takes.
AUGMENT, LORA, TEACHER = 0x617567, 0x6C6F72, 0x746561


def _nested(
  method: Method,
  init: Callable[..., tuple[Params, Aux]],
  inside: Callable[[Params, Aux], Params] = lambda params, aux: params,
) -> Method:
  """`method` with its params seen through `inside(params, aux)` and its aux in `aux["method"]`."""

  def into(params: Params, aux: Aux) -> tuple[Params, Aux]:
    return inside(params, aux), aux["method"]

  def out_of(result: Any, aux: Aux) -> Any:
    value, (inner, metrics) = result
    return value, ({**aux, "method": inner}, metrics)

  def loss(params: Params, aux: Aux, *args: Any) -> Any:
    return out_of(method.loss(*into(params, aux), *args), aux)

  def grad(params: Params, aux: Aux, *args: Any) -> Any:
    whole, pull_back = jax.vjp(lambda p: inside(p, aux), params)
    result, grads = method.grad(whole, aux["method"], *args)
    return out_of(result, aux), pull_back(grads)[0]

  def after_update(params: Params, aux: Aux, step: jax.Array) -> Aux:
    return {**aux, "method": method.after_update(*into(params, aux), step)}

  def seen(fn: Callable) -> Callable:
    return lambda params, aux, *args, **options: fn(*into(params, aux), *args, **options)

  split = None
  if method.split is not None:
    represent, compare = method.split
    split = (
      seen(represent),
      lambda params, aux, *args: out_of(compare(*into(params, aux), *args), aux),
    )
  return method._replace(
    init=init,
    loss=loss,
    predict={name: seen(fn) for name, fn in method.predict.items()},
    after_update=after_update,
    grad=None if method.grad is None else grad,
    split=split,
    merge=seen(method.merge),
  )


def _need_loss(method: Method, name: str) -> None:
  """Raises where a transform of the loss is put around one that replaced the gradient."""
  if method.grad is not None:
    raise ValueError(f"{name} must be applied before transforms that change the gradient")


def _number(value: Any, where: str, low: float, high: float = float("inf")) -> float:
  """`value`, a number above `low` and at most `high`."""
  is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
  if not is_number or not low < value <= high:
    bound = f"above {low}" + ("" if high == float("inf") else f", at most {high}")
    raise UserError(f"{where} = {value!r}; expected a number {bound}")
  return value


def _chosen(patterns: Sequence[str], names: Sequence[str], where: str, what: str) -> set[str]:
  """Those of `names` that a pattern matches; a pattern that matches none is an error."""
  if isinstance(patterns, str):
    raise UserError(f"{where} = {patterns!r}; expected a tuple of regular expressions")
  return {name for pattern in patterns for name in tree.find(pattern, names, where, what)}


# ---------------------------------------------------------------------------------------- weights


def freeze(method: Method, patterns: Sequence[str]) -> Method:
  """Moves the leaves of `params` whose path matches into `aux["frozen"]`.

  They then have no gradient and no optimizer state, and stay as they were initialised or loaded
  (`config.init_from = {"aux/frozen/image": "DIR::params/image"}`).

  Raises:
    UserError: when `init` runs and a pattern matches nothing, or everything matches.
  """

  def init(rng: jax.Array, batch: Batch) -> tuple[Params, Aux]:
    params, aux = method.init(rng, batch)
    flat = tree.flatten(params)
    frozen = _chosen(patterns, list(flat), "config.freeze", "parameter")
    if len(frozen) == len(flat):
      raise UserError(f"config.freeze = {list(patterns)!r} freezes all parameters")
    part = lambda which: tree.nest({n: x for n, x in flat.items() if (n in frozen) == which})
    return part(False), {"frozen": part(True), "method": aux}

  def join(params: Params, aux: Aux) -> Params:
    return tree.nest(tree.flatten(params) | tree.flatten(aux["frozen"]))

  return _nested(method, init, join)


def lora(
  method: Method, rank: int, alpha: float, targets: Sequence[str], train: Sequence[str] = ()
) -> Method:
  """Low-rank adaptation (Hu et al., arXiv:2106.09685): W + alpha / rank * a b, Sec. 4.1.

  A kernel W [D, K] whose path matches `targets` gets the params `{"a": [D, rank], "b": [rank, K]}`
  at its path (scanned stacks [L, D, K]: with a leading L). a is normal with variance 1 / D (the
  paper only says Gaussian), b is zero, so that training starts at W. What matches `train` (heads)
  is trained whole; all else is in `aux["frozen"]`: `config.init_from = {"aux/frozen":
  "DIR::params"}` loads it, and "params" the leaves trained whole. `merge` gives the full params.

  The product is formed before the model runs, so that any model works unchanged: the gradient of W
  exists for a moment, its optimizer state never.

  Raises:
    UserError: a rank or alpha that is no number above 0; when `init` runs and a pattern of
      `targets` matches no kernel, or one of `train` no parameter.
  """
  rank = whole_number(rank, "config.lora.rank", 1)
  scale = _number(alpha, "config.lora.alpha", 0) / rank

  def is_kernel(name: str, x: jax.Array) -> bool:
    return x.ndim - ("blocks" in name.split("/")) == 2

  def init(rng: jax.Array, batch: Batch) -> tuple[Params, Aux]:
    params, aux = method.init(rng, batch)
    flat = tree.flatten(params)
    kernels = [n for n, x in flat.items() if is_kernel(n, x)]
    whole = _chosen(train, list(flat), "config.lora.train", "parameter")
    adapted = _chosen(targets, kernels, "config.lora.targets", "kernel") - whole
    if not adapted:
      raise UserError(f"config.lora.targets = {list(targets)!r} leaves no kernel to adapt")
    trained = {n: x for n, x in flat.items() if n in whole}
    for i, name in enumerate(sorted(adapted)):
      *depth, rows, columns = flat[name].shape
      key = jax.random.fold_in(jax.random.fold_in(rng, LORA), i)
      a = jax.random.normal(key, (*depth, rows, rank), flat[name].dtype)
      trained[f"{name}/a"] = a * rows**-0.5
      trained[f"{name}/b"] = jnp.zeros((*depth, rank, columns), flat[name].dtype)
    frozen = {n: x for n, x in flat.items() if n not in whole}
    return tree.nest(trained), {"frozen": tree.nest(frozen), "method": aux}

  def merge(params: Params, aux: Aux) -> Params:
    trained = tree.flatten(params)
    full = {}
    for name, x in tree.flatten(aux["frozen"]).items():
      if f"{name}/a" in trained:
        x = x + scale * (trained.pop(f"{name}/a") @ trained.pop(f"{name}/b"))
      full[name] = x
    return tree.nest(full | trained)

  return _nested(method, init, merge)


def ema(method: Method, decay: float, warmup: bool = True) -> Method:
  """Every `predict` uses an exponential moving average of the weights, `aux["ema"]`.

      ema <- d ema + (1 - d) params,   d = decay, or min(decay, (1 + t) / (10 + t)) with `warmup`

  after update t = 0, 1, ...; it starts as a copy of the params (Polyak & Juditsky 1992; the warm-up
  is that of TensorFlow's ExponentialMovingAverage). The loss sees the weights themselves.

  Raises:
    UserError: a decay that is not a number from 0 to 1.
  """
  _number(decay, "config.ema.decay", 0, 1)

  def init(rng: jax.Array, batch: Batch) -> tuple[Params, Aux]:
    params, aux = method.init(rng, batch)
    # A copy: the training step donates both, and one buffer cannot be donated twice.
    return params, {"ema": jax.tree.map(jnp.copy, params), "method": aux}

  nested = _nested(method, init)

  def after_update(params: Params, aux: Aux, step: jax.Array) -> Aux:
    d = jnp.minimum(decay, (1 + step) / (10 + step)) if warmup else decay
    aux = nested.after_update(params, aux, step)
    return {**aux, "ema": tree.average(aux["ema"], params, d)}

  def averaged(fn: Callable) -> Callable:
    return lambda params, aux, *args, **options: fn(aux["ema"], aux, *args, **options)

  return nested._replace(
    predict={name: averaged(fn) for name, fn in nested.predict.items()},
    after_update=after_update,
    merge=averaged(nested.merge),
  )


# --------------------------------------------------------------------------------------- gradient


def grad_cache(method: Method, micro_batches: int) -> Method:
  """A contrastive loss in k micro-batches that equals the whole batch's (arXiv:2101.06983).

  Memory of one micro-batch's activations plus all representations, for one more forward pass:
  represent every micro-batch without a gradient; the gradient of `compare` with respect to the
  representations and the params; then pull each micro-batch's part back through `represent`, with
  the same random numbers. Micro-batches are those of `axes.micro_batches`: no example changes its
  device. `config.grad_accum`, which splits the loss as well, is independent of it.

  Raises:
    UserError: a method without `split`; when traced, a batch that does not divide.
  """
  k = whole_number(micro_batches, "config.grad_cache", 1)
  _need_loss(method, "grad_cache")
  if method.split is None:
    raise UserError(
      f"config.grad_cache = {k}: the method does not say how its loss splits into examples "
      "(Method.split); use config.grad_accum"
    )
  represent, compare = method.split

  def grad(params: Params, aux: Aux, batch: Batch, rng: jax.Array, step: jax.Array):
    size = jax.tree.leaves(batch)[0].shape[0]
    if size % k:
      raise UserError(f"config.grad_cache = {k}: it must divide the batch of {size} examples")
    parts = (jnp.arange(k), axes.micro_batches(batch, k))
    view = lambda p, i, micro: represent(p, aux, micro, jax.random.fold_in(rng, i))

    _, cache = jax.lax.scan(lambda _, part: (None, view(params, *part)), None, parts)
    (value, rest), (grads, of_cache) = jax.value_and_grad(compare, argnums=(0, 2), has_aux=True)(
      params, aux, axes.whole_batch(cache), batch, rng, step
    )

    def pull_back(total: Params, part: Any) -> tuple[Params, None]:
      i, micro, cotangent = part
      _, pull = jax.vjp(lambda p: view(p, i, micro), params)
      return jax.tree.map(jnp.add, total, pull(cotangent)[0]), None

    grads, _ = jax.lax.scan(pull_back, grads, (*parts, axes.micro_batches(of_cache, k)))
    return (value, rest), grads

  return method._replace(grad=grad)


def sam(method: Method, rho: float = 0.05) -> Method:
  """Sharpness-aware minimisation (Foret et al., arXiv:2010.01412), Algorithm 1 with p = 2.

      g <- grad L(w + rho g / ||g||),   g = grad L(w)

  Value, metrics and aux are those of the first pass, at the weights themselves. With
  `config.grad_accum` every micro-batch climbs by its own gradient (the paper's m-sharpness).

  Raises:
    UserError: a rho that is not a number above 0.
  """
  _number(rho, "config.sam.rho", 0)
  inner = value_and_grad(method)

  def grad(params: Params, aux: Aux, batch: Batch, rng: jax.Array, step: jax.Array):
    result, g = inner(params, aux, batch, rng, step)
    scale = rho / (optax.tree.norm(g) + 1e-12)
    up = jax.tree.map(lambda w, d: w + scale * d, params, g)
    return result, inner(up, aux, batch, rng, step)[1]

  return method._replace(grad=grad)


# ----------------------------------------------------------------------------- loss and its inputs

DISTANCES = ("logits", "image_embed")


def distil(
  method: Method, teacher: Method, weight: float, temperature: float = 1.0, on: str = "logits"
) -> Method:
  """Adds `weight` times the distance to a fixed teacher, whose state is `aux["teacher"]`.

  On "logits" T^2 KL(teacher || student) at temperature T (Hinton et al., arXiv:1503.02531, Sec. 2);
  on "image_embed" 1 - cos between the embeddings. Both come from the `predict` function of that
  name, on the same batch; the metric is `distil`. `aux["teacher"]` holds the teacher's params and
  aux.

  Raises:
    UserError: an unknown `on`, one that method or teacher has no `predict` for, a weight or
      temperature that is no number above 0; when traced, outputs of different sizes.
  """
  where = "config.distil"
  _need_loss(method, "distil")
  _number(weight, f"{where}.weight", 0)
  _number(temperature, f"{where}.temperature", 0)
  if on not in DISTANCES:
    raise unknown(f"{where}.on", on, DISTANCES)
  for who, predict in (("the method", method.predict), ("the teacher", teacher.predict)):
    if on not in predict:
      raise UserError(f"{where}.on = {on!r}: {who} predicts only {', '.join(predict)}")

  def init(rng: jax.Array, batch: Batch) -> tuple[Params, Aux]:
    params, aux = method.init(rng, batch)
    known = dict(zip(("params", "aux"), teacher.init(jax.random.fold_in(rng, TEACHER), batch)))
    return params, {"teacher": known, "method": aux}

  nested = _nested(method, init)

  def outputs(params: Params, aux: Aux, batch: Batch, rng: jax.Array) -> dict[str, jax.Array]:
    known = aux["teacher"]
    target = teacher.predict[on](known["params"], known["aux"], batch, rng)
    return {
      "student": nested.predict[on](params, aux, batch, rng),
      "teacher": jax.lax.stop_gradient(target),
    }

  def add(result: Any, out: dict[str, jax.Array]) -> Any:
    value, (aux, metrics) = result
    student, target = out["student"], out["teacher"]
    if student.shape != target.shape:
      raise UserError(f"{where}.on = {on!r}: shape {student.shape}, the teacher's {target.shape}")
    if on == "logits":
      distance = distillation.kl(target, student, temperature)
    else:
      distance = distillation.cosine_distance(target, student)
    return value + weight * distance, (aux, {**metrics, "distil": distance})

  def loss(params: Params, aux: Aux, batch: Batch, rng: jax.Array, step: jax.Array):
    return add(nested.loss(params, aux, batch, rng, step), outputs(params, aux, batch, rng))

  split = None
  if nested.split is not None:
    represent, compare = nested.split
    split = (
      lambda *args: {"method": represent(*args), "distil": outputs(*args)},
      lambda params, aux, seen, *args: add(
        compare(params, aux, seen["method"], *args), seen["distil"]
      ),
    )
  return nested._replace(loss=loss, split=split)


def augment(method: Method, ops: str) -> Method:
  """Batched augmentation before the loss, and there only: `"color_jitter(0.4)|mixup(0.2)"`.

  The ops are in `augment.py`. The method's own random numbers do not change.
  """
  op = augment_lib.build(ops, "config.augment")

  def loss(params: Params, aux: Aux, batch: Batch, rng: jax.Array, step: jax.Array):
    return method.loss(params, aux, op(jax.random.fold_in(rng, AUGMENT), batch), rng, step)

  def grad(params: Params, aux: Aux, batch: Batch, rng: jax.Array, step: jax.Array):
    return method.grad(params, aux, op(jax.random.fold_in(rng, AUGMENT), batch), rng, step)

  # The split sees batches as they come: whoever takes a gradient from it must be wrapped by this.
  return method._replace(loss=loss, grad=None if method.grad is None else grad, split=None)
