"""Sigmoid (SigLIP) and softmax (CLIP) losses over all pairs of the global batch.

Three ways to the same number:

    dense       the B x B logits of the global arrays; XLA decides how
    all_gather  every device gathers the texts (softmax: and the images) and does its rows
    ring        texts travel from device to device, tile by tile, and gather their gradients on the
                way (`losses/ring.py`): memory of one copy of the local texts, and no B x B array

They are called inside jit on global arrays. `axis` names the mesh axes that carry the batch; those
that the ambient mesh lacks are left out. Without any, all_gather is the dense form and ring one
device's loop over tiles.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from big_vision_like import axes
from big_vision_like.config import unknown
from big_vision_like.losses import ring
from big_vision_like.losses.ring import ADD, LOGADDEXP

IMPLS = ("dense", "all_gather", "ring")

Embeddings = Float[Array, "B E"]
Labels = Int[Array, "B"]
Scalar = Float[Array, ""]


def check_impl(impl: str) -> str:
  """`impl`, or a `UserError` that names the known ones."""
  if impl not in IMPLS:
    raise unknown("config.loss.impl", impl, IMPLS)
  return impl


def sigmoid_loss(
  zimg: Embeddings,
  ztxt: Embeddings,
  logit_scale: Scalar,
  logit_bias: Scalar,
  *,
  labels: Labels | None = None,
  impl: str = "dense",
  axis: str | tuple[str, ...] = axes.BATCH,
  tile: int | None = None,
) -> Scalar:
  """-1/B sum_ij log sigmoid(z_ij (t x_i.y_j + b)), SigLIP (arXiv:2303.15343) Algorithm 1.

  Args:
    zimg, ztxt: [B, E], of length 1; any float type, products are accumulated in float32.
    logit_scale: t', with t = exp(t').
    logit_bias: b.
    labels: z_ij = 1 where labels i and j are equal, else -1; None: where i = j.
    impl: dense, all_gather or ring.
    axis: mesh axes over which the batch is split.
    tile: rows and columns of a tile of the ring; None: `ring.TILE` of the backend.

  Raises:
    UserError: an unknown `impl`.
  """
  names, ids = _devices(impl, axis), _ids(labels, zimg)
  if impl == "ring":
    return _ring_sigmoid(zimg, ztxt, logit_scale, logit_bias, ids, names, tile)

  def rows(x, y, ids_x, ids_y, scale, bias):
    logits = jnp.exp(scale) * _dot(x, y) + bias
    # -log sigmoid(z l) = softplus(-z l), pair by pair: subtracting the positives' logits from the
    # sum of softplus(l) would be the same but cancels once they are large.
    return jnp.sum(jax.nn.softplus(jnp.where(_same(ids_x, ids_y), -logits, logits)), axis=1)

  if impl == "dense":
    return jnp.mean(rows(zimg, ztxt, ids, ids, logit_scale, logit_bias))

  def local(x, y, ids, scale, bias):
    total = jnp.sum(rows(x, _gather(y, names), ids, _gather(ids, names), scale, bias))
    return _sum_devices(total, names) / zimg.shape[0]

  args = (zimg, ztxt, ids, logit_scale, logit_bias)
  return _on_devices(local, names, "bbb__", "_")(*args)


def softmax_loss(
  zimg: Embeddings,
  ztxt: Embeddings,
  logit_scale: Scalar,
  *,
  labels: Labels | None = None,
  hardness: float = 0.0,
  impl: str = "dense",
  axis: str | tuple[str, ...] = axes.BATCH,
  tile: int | None = None,
) -> Scalar:
  """Mean of both cross-entropies of l_ij = t x_i.y_j, CLIP (arXiv:2103.00020) Figure 3.

      L = 1/2B sum_i [log D_i - mean_{j in P(i)} l_ij] + the same over columns
      D_i = sum_{j in P(i)} e^l_ij + sum_{j not in P(i)} w_ij e^l_ij

  P(i) are the columns of the same label, as in UniCL (arXiv:2204.03610, Sec. 3.2). The weights of
  negatives are 1, or with `hardness` beta those of HN-NCE (arXiv:2301.02280, Sec. 3.3; after
  arXiv:2010.04592): w_ij = n_i e^{beta l_ij} / sum_k e^{beta l_ik} over the n_i negatives of i;
  they have a gradient too. Further arguments and errors as in `sigmoid_loss`.
  """
  names, ids = _devices(impl, axis), _ids(labels, zimg)
  if impl == "ring":
    return _ring_softmax(zimg, ztxt, logit_scale, ids, hardness, names, tile)

  def one_way(x, y, ids_x, ids_y, scale):
    logits, positive = jnp.exp(scale) * _dot(x, y), _same(ids_x, ids_y)
    return _cross_entropy(_reduce(logits, positive, hardness), y.shape[0], hardness)

  if impl == "dense":
    both = one_way(zimg, ztxt, ids, ids, logit_scale) + one_way(ztxt, zimg, ids, ids, logit_scale)
    return jnp.mean(both) / 2

  def local(x, y, ids, scale):
    all_x, all_y, all_ids = (_gather(z, names) for z in (x, y, ids))
    both = one_way(x, all_y, ids, all_ids, scale) + one_way(y, all_x, ids, all_ids, scale)
    return _sum_devices(jnp.sum(both), names) / (2 * zimg.shape[0])

  return _on_devices(local, names, "bbb_", "_")(zimg, ztxt, ids, logit_scale)


def softmax_per_example(
  zimg: Embeddings,
  ztxt: Embeddings,
  logit_scale: Scalar,
  mask: Bool[Array, "B"] | None = None,
) -> Float[Array, "B"]:
  """Each pair's share of the dense softmax loss; rows whose `mask` is False are nobody's negatives.

  For evaluation: the mean over all rows is the loss.
  """
  logits = jnp.exp(logit_scale) * zimg @ ztxt.T
  mask = jnp.ones(logits.shape[0], bool) if mask is None else mask
  lse = lambda z: jax.nn.logsumexp(jnp.where(mask[None, :], z, -jnp.inf), axis=1)
  return (lse(logits) + lse(logits.T)) / 2 - jnp.diagonal(logits)


def logit_statistics(
  zimg: Embeddings, ztxt: Embeddings, logit_scale: Scalar, logit_bias: Scalar | float = 0.0
) -> dict[str, Scalar]:
  """Mean logit of the pairs (i, i) and of all others, for logs: no gradient, no B x B array.

  The sum of all logits is the product of the summed embeddings.
  """
  x, y = (lax.stop_gradient(z).astype(jnp.float32) for z in (zimg, ztxt))
  scale, bias = jnp.exp(lax.stop_gradient(logit_scale)), lax.stop_gradient(logit_bias)
  n = x.shape[0]
  positive = jnp.sum(x * y)
  negative = jnp.sum(jnp.sum(x, axis=0) * jnp.sum(y, axis=0)) - positive
  return {
    "positive_logit": scale * positive / n + bias,
    "negative_logit": scale * negative / max(float(n) * (n - 1), 1.0) + bias,
  }


# ------------------------------------------------------------------------------------ ring sigmoid


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _ring_sigmoid(x, y, scale, bias, ids, names, tile):
  """Without gradients: what evaluation runs."""

  def local(x, y, scale, bias, ids):
    def shares(row, column):
      logits = jnp.exp(scale) * _dot(row["x"], column["y"]) + bias
      value, _ = _softplus(logits, _same(row["id"], column["id"]))
      return {"loss": jnp.sum(value, axis=1)}, {}

    columns = {"y": y, "id": ids}
    sums, _ = ring.all_pairs(
      shares, {"x": x, "id": ids}, columns, {"loss": ADD}, {}, names=names, tile=tile
    )
    return _sum_devices(jnp.sum(sums["loss"]), names) / batch

  batch = x.shape[0]
  return _on_devices(local, names, "bb__b", "_")(x, y, scale, bias, ids)


def _ring_sigmoid_forward(x, y, scale, bias, ids, names, tile):
  """Value and all four gradients in one go round: logits are computed once, never kept."""

  def local(x, y, scale, bias, ids):
    def shares(row, column):
      x, y = row["x"], column["y"]
      logits = jnp.exp(scale) * _dot(x, y) + bias
      value, slope = _softplus(logits, _same(row["id"], column["id"]))
      slope_y = (slope * (jnp.exp(scale) / batch)).astype(x.dtype)
      of_row = {
        "loss": jnp.sum(value, axis=1),
        "bias": jnp.sum(slope, axis=1),
        "dx": _matmul(slope_y, y),
      }
      return of_row, {"dy": _matmul(slope_y.T, x)}

    rows, columns = {"x": x, "id": ids}, {"y": y, "id": ids}
    row_sums = {"loss": ADD, "bias": ADD, "dx": ADD}
    sums, of_y = ring.all_pairs(
      shares, rows, columns, row_sums, {"dy": ADD}, names=names, tile=tile
    )
    dx, dy = sums["dx"], of_y["dy"]
    # sum_ij slope_ij t x_i.y_j: what the gradient of the rows has already added up.
    dscale = jnp.sum(jnp.sum(dx * x.astype(jnp.float32), axis=1))
    loss, dbias = jnp.sum(sums["loss"]) / batch, jnp.sum(sums["bias"]) / batch
    loss, dscale, dbias = (_sum_devices(z, names) for z in (loss, dscale, dbias))
    return loss, (dx.astype(x.dtype), dy.astype(y.dtype), dscale, dbias)

  batch = x.shape[0]
  return _on_devices(local, names, "bb__b", ("_", ("b", "b", "_", "_")))(x, y, scale, bias, ids)


def _ring_sigmoid_backward(names, tile, gradients, cotangent):
  return *((cotangent * g).astype(g.dtype) for g in gradients), None


_ring_sigmoid.defvjp(_ring_sigmoid_forward, _ring_sigmoid_backward)


def _softplus(logits: jax.Array, positive: jax.Array) -> tuple[jax.Array, jax.Array]:
  """softplus(-z l), z = 1 where `positive` else -1, and its derivative, from one exponential."""
  against = jnp.where(positive, -logits, logits)
  e = jnp.exp(-jnp.abs(against))
  value = jnp.maximum(against, 0.0) + jnp.log1p(e)
  slope = jnp.where(against >= 0, 1.0, e) / (1.0 + e)
  return value, jnp.where(positive, -slope, slope)


# ------------------------------------------------------------------------------------ ring softmax


def _terms(positive: jax.Array, hardness: float) -> dict[str, tuple[float, jax.Array | None]]:
  """The log-sum-exps that D_i is made of: name -> (factor of the logits, which pairs)."""
  if not hardness:
    return {"all": (1.0, None)}
  return {
    "own": (1.0, positive),
    "hard": (1.0 + hardness, ~positive),
    "soft": (hardness, ~positive),
  }


def _only(pairs: jax.Array | None, logits: jax.Array) -> jax.Array:
  return logits if pairs is None else jnp.where(pairs, logits, LOGADDEXP.neutral)


def _reduce(logits: jax.Array, positive: jax.Array, hardness: float) -> dict[str, jax.Array]:
  """What the loss of a row needs to know of a block of logits: sums over its columns."""
  out = {
    name: jax.nn.logsumexp(_only(pairs, factor * logits), axis=1)
    for name, (factor, pairs) in _terms(positive, hardness).items()
  }
  out["sum"] = jnp.sum(jnp.where(positive, logits, 0.0), axis=1)
  out["count"] = jnp.sum(positive, axis=1, dtype=jnp.float32)
  return out


def _sums(hardness: float) -> dict[str, ring.Monoid]:
  """How the results of `_reduce` are put together."""
  lse = ("own", "hard", "soft") if hardness else ("all",)
  return dict.fromkeys(lse, LOGADDEXP) | {"sum": ADD, "count": ADD}


def _cross_entropy(sums: dict[str, jax.Array], columns: int, hardness: float) -> jax.Array:
  """log D_i - mean of the positives' logits, a row at a time."""
  if hardness:
    negatives = jnp.maximum(columns - sums["count"], 1.0)
    log_d = jnp.logaddexp(sums["own"], jnp.log(negatives) + sums["hard"] - sums["soft"])
  else:
    log_d = sums["all"]
  return log_d - sums["sum"] / sums["count"]


