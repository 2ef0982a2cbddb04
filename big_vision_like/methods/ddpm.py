"""Denoising diffusion (DDPM, Ho et al., arXiv:2006.11239), with classifier-free guidance.

    L = E_{x, t, eps} w(t) || target - f(z_t, t, c) ||^2,   z_t = alpha_t x + sigma_t eps

target = eps and w = 1 is Eq. 14. With classes, c is the label, and with probability
`label_dropout` the null class, so that one network gives both sides of the guidance (Ho and
Salimans, arXiv:2207.12598, Algorithm 1). Samples are best drawn from averaged weights
(`config.ema`).
"""

import jax
import jax.numpy as jnp

from big_vision_like import models
from big_vision_like.config import Config, UserError, call, unknown
from big_vision_like.generation import diffusion, samplers
from big_vision_like.method import Aux, Batch, Method, Metrics, Params

LEVELS = 8  # times at which `loss_per_example` looks


def make(config: Config) -> Method:
  """The method of a config.

  `config.model` is a network f(z, t, label) such as `models/unet.py`; its `num_classes` makes it
  conditional. `config.diffusion` goes to `diffusion.make_schedule`. `config.loss` has `target`
  (eps, x0, v, previous), `weight` (simple, snr, truncated_snr, min_snr, sigma2), `gamma` of
  min_snr, and `label_dropout` (0.1).
  """
  model = models.make(config.model)
  schedule = diffusion.make_schedule(**config.diffusion, where="config.diffusion")
  cfg = config.loss
  kind = diffusion.check_target(cfg.get("target", "eps"), schedule, "config.loss.target")
  weighting, gamma = cfg.get("weight", "simple"), cfg.get("gamma", 5.0)
  if weighting not in diffusion.WEIGHTS:
    raise unknown("config.loss.weight", weighting, diffusion.WEIGHTS)
  classes, label_dropout = model.num_classes, cfg.get("label_dropout", 0.1)
  if not 0 <= label_dropout < 1:
    raise UserError(f"config.loss.label_dropout = {label_dropout}; expected 0 <= p < 1")
  size = (*model.image_size, model.out_channels)

  def init(rng: jax.Array, batch: Batch) -> tuple[Params, Aux]:
    if batch["image"].shape[1:] != size:
      raise UserError(
        f"config.input.spec.image is {batch['image'].shape[1:]}, but config.model makes {size}"
      )
    if classes is not None and "label" not in batch:
      raise UserError("config.model.num_classes needs label in config.input.spec")
    return model.init(rng, jnp.zeros((1, *size)), jnp.zeros(1))["params"], {}

  def network(params: Params, z: jax.Array, t: jax.Array, label: jax.Array | None, **kwargs):
    return model.apply({"params": params}, z, schedule.timestep(t), label, **kwargs)

  def label_of(batch: Batch) -> jax.Array | None:
    return batch.get("label") if classes is not None else None

  def previous(t: jax.Array) -> jax.Array | None:
    return schedule.previous(t) if kind == "previous" else None

  def error(
    params: Params,
    x: jax.Array,
    t: jax.Array,
    label: jax.Array | None,
    rng: jax.Array,
    **kwargs,
  ) -> jax.Array:
    """w(t) || target - f ||^2 of each example [B], the noise drawn by `rng`."""
    x = x.astype(jnp.float32)
    eps, level, before = jax.random.normal(rng, x.shape), schedule.log_snr(t), previous(t)
    out, _ = network(params, diffusion.diffuse(x, eps, level), t, label, **kwargs)
    wanted = diffusion.target(kind, x, eps, level, before)
    weight = diffusion.loss_weight(weighting, kind, level, gamma=gamma, previous=before)
    return diffusion.weighted_error(out, wanted, weight)

  def loss(
    params: Params, aux: Aux, batch: Batch, rng: jax.Array, step: jax.Array
  ) -> tuple[jax.Array, tuple[Aux, Metrics]]:
    del step
    x, label = batch["image"], label_of(batch)
    times, noise, null, dropout = jax.random.split(rng, 4)
    if label is not None:
      label = jnp.where(jax.random.bernoulli(null, label_dropout, label.shape), classes, label)
    t = schedule.draw(times, x.shape[0])
    each = error(params, x, t, label, noise, train=True, rngs={"dropout": dropout})
    return jnp.mean(each), (aux, {})

  def loss_per_example(params: Params, aux: Aux, batch: Batch, rng: jax.Array | None = None):
    """[B]: the mean over `LEVELS` evenly spaced times, the same for all; noise by `rng`."""
    rng = jax.random.key(0) if rng is None else rng

    def at(i_t):
      t = jnp.full(batch["image"].shape[0], i_t[1])
      return error(params, batch["image"], t, label_of(batch), jax.random.fold_in(rng, i_t[0]))

    times = jnp.asarray(schedule.grid(min(LEVELS, schedule.num_steps or LEVELS)))
    return jnp.mean(jax.lax.map(at, (jnp.arange(len(times)), times)), axis=0)

  def sample(
    params: Params,
    aux: Aux,
    batch: Batch,
    rng: jax.Array,
    *,
    steps: int = 50,
    sampler: str = "ddim",
    guidance: float = 1.0,
    clip: bool = True,
    **options,
  ) -> jax.Array:
    """label int32 [B], or any [B] arrays for the null class -> pixels [B, H, W, C] in -1..1.

    `guidance` 1 follows the label, 0 ignores it, more exaggerates it. `clip` keeps the estimate of
    every step in -1..1. Further options are the sampler's: `eta` (ddim), `variance` (ancestral),
    `sigma_min`, `sigma_max`, `rho` (heun).
    """
    label = label_of(batch) if guidance else None
    if label is None and guidance not in (0, 1):
      raise UserError(f"sample: guidance = {guidance} needs a conditional model and labels")

    def denoise(z: jax.Array, t: jax.Array) -> jax.Array:
      out, _ = network(params, z, t, label)
      if guidance not in (0, 1):
        out = diffusion.guide(out, network(params, z, t, None)[0], guidance)
      x = diffusion.to_x0(kind, out, z, schedule.log_snr(t), previous(t))
      return jnp.clip(x, -1.0, 1.0) if clip else x

    shape = (jax.tree.leaves(batch)[0].shape[0], *size)
    return call(
      samplers.find(sampler), options, "sample: sampler", denoise, rng, shape, schedule, steps
    )

  def features(
    params: Params,
    aux: Aux,
    batch: Batch,
    rng: jax.Array | None = None,
    *,
    noise: float = 0.1,
  ):
    """The network's intermediates for the image, noised up to that share of the times."""
    rng = jax.random.key(0) if rng is None else rng
    x = batch["image"].astype(jnp.float32)
    t = noise if schedule.num_steps is None else round(noise * (schedule.num_steps - 1))
    t = jnp.full(x.shape[0], t)
    z = diffusion.diffuse(x, jax.random.normal(rng, x.shape), schedule.log_snr(t))
    return network(params, z, t, label_of(batch))[1]

  return Method(
    init=init,
    loss=loss,
    predict={
      "sample": sample,
      "loss_per_example": loss_per_example,
      "features": features,
    },
  )
