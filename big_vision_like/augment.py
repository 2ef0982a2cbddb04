"""Batched augmentation on the accelerator: `"color_jitter(0.4, 0.4, 0.2, 0.1, p=0.8)|mixup(0.2)"`.

Each op, called with its arguments, returns `(rng, batch) -> batch`; `build` chains them. The images
of `key` are [B, H, W, C] or [B, V, H, W, C] (V views), uint8 or float32 in 0..1 (`normalize` last);
every image draws its own numbers. A probability may be a tuple, one for each view, as DINO has it.
What the ops compute is defined in `photometric`, which the host's ops of the same names share.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from big_vision_like import photometric
from big_vision_like.config import UserError, call, parse_spec, unknown, whole_number

Batch = dict[str, jax.Array]
Op = Callable[[jax.Array, Batch], Batch]
Images = Float[Array, "N H W C"]


def build(spec: str, where: str) -> Op:
  """The ops of `spec`, one after the other.

  Raises:
    UserError: an unknown op, or arguments it does not take.
  """
  ops = []
  for name, args, kwargs in parse_spec(spec, where):
    if name not in OPS:
      raise unknown(f"{where}: op", name, list(OPS))
    ops.append(call(OPS[name], kwargs, f"{where}: {name}", *args))

  def run(rng: jax.Array, batch: Batch) -> Batch:
    for i, op in enumerate(ops):
      batch = op(jax.random.fold_in(rng, i), batch)
    return batch

  return run


def _per_image(fn: Callable[[jax.Array, Images], Images], p, key: str) -> Op:
  """Lifts `fn(rng, [N, H, W, C])` to batches: views flattened, applied with probability `p`."""
  for value in p if isinstance(p, tuple) else (p,):
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
      raise UserError(f"config.augment: p = {p!r}; expected probabilities from 0 to 1")

  def run(rng: jax.Array, batch: Batch) -> Batch:
    if key not in batch:
      raise UserError(f"config.augment: key={key!r} is not in the batch; it has {', '.join(batch)}")
    x = batch[key]
    x = x.astype(jnp.float32) / 255 if x.dtype == jnp.uint8 else x
    views = x.shape[1 : x.ndim - 3]
    if isinstance(p, tuple) and views != (len(p),):
      raise UserError(f"config.augment: p = {p!r} for {views or 'no'} views of {key}")
    chance = jnp.broadcast_to(jnp.asarray(p, jnp.float32), x.shape[: x.ndim - 3])
    coin, rest = jax.random.split(rng)
    flat = x.reshape(-1, *x.shape[-3:])
    chosen = jax.random.uniform(coin, flat.shape[:1]) < chance.reshape(-1)
    out = jnp.where(chosen[:, None, None, None], fn(rest, flat), flat)
    return {**batch, key: out.reshape(x.shape)}

  return run


def color_jitter(
  brightness: float = 0.4,
  contrast: float = 0.4,
  saturation: float = 0.2,
  hue: float = 0.1,
  p: float | tuple = 0.8,
  key: str = "image",
) -> Op:
  """Factors in 1 +- strength, hue in +- turns (SimCLR, arXiv:2002.05709, Appendix A).

  In this order for every image (SimCLR draws the order); one channel has neither saturation nor
  hue.
  """

  def fn(rng: jax.Array, x: Images) -> Images:
    keys = jax.random.split(rng, 4)
    draw = lambda i, s: jax.random.uniform(keys[i], (x.shape[0], 1, 1, 1), minval=-s, maxval=s)
    factors = [1 + draw(i, s) for i, s in enumerate((brightness, contrast, saturation))]
    return photometric.jitter(x, [*factors, draw(3, hue) if hue else None])

  return _per_image(fn, p, key)


def grayscale(p: float | tuple = 0.2, key: str = "image") -> Op:
  """RGB -> its luma in all channels."""
  return _per_image(lambda rng, x: photometric.gray(x), p, key)


def solarize(p: float | tuple = 0.2, threshold: float = 0.5, key: str = "image") -> Op:
  """Inverts what is at or above the threshold (BYOL, arXiv:2006.07733)."""
  return _per_image(lambda rng, x: photometric.solarize(x, threshold), p, key)


def posterize(bits: int = 4, p: float | tuple = 1.0, key: str = "image") -> Op:
  """Keeps the highest `bits` of 8 (AutoAugment, arXiv:1805.09501)."""
  if whole_number(bits, "config.augment: posterize bits") > 8:
    raise UserError(f"config.augment: posterize bits = {bits}; expected 1 to 8")
  return _per_image(lambda rng, x: photometric.posterize(x, bits), p, key)


def invert(p: float | tuple = 0.5, key: str = "image") -> Op:
  """1 - x (AutoAugment, arXiv:1805.09501)."""
  return _per_image(lambda rng, x: photometric.invert(x), p, key)


def equalize(p: float | tuple = 1.0, key: str = "image") -> Op:
  """Flattens the histogram of every channel over 256 levels, as PIL does."""

  def channel(level: jax.Array) -> jax.Array:
    return photometric.equalize_table(jnp.bincount(level.reshape(-1), length=256))[level]

  def fn(rng: jax.Array, x: Images) -> Images:
    level = jnp.round(x * 255).astype(jnp.int32)
    every = jax.vmap(jax.vmap(channel, in_axes=-1, out_axes=-1))
    return every(level).astype(x.dtype) / 255

  return _per_image(fn, p, key)


def autocontrast(p: float | tuple = 1.0, key: str = "image") -> Op:
  """Stretches every channel to 0..1."""
  return _per_image(lambda rng, x: photometric.autocontrast(x), p, key)


def sharpness(
  factor: tuple[float, float] = (0.1, 1.9), p: float | tuple = 1.0, key: str = "image"
) -> Op:
  """Uniform factor between smoothed (0), as it is (1) and sharpened (PIL's ImageEnhance)."""
  if len(factor) != 2 or not 0 <= factor[0] <= factor[1]:
    raise UserError(f"config.augment: sharpness factor = {factor!r}; expected 0 <= low <= high")

  def fn(rng: jax.Array, x: Images) -> Images:
    draw = jax.random.uniform(rng, (x.shape[0], 1, 1, 1), minval=factor[0], maxval=factor[1])
    return photometric.sharpness(x, draw)

  return _per_image(fn, p, key)


def gaussian_blur(
  p: float | tuple = 0.5,
  sigma: tuple[float, float] = (0.1, 2.0),
  size: int | None = None,
  key: str = "image",
) -> Op:
  """Separable blur, sigma drawn for each image; `size` taps, a tenth of the image by default."""
  if not 0 < sigma[0] <= sigma[1]:
    raise UserError(f"config.augment: gaussian_blur sigma = {sigma!r}; expected 0 < low <= high")

  def fn(rng: jax.Array, x: Images) -> Images:
    scale = jax.random.uniform(rng, (x.shape[0], 1), minval=sigma[0], maxval=sigma[1])
    return photometric.blur(x, scale, photometric.blur_radius(x.shape[1], size))

  return _per_image(fn, p, key)


def normalize(mean: float | tuple = 0.5, std: float | tuple = 0.5, key: str = "image") -> Op:
  """(x - mean) / std; by default 0..1 -> -1..1."""
  over = lambda v: jnp.asarray(v, jnp.float32).reshape(1, 1, 1, -1)
  return _per_image(lambda rng, x: (x - over(mean)) / over(std), 1.0, key)


def _one_hot(batch: Batch, classes: int, op: str) -> jax.Array:
  """[B] or [B, K] labels as float32 [B, K]."""
  label = batch["label"]
  if label.ndim == 2:
    return label.astype(jnp.float32)
  if classes < 2:
    raise UserError(f"config.augment: {op}(classes={classes}); how many classes has the data?")
  return jax.nn.one_hot(label, classes)


def mixup(alpha: float = 0.2, classes: int = 0, p: float = 1.0, key: str = "image") -> Op:
  """x = lam x_i + (1 - lam) x_j, labels alike, lam ~ Beta(alpha, alpha) (arXiv:1710.09412).

  One lam for the batch; j is the neighbour of i. `label` becomes float32 [B, classes].
  """

  def run(rng: jax.Array, batch: Batch) -> Batch:
    coin, draw = jax.random.split(rng)
    lam = jax.random.beta(draw, alpha, alpha)
    lam = jnp.where(jax.random.uniform(coin) < p, lam, 1.0)
    mix = lambda x: lam * x + (1 - lam) * jnp.roll(x, 1, axis=0)
    image = batch[key]
    image = image.astype(jnp.float32) / 255 if image.dtype == jnp.uint8 else image
    return {**batch, key: mix(image), "label": mix(_one_hot(batch, classes, "mixup"))}

  return run


def cutmix(alpha: float = 1.0, classes: int = 0, p: float = 1.0, key: str = "image") -> Op:
  """A box of the neighbour's image, labels by area (arXiv:1905.04899); one box for the batch."""

  def run(rng: jax.Array, batch: Batch) -> Batch:
    coin, draw, place = jax.random.split(rng, 3)
    image = batch[key]
    height, width = image.shape[1:3]
    share = jnp.sqrt(1 - jax.random.beta(draw, alpha, alpha))
    centre = jax.random.uniform(place, (2,))
    inside = jnp.ones((), bool)
    for axis, (n, c) in enumerate(((height, centre[0]), (width, centre[1]))):
      at = (jnp.arange(n) + 0.5) / n
      inside = inside & jnp.expand_dims(jnp.abs(at - c) < share / 2, 1 - axis)
    inside = inside & (jax.random.uniform(coin) < p)
    lam = 1 - jnp.mean(inside.astype(jnp.float32))
    box = inside[None, :, :, None]
    label = _one_hot(batch, classes, "cutmix")
    label = lam * label + (1 - lam) * jnp.roll(label, 1, axis=0)
    return {**batch, key: jnp.where(box, jnp.roll(image, 1, axis=0), image), "label": label}

  return run


OPS = {
  op.__name__: op
  for op in (
    color_jitter,
    grayscale,
    solarize,
    posterize,
    invert,
    equalize,
    autocontrast,
    sharpness,
    gaussian_blur,
    normalize,
    mixup,
    cutmix,
  )
}