def _pull_back(
  logits: jax.Array,
  positive: jax.Array,
  sums: dict[str, jax.Array],
  cotangents: dict[str, jax.Array],
  hardness: float,
) -> jax.Array:
  """Gradient of the logits of a tile, from `_reduce` of whole rows and its cotangents."""
  slope = jnp.where(positive, cotangents["sum"][:, None], 0.0)
  for name, (factor, pairs) in _terms(positive, hardness).items():
    share = jnp.exp(_only(pairs, factor * logits - sums[name][:, None]))
    slope += factor * cotangents[name][:, None] * share
  return slope


def _ring_softmax_sums(x, y, scale, ids, hardness, names, tile):
  """The loss and, of rows and columns, the sums it is made of: one go round, no gradients."""

  def local(x, y, scale, ids):
    def shares(row, column):
      logits = jnp.exp(scale) * _dot(row["x"], column["y"])
      positive = _same(row["id"], column["id"])
      return _reduce(logits, positive, hardness), _reduce(logits.T, positive.T, hardness)

    rows, columns, how = {"x": x, "id": ids}, {"y": y, "id": ids}, _sums(hardness)
    sums = ring.all_pairs(shares, rows, columns, how, how, names=names, tile=tile)
    total = sum(jnp.sum(_cross_entropy(s, batch, hardness)) for s in sums)
    return _sum_devices(total, names) / (2 * batch), sums

  batch = x.shape[0]
  return _on_devices(local, names, "bb_b", ("_", ("b", "b")))(x, y, scale, ids)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _ring_softmax(x, y, scale, ids, hardness, names, tile):
  return _ring_softmax_sums(x, y, scale, ids, hardness, names, tile)[0]


