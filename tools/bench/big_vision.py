"""The peer of the step rows: SigLIP as big_vision structures it, rewritten from its equations.

What differs from this package is what the rows measure: separate query, key and value projections
into [D, H, d] (`nn.MultiHeadDotProductAttention`), patches cut by a strided convolution, an
attention-pooling head that projects keys of every token, a dense sigmoid loss against a label
matrix, and an update made of a chain of optax transforms with the norms of gradients, parameters
and updates beside it. Same sizes, same numbers of parameters, same hyper-parameters.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

xavier = nn.initializers.xavier_uniform()


class Block(nn.Module):
  """Pre-norm block; returns (x, None) as `nn.scan` wants."""

  num_heads: int
  mlp_dim: int

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
    y = nn.LayerNorm()(x)
    x = x + nn.MultiHeadDotProductAttention(self.num_heads, kernel_init=xavier)(y, y)
    return x + Mlp(self.mlp_dim)(nn.LayerNorm()(x)), None


class Mlp(nn.Module):
  """Dense, GELU by tanh, Dense."""

  mlp_dim: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    init = dict(kernel_init=xavier, bias_init=nn.initializers.normal(1e-6))
    return nn.Dense(x.shape[-1], **init)(nn.gelu(nn.Dense(self.mlp_dim, **init)(x)))


class Encoder(nn.Module):
  """`depth` blocks and a LayerNorm; with `scan` one block of stacked parameters.

  `remat` keeps nothing but the inputs of the blocks for the backward pass.
  """

  depth: int
  num_heads: int
  mlp_dim: int
  scan: bool
  remat: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    block = nn.remat(Block, prevent_cse=not self.scan) if self.remat else Block
    if self.scan:
      stack = nn.scan(
        block, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.depth
      )
      x, _ = stack(self.num_heads, self.mlp_dim)(x)
    else:
      for _ in range(self.depth):
        x, _ = block(self.num_heads, self.mlp_dim)(x)
    return nn.LayerNorm()(x)


class SigLip(nn.Module):
  """Image and text towers of one size; image [B, H, W, 3], text [B, L] -> embeddings, t', b."""

  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  patch: int = 16
  vocab_size: int = 32_000
  scan: bool = False
  remat: bool = False

  @nn.compact
  def __call__(self, image: jax.Array, text: jax.Array) -> tuple[jax.Array, ...]:
    size = (self.depth, self.num_heads, self.mlp_dim, self.scan, self.remat)
    patch, init = (self.patch, self.patch), nn.initializers.normal(self.width**-0.5)
    x = nn.Conv(self.width, patch, strides=patch, padding="VALID")(image)
    x = x.reshape(x.shape[0], -1, self.width)
    x = Encoder(*size)(x + self.param("image_pos", init, (1, *x.shape[1:])))
    probe = self.param("probe", xavier, (1, 1, self.width))
    probe = jnp.tile(probe, (x.shape[0], 1, 1))
    x = nn.MultiHeadDotProductAttention(self.num_heads, kernel_init=xavier)(probe, x)
    x = (x + Mlp(self.mlp_dim)(nn.LayerNorm()(x)))[:, 0]

    y = nn.Embed(self.vocab_size, self.width, embedding_init=init)(text)
    y = Encoder(*size)(y + self.param("text_pos", init, (1, *y.shape[1:])))
    y = nn.Dense(self.width)(y[:, -1])

    unit = lambda z: z / (jnp.linalg.norm(z, axis=1, keepdims=True) + 1e-8)
    scale = self.param("t", nn.initializers.constant(jnp.log(10.0)), (1,))
    bias = self.param("b", nn.initializers.constant(-10.0), (1,))
    return unit(x), unit(y), scale, bias


def loss(model: SigLip, params: Any, batch: dict[str, jax.Array]) -> jax.Array:
  """-1/B sum_ij log sigmoid(z_ij (t x_i . y_j + b)), z a matrix of labels."""
  x, y, scale, bias = model.apply({"params": params}, batch["image"], batch["text"])
  logits = x @ y.T * jnp.exp(scale)[None] + bias[None]
  labels = 2 * jnp.eye(x.shape[0]) - 1
  return -jnp.mean(jnp.sum(jax.nn.log_sigmoid(labels * logits), axis=-1))


def optimizer(lr: Callable, weight_decay: float, clip_norm: float, **adam: Any):
  """Clipping, Adam, decay of the kernels, the schedule: one optax transform after the other."""
  kernels = lambda params: jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key == "kernel", params
  )
  return optax.chain(
    optax.clip_by_global_norm(clip_norm),
    optax.scale_by_adam(**adam),
    optax.add_decayed_weights(weight_decay, kernels),
    optax.scale_by_learning_rate(lr),
  )


def train_step(model: SigLip, tx: optax.GradientTransformation) -> Callable:
  """`((params, opt), batch) -> ((params, opt), measurements)`, jitted, the state donated."""

  def norm(tree: Any) -> jax.Array:
    return jnp.sqrt(sum(jnp.vdot(x, x) for x in jax.tree.leaves(tree)))

  def step(state, batch):
    params, opt = state
    value, grads = jax.value_and_grad(lambda p: loss(model, p, batch))(params)
    updates, opt = tx.update(grads, opt, params)
    params = optax.apply_updates(params, updates)
    measured = {"loss": value, "l2_grads": norm(grads), "l2_params": norm(params)}
    return (params, opt), measured | {"l2_updates": norm(updates)}

  return jax.jit(step, donate_argnums=0)
