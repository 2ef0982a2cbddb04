"""Errors on the hidden patches of masked image modelling."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Patches = Float[Array, "B N P"]
Mask = Float[Array, "B N"]


def normalize_patches(
  patches: Patches, eps: float = 1e-6
) -> tuple[Patches, Float[Array, "B N 1"], Float[Array, "B N 1"]]:
  """(x - mean) / std of each patch, its mean and its std = sqrt(var + eps), float32.

  The variance is unbiased (divided by P - 1), as in the published code of MAE (arXiv:2111.06377).
  """
  x = patches.astype(jnp.float32)
  mean = jnp.mean(x, axis=-1, keepdims=True)
  std = jnp.sqrt(jnp.var(x, axis=-1, keepdims=True, ddof=1) + eps)
  return (x - mean) / std, mean, std


def masked_mse_per_example(pred: Patches, target: Patches, mask: Mask) -> Float[Array, "B"]:
  """Squared error, mean over the pixels of a patch, then over the patches where `mask` is 1."""
  error = jnp.mean(jnp.square(pred.astype(jnp.float32) - target.astype(jnp.float32)), axis=-1)
  return jnp.sum(error * mask, axis=1) / jnp.sum(mask, axis=1)


def masked_mse(pred: Patches, target: Patches, mask: Mask) -> Float[Array, ""]:
  """Mean over the batch of `masked_mse_per_example`, for masks that hide equally many patches."""
  return jnp.mean(masked_mse_per_example(pred, target, mask))


def masked_cross_entropy(
  logits: Float[Array, "B N K"], labels: Int[Array, "B N"], mask: Mask
) -> Float[Array, ""]:
  """Cross entropy of the label of each place, mean over all places of the batch where `mask` is 1.

  The loss of BERT (arXiv:1810.04805) and, with visual tokens as labels, of BEiT (arXiv:2106.08254).
  Labels where `mask` is 0 may be any valid class. 0 where the mask hides nothing.
  """
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
  error = -jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]
  return jnp.sum(error * mask) / jnp.maximum(jnp.sum(mask), 1)