def _ring_softmax_forward(x, y, scale, ids, hardness, names, tile):
  loss, sums = _ring_softmax_sums(x, y, scale, ids, hardness, names, tile)
  return loss, (x, y, scale, ids, sums)


def _ring_softmax_backward(hardness, names, tile, saved, cotangent):
  """A second go round: the share of a pair is known only once its row and column are summed."""

  def local(x, y, scale, ids, sums, cotangent):
    loss = lambda s: jnp.sum(_cross_entropy(s, batch, hardness)) * cotangent / (2 * batch)
    rows, columns = (
      {"z": z, "id": ids, "sums": s, "cotangents": jax.grad(loss)(s)} for z, s in zip((x, y), sums)
    )

    def shares(row, column):
      logits = jnp.exp(scale) * _dot(row["z"], column["z"])
      positive = _same(row["id"], column["id"])
      slope = _pull_back(logits, positive, row["sums"], row["cotangents"], hardness)
      slope += _pull_back(logits.T, positive.T, column["sums"], column["cotangents"], hardness).T
      slope = (slope * jnp.exp(scale)).astype(x.dtype)
      return {"dz": _matmul(slope, column["z"])}, {"dz": _matmul(slope.T, row["z"])}

    how = {"dz": ADD}
    (of_x, of_y) = ring.all_pairs(shares, rows, columns, how, how, names=names, tile=tile)
    dx, dy = of_x["dz"], of_y["dz"]
    dscale = _sum_devices(jnp.sum(jnp.sum(dx * x.astype(jnp.float32), axis=1)), names)
    return dx.astype(x.dtype), dy.astype(y.dtype), dscale

  x, y, scale, ids, sums = saved
  batch = x.shape[0]
  run = _on_devices(local, names, "bb_bb_", ("b", "b", "_"))
  return *run(x, y, scale, ids, sums, cotangent), None


