"""CoCa: contrastive captioners are image-text foundation models (Yu et al., arXiv:2205.01917).

    L = lambda_con L_con + lambda_cap L_cap                                                  (Eq. 4)
    L_con = -1/N (sum_i log softmax_j(x_i.y_j / sigma)_i + sum_i log softmax_j(y_i.x_j / sigma)_i)
    L_cap = -sum_t log P(y_t | y_<t, x)                                                      (Eq. 3)

with lambda_con = 1 and lambda_cap = 2. The equations print sums; here, as in CLIP's code and in
open_clip's CoCa, L_con is the mean of both directions and L_cap the mean over the batch's tokens.
"""

import jax
import jax.numpy as jnp

from big_vision_like.config import Config
from big_vision_like.generation import autoregressive
from big_vision_like.losses import captioning, contrastive
from big_vision_like.method import Aux, Batch, Method, Metrics, Params, joined
from big_vision_like.models import coca


def make(config: Config) -> Method:
  """`config.model` goes to `models.coca.make`; `config.loss` has impl (dense, all_gather or ring),
  contrastive_weight (1) and caption_weight (2).
  """
  model = coca.make(config.model)
  impl = contrastive.check_impl(config.loss.impl)
  weight_con = config.loss.get("contrastive_weight", 1.0)
  weight_cap = config.loss.get("caption_weight", 2.0)

  def init(rng: jax.Array, batch: Batch) -> tuple[Params, Aux]:
    return model.init(rng, batch["image"], batch["text"])["params"], {}

  def represent(params: Params, aux: Aux, batch: Batch, rng: jax.Array) -> dict[str, jax.Array]:
    text = batch["text"]
    logits, out = model.apply(
      {"params": params}, batch["image"], text, train=True, rngs={"dropout": rng}
    )
    return {
      "image": out["image/embed"],
      "text": out["text/embed"],
      "nll": captioning.token_nll(logits, text),
      "right": (jnp.argmax(logits, axis=-1) == text).astype(jnp.float32),
    }

  def compare(
    params: Params, aux: Aux, z: Params, batch: Batch, rng: jax.Array, step: jax.Array
  ) -> tuple[jax.Array, tuple[Aux, Metrics]]:
    scale, real = params["logit_scale"], batch["text"] != model.pad_id
    con = contrastive.softmax_loss(z["image"], z["text"], scale, impl=impl)
    cap = captioning.mean_over_tokens(z["nll"], real)
    metrics = {
      "contrastive": con,
      "caption": cap,
      "token_accuracy": captioning.mean_over_tokens(z["right"], real),
      "temperature": jnp.exp(-scale),  # sigma
      **contrastive.logit_statistics(z["image"], z["text"], scale),
    }
    return weight_con * con + weight_cap * cap, (aux, metrics)

  def image_embed(params: Params, aux: Aux, batch: Batch, rng: jax.Array | None = None):
    """[B, H, W, C] -> [B, E], l2-normalised."""
    return model.apply({"params": params}, batch["image"], method="encode_image")["embed"]

  def text_embed(params: Params, aux: Aux, batch: Batch, rng: jax.Array | None = None):
    """[B, L] int32 -> [B, E], l2-normalised."""
    return model.apply({"params": params}, batch["text"], method="encode_text")["embed"]

  def generate(
    params: Params,
    aux: Aux,
    batch: Batch,
    rng: jax.Array | None = None,
    *,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    beams: int = 1,
  ) -> jax.Array:
    """Captions of [B, H, W, C]: int32 [B, max_new_tokens], padded after the end-of-text.

    Greedy with temperature 0, else sampled with `rng`; beam search with `beams` above 1.
    """
    length = min(max_new_tokens or model.max_len, model.max_len)
    apply = lambda *args, method: model.apply({"params": params}, *args, method=method)
    cache = apply(batch["image"], length, method="new_cache")
    step_fn = lambda tokens, cache, position: apply(tokens, cache, position, method="decode")
    start = jnp.full(batch["image"].shape[0], model.pad_id, jnp.int32)
    ids = dict(eos_id=model.eos_id, pad_id=model.pad_id)
    if beams > 1:
      return autoregressive.beam_search(
        step_fn, cache, start, length, beams=beams, cache_axis=1, **ids
      )[0]
    return autoregressive.generate(
      step_fn,
      cache,
      start,
      length,
      rng=rng,
      temperature=temperature,
      top_k=top_k,
      top_p=top_p,
      **ids,
    )

  def loss_per_example(params: Params, aux: Aux, batch: Batch, rng: jax.Array | None = None):
    """[B]: both directions against the batch, and the mean over the example's own tokens.

    Rows whose `_mask` is False are nobody's negatives.
    """
    text = batch["text"]
    logits, out = model.apply({"params": params}, batch["image"], text)
    con = contrastive.softmax_per_example(
      out["image/embed"], out["text/embed"], out["logit_scale"], batch.get("_mask")
    )
    real = text != model.pad_id
    tokens = jnp.sum(jnp.where(real, captioning.token_nll(logits, text), 0.0), axis=1)
    return weight_con * con + weight_cap * tokens / jnp.maximum(jnp.sum(real, axis=1), 1)

  def token_logprob(params: Params, aux: Aux, batch: Batch, rng: jax.Array | None = None):
    """`logprob` [B, L], log P(y_t | y_<t, x); `real` [B, L], False where text is padding."""
    text = batch["text"]
    logits, _ = model.apply({"params": params}, batch["image"], text)
    return {"logprob": -captioning.token_nll(logits, text), "real": text != model.pad_id}

  def features(params: Params, aux: Aux, batch: Batch, rng: jax.Array | None = None):
    """Every named intermediate: image/patches, image/tokens, text/tokens, both embeddings."""
    return model.apply({"params": params}, batch["image"], batch["text"])[1]

  return Method(
    init=init,
    loss=joined(represent, compare),
    predict={
      "image_embed": image_embed,
      "text_embed": text_embed,
      "generate": generate,
      "loss_per_example": loss_per_example,
      "token_logprob": token_logprob,
      "features": features,
    },
    split=(represent, compare),
  )
