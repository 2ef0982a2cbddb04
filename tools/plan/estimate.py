"""Shape analysis: what a step keeps, computes and sends, without compiling it. All estimates.

Activations are what the backward pass keeps: the values that `jax.vjp` carries from one pass to the
other, for the examples of one device and one micro-batch. A compiler may keep less (it recomputes
cheap parts, reuses buffers) and needs more (the working set of the block it is in).
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from big_vision_like import axes, flops, tree
from big_vision_like.compose import make_method
from big_vision_like.config import replaced, wrap
from big_vision_like.layers import attention
from big_vision_like.method import Method
from big_vision_like.sharding import Table
from big_vision_like.step import accumulated
from big_vision_like.train import Built
from tools.plan.hlo import Collective

ROW_PARALLEL = r".*(out|down)/kernel"  # what sharding.DEFAULT_RULES splits over its input


class Shapes(NamedTuple):
  """Of one device: bytes kept for the backward pass, and of the sums over `tensor` (forward)."""

  activations: int
  tensor_sums: int


@contextlib.contextmanager
def kernels_of(kind: str) -> Iterator[None]:
  """Attention as a chip of this kind runs it: on a GPU cuDNN's keeps no scores, it recomputes them.

  Only inside this context, and only for tracing: cuDNN's own version cannot be traced without it.
  """
  plain = attention.attention

  def flash(q, k, v, *, mask=None, impl=None, **how):
    fn = lambda q, k, v: plain(q, k, v, mask=mask, impl="xla", **how)
    cudnn = (impl or attention.pick(q, k, mask, "gpu")) == "cudnn"
    return jax.checkpoint(fn)(q, k, v) if cudnn else fn(q, k, v)

  try:
    if kind == "gpu":
      attention.attention = flash
    yield
  finally:
    attention.attention = plain


def has(node: Any, key: str) -> bool:
  return isinstance(node, Mapping) and (key in node or any(has(v, key) for v in node.values()))


def micro_batches(config: Mapping[str, Any]) -> int:
  """In how many parts a step sees its batch."""
  return config["grad_accum"] * (config.get("grad_cache") or 1)


def with_remat(built: Built, policy: str | None, micro: bool = True) -> Method:
  """The method with this policy on every tower that has one; `micro`: without gradient caching."""
  config = built.config.to_dict()
  config = config if policy is None else replaced(config, remat=policy)
  if micro:
    config = {k: v for k, v in config.items() if k != "grad_cache"}
  return make_method(wrap(config).timed(built.durations))


def shapes(built: Built, rows: int, policy: str | None = None) -> Shapes:
  """For `rows` examples on one device; `policy` is a remat policy, None the config's own.

  Heads and hidden features count whole: with `tensor` > 1 the true figure is smaller.
  """
  method = with_remat(built, policy)
  batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), built.batch)
  bare = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
  params, aux = jax.tree.map(bare, (built.abstract.params, built.abstract.aux))
  count = jax.ShapeDtypeStruct((), jnp.int32)
  loss = _local_loss(method, rows)

  def kept(params, aux, batch, count):
    fn = lambda p: loss(p, aux, batch, jax.random.key(0), count)
    return jax.tree.leaves(jax.vjp(fn, params, has_aux=True)[1])

  jaxpr = jax.make_jaxpr(kept)(params, aux, batch, count).jaxpr
  given = set(jaxpr.invars)
  values = {v for v in jaxpr.outvars if isinstance(v, core.Var) and v not in given}
  size = sum(
    v.aval.size * v.aval.dtype.itemsize for v in values if hasattr(v.aval.dtype, "itemsize")
  )

  kernels = tree.flatten(params)
  split = {x.shape[-2:] for n, x in kernels.items() if tree.matches(ROW_PARALLEL, n)}
  return Shapes(size, _sums(jaxpr, split))


def _local_loss(method: Method, rows: int) -> Callable:
  """The loss of one device's examples; of a loss over all pairs only what feeds it."""
  if method.split is None:
    return method.loss

  def loss(params, aux, batch, rng, count):
    z = method.split[0](params, aux, batch, rng)
    return sum(jnp.sum(x.astype(jnp.float32)) for x in jax.tree.leaves(z)), None

  return loss


