"""CLIP: softmax over the pairs of a batch, both ways (Radford et al., arXiv:2103.00020).

    L = 1/2 [CE_rows(t x y^T, i = j) + CE_columns(t x y^T, i = j)],   t = exp(t')     (Figure 3)

with t' = log(1 / 0.07) at the start. t is kept at or below 100 (Sec. 2.5) by the optimizer:
`config.optim.project = [("logit_scale", "clip(0, 4.6052)")]`.
"""

import jax
import jax.numpy as jnp

from big_vision_like.config import Config
from big_vision_like.losses import contrastive
from big_vision_like.method import Aux, Batch, Method, Metrics, Params, joined
from big_vision_like.models import two_towers


def make(config: Config) -> Method:
  """`config.model` goes to `two_towers.make`; `config.loss.impl` is dense, all_gather or ring."""
  towers = two_towers.functions(two_towers.make(config.model))
  impl = contrastive.check_impl(config.loss.impl)

  def compare(
    params: Params, aux: Aux, z: Params, batch: Batch, rng: jax.Array, step: jax.Array
  ) -> tuple[jax.Array, tuple[Aux, Metrics]]:
    scale = params["logit_scale"]
    value = contrastive.softmax_loss(z["image"], z["text"], scale, impl=impl)
    logits = contrastive.logit_statistics(z["image"], z["text"], scale)
    return value, (aux, {"temperature": jnp.exp(scale), **logits})

  def loss_per_example(params: Params, aux: Aux, batch: Batch, rng: jax.Array | None = None):
    """[B]: each pair among those of its batch; rows whose `_mask` is False do not count."""
    zimg, ztxt, out = towers.embed(params, aux, batch)
    return contrastive.softmax_per_example(zimg, ztxt, out["logit_scale"], batch.get("_mask"))

  return Method(
    init=towers.init,
    loss=joined(towers.represent, compare),
    predict={**towers.predict, "loss_per_example": loss_per_example},
    split=(towers.represent, compare),
  )
