"""Supervised pre-training on image labels: a backbone with a linear head on top.

    L = -1/B sum_i sum_k q_ik log softmax(f(x_i))_k       one class an image
    L = -1/B sum_i sum_k q_ik log sigmoid(f_ik) + (1 - q_ik) log sigmoid(-f_ik)    any number

q is the label, one-hot or after mixup and cutmix, smoothed. The recipe of the default config is
that of Beyer et al. (arXiv:2205.01580); sigmoids are for JFT and ImageNet-21k (arXiv:2106.04560).
"""

import jax
import jax.numpy as jnp

from big_vision_like import models
from big_vision_like.config import Config, UserError, number, unknown
from big_vision_like.losses import classification
from big_vision_like.method import Aux, Batch, Method, Metrics, Params
from big_vision_like.models import vit

LOSSES = {"softmax": classification.softmax_xent, "sigmoid": classification.sigmoid_xent}


def make(config: Config) -> Method:
  """`config.model` goes to `models.make` and has num_classes.

  `config.loss`: type (softmax or sigmoid), label_smoothing (0) and head_bias (0), the bias of the
  head at the start: -log K keeps K sigmoids from beginning with a loss of K log 2.
  """
  model, cfg = models.make(config.model), config.loss
  if model.num_classes is None:
    raise UserError("config.model.num_classes is missing; how many classes have the labels?")
  if cfg.type not in LOSSES:
    raise unknown("config.loss.type", cfg.type, list(LOSSES))
  xent, smoothing = LOSSES[cfg.type], number(cfg, "label_smoothing", 0.0)
  head_bias = cfg.get("head_bias", 0.0)

  def init(rng: jax.Array, batch: Batch) -> tuple[Params, Aux]:
    params, stats = models.init(model, rng, batch["image"])
    head = {**params["head"], "bias": params["head"]["bias"] + head_bias}
    return {**params, "head": head}, {"stats": stats}

  def apply(params: Params, aux: Aux, batch: Batch, **kwargs):
    return models.apply(model, params, aux["stats"], batch["image"], **kwargs)

  def loss(
    params: Params, aux: Aux, batch: Batch, rng: jax.Array, step: jax.Array
  ) -> tuple[jax.Array, tuple[Aux, Metrics]]:
    del step
    (scores, _), stats = apply(params, aux, batch, train=True, rng=rng)
    label = batch["label"]
    best = label if label.ndim == 1 else jnp.argmax(label, axis=1)
    metrics = {"accuracy": jnp.mean(jnp.argmax(scores, axis=1) == best)}
    return jnp.mean(xent(scores, label, smoothing)), ({**aux, "stats": stats}, metrics)

  def logits(params: Params, aux: Aux, batch: Batch, rng: jax.Array | None = None):
    """[B, H, W, C] -> [B, K]."""
    return apply(params, aux, batch)[0][0]

  def features(params: Params, aux: Aux, batch: Batch, rng: jax.Array | None = None):
    """Every named intermediate of the backbone."""
    return apply(params, aux, batch)[0][1]

  def image_embed(params: Params, aux: Aux, batch: Batch, rng: jax.Array | None = None):
    """[B, H, W, C] -> [B, D]: what the head sees."""
    return features(params, aux, batch)["pooled"]

  def loss_per_example(params: Params, aux: Aux, batch: Batch, rng: jax.Array | None = None):
    """[B]; without label smoothing."""
    return xent(logits(params, aux, batch), batch["label"])

  return Method(
    init=init,
    loss=loss,
    predict={
      "logits": logits,
      "image_embed": image_embed,
      "features": features,
      "loss_per_example": loss_per_example,
      **vit.predict(model, lambda params, aux: params),
    },
  )
