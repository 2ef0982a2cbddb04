"""Sigmoid (SigLIP) and softmax (CLIP) losses over all pairs of the global batch.

Three ways to the same number:

    dense       the B x B logits of the global arrays; XLA decides how
    all_gather  every device gathers the texts (softmax: and the images) and does its rows
    ring        texts travel from device to device; only b x b blocks exist at a time

They are called inside jit on global arrays. `axis` names the mesh axes that carry the batch; those
that the ambient mesh lacks are left out, and without any, all three are the dense form.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from big_vision_like import axes
from big_vision_like.config import unknown

IMPLS = ("dense", "all_gather", "ring")

Embeddings = Float[Array, "B E"]
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
  impl: str = "dense",
  axis: str | tuple[str, ...] = axes.BATCH,
) -> Scalar:
  """-1/B sum_ij log sigmoid(z_ij (t x_i.y_j + b)), SigLIP (arXiv:2303.15343) Algorithm 1.

  Args:
    zimg, ztxt: [B, E], of length 1; any float type, products are accumulated in float32.
    logit_scale: t', with t = exp(t').
    logit_bias: b.
    impl: dense, all_gather or ring.
    axis: mesh axes over which the batch is split.

  Raises:
    UserError: an unknown `impl`.
  """

  def rows(x, y, shift, scale, bias):
    """Sum over a block of rows x and columns y; column `shift + i` is the pair of row i."""
    logits = jnp.exp(scale) * _dot(x, y) + bias
    # -log sigmoid(z l) = softplus(-z l), pair by pair: subtracting the positives' logits from the
    # sum of softplus(l) would be the same but cancels once they are large.
    return jnp.sum(jax.nn.softplus(jnp.where(_is_pair(logits, shift), -logits, logits)))

  def dense(x, y, scale, bias):
    return rows(x, y, 0, scale, bias) / x.shape[0]

  def all_gather(names, x, y, scale, bias):
    shift = lax.axis_index(names) * x.shape[0]
    return rows(x, lax.all_gather(y, names, tiled=True), shift, scale, bias)

  def ring(names, x, y, scale, bias):
    def hop(carry, i):
      total, y = carry
      # After i hops this device holds the texts of the i-th device before it.
      shift = jnp.where(i == 0, 0, -x.shape[0])
      total = total + rows(x, y, shift, scale, bias)
      return (total, _pass_on(y, names)), None

    start = lax.pcast(jnp.zeros(()), names, to="varying")
    (total, _), _ = lax.scan(hop, (start, y), jnp.arange(axes.size(names)))
    return total

  args = (zimg, ztxt, logit_scale, logit_bias)
  return _distributed(dense, {"all_gather": all_gather, "ring": ring}, impl, axis, args)


def softmax_loss(
  zimg: Embeddings,
  ztxt: Embeddings,
  logit_scale: Scalar,
  *,
  impl: str = "dense",
  axis: str | tuple[str, ...] = axes.BATCH,
) -> Scalar:
  """Mean of both cross-entropies of t x_i.y_j, CLIP (arXiv:2103.00020) Figure 3.

  Arguments and errors as in `sigmoid_loss`.
  """

  def dense(x, y, scale):
    logits = jnp.exp(scale) * _dot(x, y)
    both = jax.nn.logsumexp(logits, axis=0) + jax.nn.logsumexp(logits, axis=1)
    return jnp.mean(both / 2 - jnp.diagonal(logits))

  def one_way(x, y_all, scale, shift):
    logits = jnp.exp(scale) * _dot(x, y_all)
    positive = jnp.sum(jnp.where(_is_pair(logits, shift), logits, 0.0))
    return jnp.sum(jax.nn.logsumexp(logits, axis=1)) - positive

  def all_gather(names, x, y, scale):
    gather = lambda z: lax.all_gather(z, names, tiled=True)
    shift = lax.axis_index(names) * x.shape[0]
    return (one_way(x, gather(y), scale, shift) + one_way(y, gather(x), scale, shift)) / 2

  def ring(names, x, y, scale):
    """Rows keep their log-sum-exp; that of the columns travels with its text."""

    def hop(carry, i):
      lse_rows, lse_cols, positive, y = carry
      logits = jnp.exp(scale) * _dot(x, y)
      lse_rows = jnp.logaddexp(lse_rows, jax.nn.logsumexp(logits, axis=1))
      lse_cols = jnp.logaddexp(lse_cols, jax.nn.logsumexp(logits, axis=0))
      positive = positive + jnp.where(i == 0, jnp.trace(logits), 0.0)
      lse_cols, y = _pass_on(lse_cols, names), _pass_on(y, names)
      return (lse_rows, lse_cols, positive, y), None

    varying = lambda z: lax.pcast(z, names, to="varying")
    # The smallest finite number, not -inf: logaddexp has a NaN gradient at (-inf, -inf).
    empty = jnp.full((x.shape[0],), jnp.finfo(jnp.float32).min)
    start = (varying(empty), varying(empty), varying(jnp.zeros(())), y)
    (lse_rows, lse_cols, positive, _), _ = lax.scan(hop, start, jnp.arange(axes.size(names)))
    return jnp.sum(lse_rows + lse_cols) / 2 - positive

  args = (zimg, ztxt, logit_scale)
  return _distributed(dense, {"all_gather": all_gather, "ring": ring}, impl, axis, args)


def _dot(x: jax.Array, y: jax.Array) -> jax.Array:
  return jnp.einsum("iE,jE->ij", x, y, preferred_element_type=jnp.float32)


def _is_pair(logits: jax.Array, shift: jax.Array | int) -> jax.Array:
  """Booleans in the shape of `logits`: column `shift + i` of row i."""
  rows = lax.broadcasted_iota(jnp.int32, logits.shape, 0)
  columns = lax.broadcasted_iota(jnp.int32, logits.shape, 1)
  return columns == rows + shift


def _pass_on(x: jax.Array, names: tuple[str, ...]) -> jax.Array:
  """To the next device of the ring."""
  n = axes.size(names)
  return lax.ppermute(x, names, [(i, (i + 1) % n) for i in range(n)])


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


def _distributed(
  dense: Callable,
  by_device: dict[str, Callable],
  impl: str,
  axis: str | tuple[str, ...],
  args: tuple[jax.Array, ...],
) -> jax.Array:
  """Runs `dense`, or sums `by_device[impl]` over the devices and divides by the global batch."""
  check_impl(impl)
  names = axes.present(axis)
  if impl == "dense" or axes.size(names) == 1:
    return dense(*args)
  batch = args[0].shape[0]

  def local(*args):
    return lax.psum(by_device[impl](names, *args), names) / batch

  specs = (P(names), P(names), *[P()] * (len(args) - 2))
  return jax.shard_map(local, in_specs=specs, out_specs=P())(*args)
