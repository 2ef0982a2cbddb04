"""The inpainting networks of Context Encoders (Pathak et al., arXiv:1604.07379, Sec. 3 and 4).

    image -> strided convolutions -> bottleneck -> transposed convolutions -> the missing part

Convolutions are 4 x 4 with stride 2, halving or doubling the sides, as in DCGAN (arXiv:1511.06434):
batch normalisation everywhere but next to pixels and logits, leaky ReLU (0.2) on the way down, ReLU
on the way up, tanh at the end, weights from N(0, 0.02^2). The released code holds the convolutions'
biases at zero, so there are none here.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from big_vision_like import axes
from big_vision_like.config import UserError, call, unknown
from big_vision_like.layers.batch_norm import BatchNorm
from big_vision_like.layers.transformer import DTYPES

KERNEL = (4, 4)
CHANNELWISE = "channelwise"
init = nn.initializers.normal(0.02)


def leaky_relu(x: jax.Array) -> jax.Array:
  return nn.leaky_relu(x, 0.2)


class Down(nn.Module):
  """A stack of strided convolutions, each halving the sides; the first has no normalisation.

  Parameters: conv_i/kernel [4, 4, C, D], norm_i/{scale, bias} [D] for i > 0.
  """

  widths: tuple[int, ...]
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """[B, H, W, C] -> [B, H / 2^n, W / 2^n, widths[-1]].

    Raises:
      UserError: a side does not halve n times.
    """
    if any(side % 2 ** len(self.widths) for side in x.shape[1:3]):
      raise UserError(
        f"config.model: {x.shape[1]} x {x.shape[2]} does not halve {len(self.widths)} times, once "
        f"for each of the widths {self.widths}"
      )
    x = x.astype(self.dtype)
    for i, width in enumerate(self.widths):
      pad = ((1, 1), (1, 1))
      x = nn.Conv(
        width, KERNEL, 2, pad, use_bias=False, kernel_init=init, dtype=self.dtype, name=f"conv_{i}"
      )(x)
      if i:
        x = BatchNorm(dtype=self.dtype, name=f"norm_{i}")(x, train=train)
      x = axes.constrain(leaky_relu(x), axes.BATCH)
    return x


class Generator(nn.Module):
  """Parameters: encoder (a `Down`), bottleneck, decoder.

      bottleneck/{conv/kernel [h, w, D, E], norm}      a vector of E numbers (inpainting net: 4000)
      bottleneck/{full [D, hw, hw], conv/kernel [1, 1, D, D], norm}        channel-wise (Sec. 3.1)
      decoder/{start/kernel [h', w', E, D'], norm_0}   with a vector: 1 x 1 to the first map
      decoder/{up_i/kernel [4, 4, C, D], norm_i}       doubling the sides; the last has no norm

  Attributes:
    encoder: widths of the halving convolutions.
    bottleneck: how many numbers the whole image is squeezed into, or "channelwise": each feature
      map goes through a fully connected layer of its own (D h^2 w^2 weights, not (D h w)^2), and a
      1 x 1 convolution then mixes the maps.
    decoder: widths of the maps on the way up; the first belongs to the start map (with a vector),
      each other one and the image itself to a doubling.
    output_size: height and width of what is predicted; None: those of the image.
  """

  encoder: tuple[int, ...]
  bottleneck: int | str
  decoder: tuple[int, ...]
  output_size: tuple[int, int] | None = None
  dtype: str = "float32"

  @nn.compact
  def __call__(
    self, image: jax.Array, *, train: bool = False
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """[B, H, W, C] -> ([B, H', W', C] in (-1, 1), float32; intermediates).

    Intermediates: `encoder` [B, h, w, D], `bottleneck` [B, E] or [B, h, w, D].

    Raises:
      UserError: sides that do not halve, or a prediction that the decoder cannot reach.
    """
    dtype = jnp.dtype(self.dtype)
    size = self.output_size or image.shape[1:3]
    widths = (*self.decoder, image.shape[-1])
    doublings = len(widths) - (self.bottleneck != CHANNELWISE)
    start = tuple(side // 2**doublings for side in size)
    x = Down(self.encoder, dtype, name="encoder")(image, train=train)
    out = {"encoder": x}
    reached = x.shape[1:3] if self.bottleneck == CHANNELWISE else start
    if 0 in start or tuple(side * 2**doublings for side in reached) != tuple(size):
      raise UserError(
        f"config.model.decoder = {self.decoder}: {doublings} doublings do not end in {size[0]} x "
        f"{size[1]}; the encoder ends in {x.shape[1]} x {x.shape[2]}"
      )

    if self.bottleneck == CHANNELWISE:
      x = Channelwise(dtype, name="bottleneck")(x, train=train)
    else:
      x = Squeeze(self.bottleneck, dtype, name="bottleneck")(x, train=train)
    out["bottleneck"] = x if self.bottleneck == CHANNELWISE else x[:, 0, 0]
    start = None if self.bottleneck == CHANNELWISE else start
    return Up(widths, start, dtype, name="decoder")(x, train=train), out


class Squeeze(nn.Module):
  """[B, h, w, D] -> [B, 1, 1, E] by a convolution as large as the map."""

  size: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    conv = dict(use_bias=False, kernel_init=init, dtype=self.dtype)
    x = nn.Conv(self.size, x.shape[1:3], padding="VALID", name="conv", **conv)(x)
    return leaky_relu(BatchNorm(dtype=self.dtype, name="norm")(x, train=train))


class Channelwise(nn.Module):
  """[B, h, w, D] -> [B, h, w, D]: full within a map, then 1 x 1 across maps (Sec. 3)."""

  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    _, h, w, depth = x.shape
    fan_in = nn.initializers.variance_scaling(1.0, "fan_in", "normal", batch_axis=0)
    full = self.param("full", fan_in, (depth, h * w, h * w))
    x = rearrange(x, "B h w D -> B (h w) D")
    x = jnp.einsum("BnD,Dnm->BmD", x, full.astype(self.dtype))
    x = rearrange(x, "B (h w) D -> B h w D", h=h)
    conv = dict(use_bias=False, kernel_init=init, dtype=self.dtype)
    x = nn.Conv(depth, (1, 1), name="conv", **conv)(leaky_relu(x))
    return leaky_relu(BatchNorm(dtype=self.dtype, name="norm")(x, train=train))


class Up(nn.Module):
  """Transposed convolutions, each doubling the sides, up to pixels."""

  widths: tuple[int, ...]
  start: tuple[int, int] | None
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    conv = dict(use_bias=False, kernel_init=init, dtype=self.dtype)
    for i, width in enumerate(self.widths):
      if i == 0 and self.start is not None:  # 1 x 1 -> the first map
        x = nn.ConvTranspose(width, self.start, padding="VALID", name="start", **conv)(x)
      else:
        x = nn.ConvTranspose(width, KERNEL, (2, 2), "SAME", name=f"up_{i}", **conv)(x)
      if i < len(self.widths) - 1:
        x = nn.relu(BatchNorm(dtype=self.dtype, name=f"norm_{i}")(x, train=train))
      x = axes.constrain(x, axes.BATCH)
    return jnp.tanh(x.astype(jnp.float32))


class Discriminator(nn.Module):
  """Parameters: encoder (a `Down`), logit/kernel [h, w, D, 1]."""

  widths: tuple[int, ...]
  dtype: str = "float32"

  @nn.compact
  def __call__(
    self, image: jax.Array, *, train: bool = False
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """[B, H, W, C] -> (logits [B] float32, above zero where it looks real; intermediates).

    Raises:
      UserError: sides that do not halve as often as there are widths.
    """
    dtype = jnp.dtype(self.dtype)
    x = Down(self.widths, dtype, name="encoder")(image, train=train)
    conv = dict(use_bias=False, kernel_init=init, dtype=dtype)
    logit = nn.Conv(1, x.shape[1:3], padding="VALID", name="logit", **conv)(x)
    return logit[:, 0, 0, 0].astype(jnp.float32), {"encoder": x}


def make(
  cfg: Mapping[str, Any], output_size: tuple[int, int] | None
) -> tuple[Generator, Discriminator]:
  """Both players from `config.model`: encoder, bottleneck, decoder, discriminator, dtype.

  Args:
    cfg: widths of the three stacks, the bottleneck (a number or "channelwise"), and the dtype that
      both compute in.
    output_size: what the generator predicts and the discriminator sees; None: the whole image.

  Raises:
    UserError: a missing or unknown key, widths or a bottleneck that are none.
  """
  return call(_make, dict(cfg), "config.model", output_size=output_size)


def _make(
  output_size: tuple[int, int] | None,
  encoder: tuple[int, ...],
  bottleneck: int | str,
  decoder: tuple[int, ...],
  discriminator: tuple[int, ...],
  dtype: str = "float32",
) -> tuple[Generator, Discriminator]:
  whole = lambda n: isinstance(n, int) and not isinstance(n, bool) and n > 0
  stacks = dict(encoder=encoder, decoder=decoder, discriminator=discriminator)
  for key, widths in stacks.items():
    if not isinstance(widths, (list, tuple)) or not widths or not all(map(whole, widths)):
      raise UserError(f"config.model.{key} = {widths!r}; expected widths such as (64, 128, 256)")
  if bottleneck != CHANNELWISE and not whole(bottleneck):
    raise UserError(
      f"config.model.bottleneck = {bottleneck!r}; expected a number of units or '{CHANNELWISE}'"
    )
  if dtype not in DTYPES:
    raise unknown("config.model.dtype", dtype, DTYPES)
  return (
    Generator(tuple(encoder), bottleneck, tuple(decoder), output_size, dtype),
    Discriminator(tuple(discriminator), dtype),
  )