_ring_softmax.defvjp(_ring_softmax_forward, _ring_softmax_backward)


# ------------------------------------------------------------------------------------------ shared


def _dot(x: jax.Array, y: jax.Array) -> jax.Array:
  return jnp.einsum("iE,jE->ij", x, y, preferred_element_type=jnp.float32)


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def _ids(labels: jax.Array | None, z: jax.Array) -> jax.Array:
  """int32 [B]; rows and columns of the same number are positives."""
  return jnp.arange(z.shape[0], dtype=jnp.int32) if labels is None else labels.astype(jnp.int32)


def _same(ids_x: jax.Array, ids_y: jax.Array) -> jax.Array:
  return ids_x[:, None] == ids_y[None, :]


def _devices(impl: str, axis: str | tuple[str, ...]) -> tuple[str, ...]:
  check_impl(impl)
  return axes.present(axis)


def _on_devices(fn: Callable, names: tuple[str, ...], inputs, outputs) -> Callable:
  """`fn` on every device; "b" marks arrays split over `names`, "_" those that all devices share."""
  if not names:
    return fn
  spec = lambda marks: jax.tree.map(lambda mark: {"b": P(names), "_": P()}[mark], marks)
  return jax.shard_map(fn, in_specs=spec(tuple(inputs)), out_specs=spec(outputs))


def _sum_devices(x: jax.Array, names: tuple[str, ...]) -> jax.Array:
  return lax.psum(x, names) if names else x


def _gather(z: jax.Array, names: tuple[str, ...]) -> jax.Array:
  return lax.all_gather(z, names, tiled=True) if names else z
