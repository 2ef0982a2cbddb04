"""Context Encoders: feature learning by inpainting (Pathak et al., arXiv:1604.07379).

With M^ = 1 where a pixel x is hidden, F the generator and D the discriminator (Eq. 1 to 3),

    L_rec = || M^ * (x - F((1 - M^) * x)) ||^2
    L_adv = max_D E log D(x) + E log(1 - D(F((1 - M^) * x)))
    L     = lambda_rec L_rec + lambda_adv L_adv

Both players move in one step, so the loss is the sum of what each minimises; sg = `stop_gradient`
keeps the other's parameters out of it:

    L = lambda_rec L_rec - lambda_adv E log sg(D)(F)  -  E log D(x) - E log(1 - D(sg(F)))

The first two terms reach F alone, in the non-saturating form that the released code uses, the last
two D alone. `config.optim.groups` gives D its own learning rate.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from big_vision_like import models
from big_vision_like.config import Config, UserError, call, parse_spec, unknown
from big_vision_like.losses import adversarial
from big_vision_like.method import Aux, Batch, Method, Metrics, Params
from big_vision_like.models import context_encoder

Shape = tuple[int, int, int, int]


# (rng, shape of the image) -> booleans [B, H, W, 1], True where hidden; and height and width of the
# central box that is all the generator predicts and all the discriminator sees. Without a box the
# hidden pixels are predicted and the discriminator sees the whole image.
Mask = tuple[Callable[[jax.Array, Shape], jax.Array], tuple[int, int] | None]


def central(shape: Shape, height: int, width: int) -> tuple[slice, slice, slice]:
  """Index of the central height x width of images."""
  top, left = (shape[1] - height) // 2, (shape[2] - width) // 2
  if min(top, left) < 0:
    raise UserError(f"config.loss.mask: {height} x {width} is larger than the image {shape[1:3]}")
  return slice(None), slice(top, top + height), slice(left, left + width)


def center(height: int, width: int, overlap: int = 0) -> Mask:
  """The central height x width is predicted; all of it but a rim of `overlap` pixels is hidden."""
  if not 0 <= 2 * overlap < min(height, width):
    raise UserError(f"config.loss.mask: overlap {overlap} leaves nothing of {height} x {width}")

  def draw(rng: jax.Array, shape: Shape) -> jax.Array:
    hole = central(shape, height - 2 * overlap, width - 2 * overlap)
    return jnp.zeros((*shape[:3], 1), bool).at[hole].set(True)

  return draw, (height, width)


def blocks(count: int, height: int, width: int) -> Mask:
  """`count` blocks of height x width at random places, which may overlap (Sec. 3.3)."""

  def draw(rng: jax.Array, shape: Shape) -> jax.Array:
    central(shape, height, width)  # that they fit

    def along(key: jax.Array, full: int, size: int) -> jax.Array:  # [B, count, full]
      start = jax.random.randint(key, (shape[0], count, 1), 0, full - size + 1)
      at = jnp.arange(full)[None, None, :]
      return (start <= at) & (at < start + size)

    keys = jax.random.split(rng)
    rows, columns = along(keys[0], shape[1], height), along(keys[1], shape[2], width)
    return jnp.any(rows[:, :, :, None] & columns[:, :, None, :], axis=1)[..., None]

  return draw, None


def region(area: float, cells: int) -> Mask:
  """A random shape over `area` of the image: smooth noise of cells x cells, cut at a quantile.

  The paper takes shapes from PASCAL VOC's segmentations, its released code this.
  """

  def draw(rng: jax.Array, shape: Shape) -> jax.Array:
    noise = jax.random.uniform(rng, (shape[0], cells, cells))
    noise = jax.image.resize(noise, shape[:3], "cubic")
    return (noise < jnp.quantile(noise, area, axis=(1, 2), keepdims=True))[..., None]

  return draw, None


MASKS = {"center": center, "blocks": blocks, "region": region}


def make_mask(text: str) -> Mask:
  """`"center(64, 64, overlap=4)"`, `"blocks(5, 28, 28)"` or `"region(0.25, 8)"` -> `Mask`."""
  where = "config.loss.mask"
  calls = parse_spec(text, where)
  number = lambda v: isinstance(v, (int, float))
  if len(calls) != 1 or not all(map(number, (*calls[0].args, *calls[0].kwargs.values()))):
    raise UserError(f"{where} = {text!r}; expected one mask with numbers: 'center(64, 64)'")
  [(name, args, kwargs)] = calls
  if name not in MASKS:
    raise unknown(where, name, tuple(MASKS))
  return call(MASKS[name], kwargs, where, *args)


def make(config: Config) -> Method:
  """`config.model` goes to `models.context_encoder.make`.

  `config.loss`: `mask` (see `make_mask`), `fill` (a number, or one a channel: what the generator
  sees in place of hidden pixels), `lambda_rec`, `lambda_adv` (0: no discriminator is made), and
  `overlap_weight`, that of the squared error in the overlapping band.
  """
  cfg = config.loss
  (hide, size), fill, overlap_weight = make_mask(cfg.mask), cfg.fill, cfg.overlap_weight
  lambda_rec, lambda_adv = cfg.lambda_rec, cfg.lambda_adv
  generator, discriminator = context_encoder.make(config.model, size)

  def init(rng: jax.Array, batch: Batch) -> tuple[Params, Aux]:
    image, keys = batch["image"], jax.random.split(rng)
    params, stats = {}, {}
    params["generator"], stats["generator"] = models.init(generator, keys[0], image)
    if lambda_adv:
      made = models.init(discriminator, keys[1], image[box(image)])
      params["discriminator"], stats["discriminator"] = made
    return params, {"stats": stats}

  def box(image: jax.Array) -> tuple[slice, ...]:
    """Where the generator's output belongs, and what the discriminator sees of an image."""
    return central(image.shape, *(size or image.shape[1:3]))

  def inpaint(params: Params, aux: Aux, batch: Batch, rng: jax.Array | None, train: bool = False):
    """Predictions [B, H, W, C], what was hidden and predicted [B, H, W, 1], new statistics."""
    image = jnp.asarray(batch["image"])
    hidden = hide(jax.random.key(0) if rng is None else rng, image.shape)
    predicted = jnp.zeros_like(hidden).at[box(image)].set(True) if size else hidden
    filled = jnp.where(hidden, jnp.broadcast_to(jnp.asarray(fill), image.shape), image)
    (out, _), stats = models.apply(
      generator, params["generator"], aux["stats"]["generator"], filled, train=train
    )
    return image.at[box(image)].set(out.astype(image.dtype)), hidden, predicted, stats

  def reconstruction(
    image: jax.Array, out: jax.Array, hidden: jax.Array, predicted: jax.Array
  ) -> jax.Array:
    """[B]: squared error, the band weighted, over the number of predicted values."""
    weight = jnp.where(hidden, 1.0, overlap_weight) * predicted
    count = jnp.sum(predicted, axis=(1, 2, 3)) * image.shape[3]
    return jnp.sum(weight * jnp.square(out - image), axis=(1, 2, 3)) / count

  def loss(
    params: Params, aux: Aux, batch: Batch, rng: jax.Array, step: jax.Array
  ) -> tuple[jax.Array, tuple[Aux, Metrics]]:
    del step
    image, fixed = batch["image"], jax.lax.stop_gradient
    out, hidden, predicted, stats = inpaint(params, aux, batch, rng, train=True)
    rec = jnp.mean(reconstruction(image, out, hidden, predicted))
    metrics, stats = {"reconstruction": rec}, {"generator": stats}
    if not lambda_adv:
      return lambda_rec * rec, ({**aux, "stats": stats}, metrics)

    def discriminate(params: Params, stats: Aux, x: jax.Array) -> tuple[jax.Array, Aux]:
      (logits, _), stats = models.apply(discriminator, params, stats, x, train=True)
      return logits, stats

    fake, real = jnp.where(predicted, out, image)[box(image)], image[box(image)]
    d = params["discriminator"]
    # Real and fake batches are normalised apart, as in the released code.
    on_real, d_stats = discriminate(d, aux["stats"]["discriminator"], real)
    on_fake, d_stats = discriminate(d, d_stats, fixed(fake))
    against, _ = discriminate(fixed(d), d_stats, fake)
    adv = adversarial.generator_loss(against)
    dis = adversarial.discriminator_loss(on_real, on_fake)
    metrics |= {
      "adversarial": adv,
      "discriminator": dis,
      "d_accuracy": adversarial.discriminator_accuracy(on_real, on_fake),
    }
    stats |= {"discriminator": d_stats}
    return lambda_rec * rec + lambda_adv * adv + dis, ({**aux, "stats": stats}, metrics)

  def reconstruct(params: Params, aux: Aux, batch: Batch, rng: jax.Array | None = None):
    """`image` [B, H, W, C] with the hidden part filled in, `mask` [B, H, W, 1], `target`."""
    image = batch["image"]
    out, hidden, _, _ = inpaint(params, aux, batch, rng)
    return {
      "image": jnp.where(hidden, out, image),
      "mask": hidden.astype(jnp.float32),
      "target": image,
    }

  def loss_per_example(params: Params, aux: Aux, batch: Batch, rng: jax.Array | None = None):
    """[B]: L_rec of each image, the one term that is an example's own."""
    out, hidden, predicted, _ = inpaint(params, aux, batch, rng)
    return reconstruction(batch["image"], out, hidden, predicted)

  def features(params: Params, aux: Aux, batch: Batch, rng: jax.Array | None = None):
    """`encoder` and `bottleneck` of whole images, nothing hidden."""
    stats = aux["stats"]["generator"]
    return models.apply(generator, params["generator"], stats, batch["image"])[0][1]

  def image_embed(params: Params, aux: Aux, batch: Batch, rng: jax.Array | None = None):
    """[B, H, W, C] -> [B, E]: the bottleneck, flattened."""
    z = features(params, aux, batch)["bottleneck"]
    return z.reshape(z.shape[0], -1).astype(jnp.float32)

  return Method(
    init=init,
    loss=loss,
    predict={
      "reconstruct": reconstruct,
      "image_embed": image_embed,
      "features": features,
      "loss_per_example": loss_per_example,
    },
    progress="reconstruction",
  )
