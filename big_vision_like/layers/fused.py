"""Dense, LayerNorm, GELU and attention with derivatives written by hand, for float32 on CPUs.

Values and parameters are those of flax and jax; what differs is how many passes over memory XLA:CPU
makes of them, where nothing but products is fused well:

  linear      tokens are one axis, so the gradient of the kernel is x^T g as it stands; of a product
              over [B, N, D] XLA copies g (three times, with the biases) to get its transpose
  layer_norm  the gradient of x from x, mean and 1 / std, with two sums over the width as products
  gelu        the tanh is computed again: cheaper than to write and read it
  attention   exp(scores) is kept unnormalised; [B, H, N, d] all the way, and gradients of keys and
              values with the small operand transposed, not the N x N one

Elsewhere `usable` says no, and flax's and jax's own forms are taken: compilers for accelerators do
the same fusions by themselves, and the layouts they choose are not to be fixed here.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from big_vision_like import axes


def usable(*arrays: jax.Array | None) -> bool:
  """Whether to take the forms of this file: float32, a CPU, tokens not split over `sequence`."""
  is_float32 = all(x.dtype == jnp.float32 for x in arrays if x is not None)
  return is_float32 and axes.platform() == "cpu" and axes.size(axes.SEQUENCE) == 1


# ------------------------------------------------------------------------------------------ linear


@jax.custom_vjp
def linear(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
  """x [..., D] @ kernel [D, F] + bias [F] -> [..., F]."""
  return _linear(x, kernel, bias)


def _linear(x, kernel, bias):
  y = _rows(x) @ kernel
  if bias is not None:
    y = y + bias[None]
  return y.reshape(*x.shape[:-1], -1)


def _linear_fwd(x, kernel, bias):
  # Not `linear` itself: remat policies would not see the product inside of it.
  return _linear(x, kernel, bias), (x, kernel, bias is not None)


def _linear_bwd(saved, g):
  x, kernel, has_bias = saved
  rows, g_rows = _rows(x), _rows(g)
  dx = lax.dot_general(g_rows, kernel, (((1,), (1,)), ((), ())))
  dkernel = lax.dot_general(rows, g_rows, (((0,), (0,)), ((), ())))
  return dx.reshape(x.shape), dkernel, jnp.sum(g_rows, axis=0) if has_bias else None


def _rows(x: jax.Array) -> jax.Array:
  return x.reshape(-1, x.shape[-1])


linear.defvjp(_linear_fwd, _linear_bwd)


class Dense(nn.Dense):
  """`nn.Dense`, parameters kernel [D, F] and bias [F], through `linear` where that is usable."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., D] -> [..., F]."""
    if not (usable(x) and self.dtype in (None, jnp.float32)):
      return super().__call__(x)
    kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), self.param_dtype)
    bias = None
    if self.use_bias:
      bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
    return linear(x, kernel, bias)


# -------------------------------------------------------------------------------------- layer norm


@jax.custom_vjp
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
  """(x - mean) / sqrt(var + eps) * scale + bias over the last axis; x [..., D], scale, bias [D]."""
  return _layer_norm_fwd(x, scale, bias, eps)[0]


def _layer_norm_fwd(x, scale, bias, eps):
  rows = _rows(x)
  mean = jnp.mean(rows, axis=1, keepdims=True)
  var = jnp.maximum(0.0, jnp.mean(rows * rows, axis=1, keepdims=True) - mean * mean)
  rstd = lax.rsqrt(var + eps)
  y = (rows - mean) * (rstd * scale[None]) + bias[None]
  return y.reshape(x.shape), (x, scale, mean, rstd)


def _layer_norm_bwd(saved, g):
  x, scale, mean, rstd = saved
  g, normed, width = _rows(g), (_rows(x) - mean) * rstd, x.shape[-1]
  g_normed = g * normed
  mean_g = (g @ scale[:, None]) / width
  mean_g_normed = (g_normed @ scale[:, None]) / width
  dx = rstd * (g * scale[None] - mean_g - normed * mean_g_normed)
  return dx.reshape(x.shape), jnp.sum(g_normed, axis=0), jnp.sum(g, axis=0), None


layer_norm.defvjp(_layer_norm_fwd, _layer_norm_bwd)


class LayerNorm(nn.LayerNorm):
  """`nn.LayerNorm`, parameters scale and bias [D], through `layer_norm` where that is usable."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., D] -> [..., D], statistics over the last axis."""
    if not (usable(x) and self.dtype in (None, jnp.float32)):
      return super().__call__(x)
    scale = self.param("scale", self.scale_init, (x.shape[-1],), self.param_dtype)
    bias = self.param("bias", self.bias_init, (x.shape[-1],), self.param_dtype)
    return layer_norm(x, scale, bias, self.epsilon)


# -------------------------------------------------------------------------------------------- gelu

_ROOT, _CUBIC = 0.7978845608028654, 0.044715  # sqrt(2 / pi)


@jax.custom_vjp
def gelu_tanh(x: jax.Array) -> jax.Array:
  """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
  return nn.gelu(x, approximate=True)


def _gelu_tanh_bwd(x, g):
  square = x * x
  tanh = jnp.tanh(_ROOT * (x + _CUBIC * square * x))
  slope = _ROOT * (1.0 + 3.0 * _CUBIC * square)
  return (g * (0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * slope),)


gelu_tanh.defvjp(lambda x: (nn.gelu(x), x), _gelu_tanh_bwd)


# --------------------------------------------------------------------------------------- attention


@jax.custom_vjp
def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """softmax(q k^T / sqrt(d)) v; q [B, N, H, d], k and v [B, M, H, d] -> [B, N, H, d]."""
  return _attention_fwd(q, k, v)[0]


def _attention_fwd(q, k, v):
  q, k, v = (x.swapaxes(1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))
  scores = jnp.einsum("bhnd,bhmd->bhnm", q, k)
  weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
  total = jnp.sum(weights, axis=-1, keepdims=True)
  y = jnp.einsum("bhnm,bhmd->bhnd", weights, v) / total
  return y.swapaxes(1, 2), (q, k, v, y, weights, total)


def _attention_bwd(saved, g):
  q, k, v, y, weights, total = saved
  turned = lambda x: x.swapaxes(2, 3)
  g = g.swapaxes(1, 2) / total
  dv = jnp.einsum("bhdn,bhnm->bhdm", turned(g), weights)
  dweights = jnp.einsum("bhnd,bhmd->bhnm", g, v)
  dscores = weights * (dweights - jnp.sum(g * y, axis=-1, keepdims=True))
  dq = jnp.einsum("bhnm,bhmd->bhnd", dscores, k) * q.shape[-1] ** -0.5
  dk = jnp.einsum("bhdn,bhnm->bhdm", turned(q), dscores)
  return dq.swapaxes(1, 2), turned(dk).swapaxes(1, 2), turned(dv).swapaxes(1, 2)


attention.defvjp(_attention_fwd, _attention_bwd)
