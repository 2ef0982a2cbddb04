"""SigLIP: sigmoid loss for language-image pre-training (Zhai et al., arXiv:2303.15343).

    L = -1/B sum_ij log sigmoid(z_ij (t x_i . y_j + b)),   z_ij = 1 where i = j, else -1

with t = exp(t'), t' = log 10 and b = -10 at the start (Sec. 3.2, Algorithm 1). The paper's equation
prints the sign inside 1 / (1 + e^{z(-t x.y + b)}); the pseudocode above is what its code runs.
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
    scale, bias = params["logit_scale"], params["logit_bias"]
    value = contrastive.sigmoid_loss(z["image"], z["text"], scale, bias, impl=impl)
    logits = contrastive.logit_statistics(z["image"], z["text"], scale, bias)
    return value, (aux, {"temperature": jnp.exp(scale), "bias": bias, **logits})

  def loss_per_example(params: Params, aux: Aux, batch: Batch, rng: jax.Array | None = None):
    """[B]: each image against the texts of its batch; rows whose `_mask` is False do not count."""
    zimg, ztxt, out = towers.embed(params, aux, batch)
    logits = jnp.exp(out["logit_scale"]) * zimg @ ztxt.T + out["logit_bias"]
    n = logits.shape[0]
    mask = batch.get("_mask", jnp.ones(n, bool))
    z = 2.0 * jnp.eye(n) - 1.0
    return jnp.sum(jax.nn.softplus(-z * logits) * mask[None, :], axis=1)

  return Method(
    init=towers.init,
    loss=joined(towers.represent, compare),
    predict={**towers.predict, "loss_per_example": loss_per_example},
    split=(towers.represent, compare),
  )
