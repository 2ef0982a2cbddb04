"""SigLIP: sigmoid loss for language-image pre-training (Zhai et al., arXiv:2303.15343).

    L = -1/B sum_ij log sigmoid(z_ij (t x_i . y_j + b)),   z_ij = 1 where i = j, else -1

with t = exp(t'), t' = log 10 and b = -10 at the start (Sec. 3.2, Algorithm 1). The paper's equation
prints the sign inside 1 / (1 + e^{z(-t x.y + b)}); the pseudocode above is what its code runs.
"""

import jax
import jax.numpy as jnp

from big_vision_like.config import Config
from big_vision_like.losses import contrastive
from big_vision_like.method import Aux, Batch, Method, Metrics, Params
from big_vision_like.models import two_towers


def make(config: Config) -> Method:
  """`config.model` goes to `two_towers.make`; `config.loss.impl` is dense, all_gather or ring."""
  model = two_towers.make(config.model)
  impl = contrastive.check_impl(config.loss.impl)

  def init(rng: jax.Array, batch: Batch) -> tuple[Params, Aux]:
    return model.init(rng, batch["image"], batch["text"])["params"], {}

  def towers(params: Params, batch: Batch, **kwargs):
    return model.apply({"params": params}, batch.get("image"), batch.get("text"), **kwargs)

  def loss(
    params: Params, aux: Aux, batch: Batch, rng: jax.Array, step: jax.Array
  ) -> tuple[jax.Array, tuple[Aux, Metrics]]:
    del step
    zimg, ztxt, out = towers(params, batch, train=True, rngs={"dropout": rng})
    value = contrastive.sigmoid_loss(zimg, ztxt, out["logit_scale"], out["logit_bias"], impl=impl)
    metrics = {"temperature": jnp.exp(out["logit_scale"]), "bias": out["logit_bias"]}
    return value, (aux, metrics)

  def image_embed(params: Params, aux: Aux, batch: Batch, rng: jax.Array | None = None):
    """[B, H, W, C] -> [B, E], l2-normalised."""
    return towers(params, {"image": batch["image"]})[0]

  def text_embed(params: Params, aux: Aux, batch: Batch, rng: jax.Array | None = None):
    """[B, L] int32 -> [B, E], l2-normalised."""
    return towers(params, {"text": batch["text"]})[1]

  def loss_per_example(params: Params, aux: Aux, batch: Batch, rng: jax.Array | None = None):
    """[B]: each image against the texts of its batch; rows whose `_mask` is False do not count."""
    zimg, ztxt, out = towers(params, batch)
    logits = jnp.exp(out["logit_scale"]) * zimg @ ztxt.T + out["logit_bias"]
    n = logits.shape[0]
    mask = batch.get("_mask", jnp.ones(n, bool))
    z = 2.0 * jnp.eye(n) - 1.0
    return jnp.sum(jax.nn.softplus(-z * logits) * mask[None, :], axis=1)

  def features(params: Params, aux: Aux, batch: Batch, rng: jax.Array | None = None):
    """Every named intermediate of both towers."""
    return towers(params, batch)[2]

  return Method(
    init=init,
    loss=loss,
    predict={
      "image_embed": image_embed,
      "text_embed": text_embed,
      "loss_per_example": loss_per_example,
      "features": features,
    },
  )
