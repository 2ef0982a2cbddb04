"""Attention over tokens that are split over the mesh axis `sequence`, and the padding they need.

    all_gather  every device gathers keys and values and attends with its own queries
    ring        keys and values travel from device to device; softmax is done online, in float32
                (Liu et al. 2023, arXiv:2310.01889), so no device ever holds more than a tile of
                N / s x M / s scores, neither forward nor backward

The batch stays split over its axes, heads over `tensor` where they divide.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from big_vision_like import axes
from big_vision_like.config import UserError

IMPLS = ("ring", "all_gather")
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)  # finite: a row without keys has no NaN

Mask = jax.Array | None


def pad_tokens(x: jax.Array, mask: Mask = None) -> tuple[jax.Array, Mask]:
  """[B, N, D] -> [B, N', D] that divides by `sequence`, and a mask that hides the padding.

  Args:
    x: tokens. Where they divide, or are not split, both are returned as they are.
    mask: [B, 1, 1 or N, N] as for `attention`, or None.
  """
  n = x.shape[1]
  extra = -n % axes.sequence_shards()
  if not extra:
    return x, mask
  x = jnp.pad(x, ((0, 0), (0, extra), (0, 0)))
  if mask is None:
    return x, (jnp.arange(n + extra) < n)[None, None, None, :]
  # Padded queries look where the last one does: a row that sees nothing is nobody's business.
  mask = jnp.pad(mask, ((0, 0), (0, 0), (0, extra if mask.shape[2] == n else 0), (0, 0)), "edge")
  return x, jnp.pad(mask, ((0, 0), (0, 0), (0, 0), (0, extra)))


def cut_tokens(x: jax.Array, length: int) -> jax.Array:
  """What `pad_tokens` added is taken away."""
  return x if x.shape[1] == length else x[:, :length]


def attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  mask: Mask,
  causal: bool,
  impl: str,
  local: Callable[..., jax.Array],
) -> jax.Array:
  """`layers.attention.attention` of tokens that are split over `sequence`, by `impl`.

  `local` is attention on one device, which all_gather calls with its own queries and all keys.

  Raises:
    UserError: queries (ring: or keys) that do not divide by the axis.
  """
  shards, lengths = axes.sequence_shards(), {"queries": q.shape[1], "keys": k.shape[1]}
  for what, length in lengths.items():
    if length % shards and (what == "queries" or impl == "ring"):
      raise UserError(
        f"attention impl {impl!r}: {length} {what} do not divide by the mesh axis sequence = "
        f"{shards}; pad them to {length + -length % shards}"
      )
  if shards == 1:
    return local(q, k, v, mask=mask, causal=causal)
  tokens = (axes.BATCH, axes.SEQUENCE, axes.TENSOR)
  specs = [axes.partition(x.shape, *tokens) for x in (q, k, v)]
  args, gather = [q, k, v], not k.shape[1] % shards
  if mask is not None:
    whole = mask.shape[2] == 1
    args.append(mask)
    specs.append(
      axes.partition(mask.shape, axes.BATCH, axes.TENSOR, None if whole else axes.SEQUENCE)
    )

  def all_gather(q, k, v, mask=None):
    if gather:
      k, v = (lax.all_gather(x, axes.SEQUENCE, axis=1, tiled=True) for x in (k, v))
    if causal:
      rows = lax.axis_index(axes.SEQUENCE) * q.shape[1] + jnp.arange(q.shape[1])
      lower = (rows[:, None] >= jnp.arange(k.shape[1])[None, :])[None, None]
      mask = lower if mask is None else mask & lower
    return local(q, k, v, mask=mask)

  def ring(q, k, v, mask=None):
    return _ring(q, k, v, mask, causal)

  fn = dict(all_gather=all_gather, ring=ring)[impl]
  # Gathered keys are the same on all devices of the axis, which the check cannot know of kernels
  # that come from a library.
  shard = jax.shard_map(fn, in_specs=tuple(specs), out_specs=specs[0], check_vma=False)
  return shard(*args)


# ------------------------------------------------------------------------------------------- ring


def _pass_on(*xs: jax.Array) -> tuple[jax.Array, ...]:
  """To the next device of the ring."""
  n = axes.size(axes.SEQUENCE)
  return tuple(lax.ppermute(x, axes.SEQUENCE, [(i, (i + 1) % n) for i in range(n)]) for x in xs)


def _scores(
  q: jax.Array, k: jax.Array, mask: Mask, causal: bool, hop: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
  """q [B, n, H, d] against the keys [B, m, H, d] that came `hop` devices far.

  Returns float32 [B, H, n, m], `MASKED` where a query may not look, and where it may (None:
  everywhere).
  """
  n, m, size = q.shape[1], k.shape[1], axes.size(axes.SEQUENCE)
  s = jnp.einsum("BnHd,BmHd->BHnm", q, k, preferred_element_type=jnp.float32)
  s = s * q.shape[-1] ** -0.5
  here = lax.axis_index(axes.SEQUENCE)
  start = (here - hop) % size * m
  seen = None if mask is None else lax.dynamic_slice_in_dim(mask, start, m, axis=3)
  if causal:
    rows, columns = here * n + jnp.arange(n), start + jnp.arange(m)
    lower = (rows[:, None] >= columns[None, :])[None, None]
    seen = lower if seen is None else seen & lower
  return s if seen is None else jnp.where(seen, s, MASKED), seen


def _forward(q, k, v, mask, causal):
  """-> y [B, n, H, d], and the maximum and the sum of exponentials of each row, [B, H, n]."""

  def see(sums, k, v, hop):
    y, top, total = sums
    s, _ = _scores(q, k, mask, causal, hop)
    new = jnp.maximum(top, jnp.max(s, axis=-1))
    p, keep = jnp.exp(s - new[..., None]), jnp.exp(top - new)
    y = y * keep[..., None] + jnp.einsum(
      "BHnm,BmHd->BHnd", p.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    return y, new, total * keep + jnp.sum(p, axis=-1)

  def hop(carry, i):
    sums, k, v = carry
    return (see(sums, k, v, i), *_pass_on(k, v)), None

  b, n, h, d = q.shape
  start = tuple(
    jnp.full(shape, fill, jnp.float32)
    for shape, fill in (((b, h, n, d), 0.0), ((b, h, n), MASKED), ((b, h, n), 0.0))
  )
  last = axes.size(axes.SEQUENCE) - 1
  (sums, k, v), _ = lax.scan(hop, (start, k, v), jnp.arange(last))
  y, top, total = see(sums, k, v, last)
  return (y / total[..., None]).swapaxes(1, 2).astype(q.dtype), top, total


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _ring(q, k, v, mask, causal):
  return _forward(q, k, v, mask, causal)[0]


def _ring_fwd(q, k, v, mask, causal):
  y, top, total = _forward(q, k, v, mask, causal)
  return y, (q, k, v, mask, y, top, total)


def _ring_bwd(causal, saved, dy):
  """The scores are computed again, tile by tile; dk and dv travel with their keys, in float32."""
  q, k, v, mask, y, top, total = saved
  product = partial(jnp.einsum, preferred_element_type=jnp.float32)
  delta = product("BnHd,BnHd->BHn", dy.astype(jnp.float32), y.astype(jnp.float32))

  def see(dq, dk, dv, k, v, hop):
    s, seen = _scores(q, k, mask, causal, hop)
    p = jnp.exp(s - top[..., None]) / total[..., None]
    dv = dv + product("BHnm,BnHd->BmHd", p.astype(dy.dtype), dy)
    ds = p * (product("BnHd,BmHd->BHnm", dy, v) - delta[..., None]) * q.shape[-1] ** -0.5
    ds = (ds if seen is None else jnp.where(seen, ds, 0.0)).astype(q.dtype)
    dq = dq + product("BHnm,BmHd->BnHd", ds, k)
    return dq, dk + product("BHnm,BnHd->BmHd", ds, q), dv

  def hop(carry, i):
    dq, dk, dv, k, v = carry
    dq, dk, dv = see(dq, dk, dv, k, v, i)
    return (dq, *_pass_on(dk, dv, k, v)), None

  zeros = (jnp.zeros(x.shape, jnp.float32) for x in (q, k, v))
  last = axes.size(axes.SEQUENCE) - 1
  (dq, dk, dv, k, v), _ = lax.scan(hop, (*zeros, k, v), jnp.arange(last))
  dq, dk, dv = see(dq, dk, dv, k, v, last)
  dk, dv = _pass_on(dk, dv)
  return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


_ring.defvjp(_ring_fwd, _ring_bwd)