def _sums(jaxpr: core.Jaxpr, split: set[tuple[int, ...]]) -> int:
  """Bytes of the products with those kernels: each is a sum over the devices of `tensor`."""
  total = 0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "dot_general" and eqn.invars[1].aval.shape in split:
      (contract, _), _ = eqn.params["dimension_numbers"]
      out = eqn.outvars[0].aval
      if contract[0] == eqn.invars[0].aval.ndim - 1:  # forward, not a gradient
        total += out.size * out.dtype.itemsize
    times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
    total += times * sum(_sums(j, split) for j in flops.subjaxprs(eqn.params))
  return total


def hardware_flops(built: Built, policy: str | None = None) -> int:
  """FLOPs of loss and gradients as they run, with what remat and gradient caching compute again."""
  method = with_remat(built, policy, micro=False)
  rng, count = jax.random.key(0), jax.ShapeDtypeStruct((), jnp.int32)
  with axes.ambient(built.mesh):
    return flops.count(
      accumulated(method, built.config.grad_accum),
      built.abstract.params,
      built.abstract.aux,
      built.batch,
      rng,
      count,
    )


def compute_itemsize(config: Mapping[str, Any]) -> int:
  """Bytes of a number in the matrix products: 2 where any model's dtype is a half one."""
  text = str(config)
  return 2 if "bfloat16" in text or "float16" in text else 4


def represented_bytes(built: Built) -> int:
  """Of the larger representation that a contrastive loss compares, global batch; 0 without one."""
  if built.method.split is None:
    return 0
  args = (built.abstract.params, built.abstract.aux, built.batch, jax.random.key(0))
  with axes.ambient(built.mesh):  # whose devices may not be here: only shapes
    z = jax.eval_shape(built.method.split[0], *args)
  return max(x.size * x.dtype.itemsize for x in jax.tree.leaves(z))


def collectives(
  config: Mapping[str, Any], table: Table, tensor_sums: int, represented: int
) -> list[Collective]:
  """By the textbook: parameters gathered for each pass, gradients reduced, sums over `tensor`.

  The ring of a contrastive loss sends one side once round, and its gradients as well.

  Args:
    config: as a plain dict.
    table: what `sharding.plan` found for the mesh.
    tensor_sums: `Shapes.tensor_sums` of one micro-batch.
    represented: `represented_bytes`.
  """
  mesh, item = table.mesh, compute_itemsize(config)
  k = micro_batches(config)
  passes = 3 if config.get("grad_cache") else 2
  split, whole = 0, 0  # elements of parameters that fsdp splits, and of those it leaves whole
  for row in table.rows:
    if row.path.startswith("params/"):
      size = row.bytes_per_device // jnp.dtype(row.dtype).itemsize
      if f"'{axes.FSDP}'" in row.spec:
        split += size * mesh[axes.FSDP]
      else:
        whole += size
  out = []

  def add(kind: str, names: tuple[str, ...], size: int, count: int) -> None:
    names = tuple(n for n in names if mesh[n] > 1)
    group = math.prod(mesh[n] for n in names)
    if size and group > 1:
      out.append(Collective(kind, names, group, int(size), count))

  add("all-gather", (axes.FSDP,), split * item, passes * k)
  add("reduce-scatter", (axes.FSDP,), split * item, k)
  add("all-reduce", (axes.REPLICA,), split * item // mesh[axes.FSDP], k)
  add("all-reduce", axes.BATCH, whole * item, k)
  # Forward sums of row-parallel products, backward sums of the column-parallel ones before them.
  add("all-reduce", (axes.TENSOR,), tensor_sums, passes * k)
  shards = math.prod(mesh[n] for n in axes.BATCH)
  if represented and shards > 1:
    names = tuple(n for n in axes.BATCH if mesh[n] > 1)
    size = represented // shards
    out.append(Collective("collective-permute", names, 2, size, 2 * (shards - 1)))
  return out


def hbm_bytes(config: Mapping[str, Any], table: Table, params: int, activations: int) -> int:
  """Of one device: state read and written, activations written and read, parameters cast and read.

  A lower bound: what a kernel reads twice, and every buffer between two kernels, is on top.
  `params` is their number, `activations` the bytes of one micro-batch.
  """
  gathered = params * compute_itemsize(config) // table.mesh[axes.TENSOR]
  k = micro_batches(config)
  return 2 * sum(table.totals().values()) + k * (2 * activations + 3 * gathered)
