"""The U-Net of diffusion models (DDPM, Ho et al., arXiv:2006.11239, Appendix B)."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from big_vision_like import axes
from big_vision_like.config import UserError, call, unknown
from big_vision_like.layers.attention import attention, xavier
from big_vision_like.layers.stack import REMAT
from big_vision_like.layers.transformer import DTYPES

EPS = 1e-6  # of every GroupNorm


def time_embedding(t: jax.Array, width: int, max_period: float = 10_000.0) -> jax.Array:
  """float32 [B] -> [B, width]: width/2 sines, then as many cosines (Vaswani et al. 2017).

  The frequencies fall geometrically from 1 to 1 / max_period, both included.
  """
  half = width // 2
  freqs = jnp.exp(-math.log(max_period) * jnp.arange(half, dtype=jnp.float32) / (half - 1))
  angles = t.astype(jnp.float32)[:, None] * freqs[None, :]
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def _conv(features: int, dtype: jnp.dtype, name: str, *, stride: int = 1, init=xavier) -> nn.Conv:
  return nn.Conv(features, (3, 3), strides=stride, kernel_init=init, dtype=dtype, name=name)


class ResBlock(nn.Module):
  """x + conv2(dropout(silu(norm2(conv1(silu(norm1(x))) + time(silu(emb)))))), conv2 zero at first.

  Parameters norm1, conv1, time, norm2, conv2; shortcut (1 x 1) where the channels change.
  """

  channels: int
  groups: int
  dropout: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, emb: jax.Array, train: bool) -> jax.Array:
    norm = lambda name: nn.GroupNorm(self.groups, epsilon=EPS, dtype=self.dtype, name=name)
    dense = lambda name: nn.Dense(self.channels, kernel_init=xavier, dtype=self.dtype, name=name)
    h = _conv(self.channels, self.dtype, "conv1")(nn.silu(norm("norm1")(x)))
    h = h + dense("time")(nn.silu(emb))[:, None, None, :]
    h = nn.silu(norm("norm2")(axes.constrain(h, axes.BATCH)))
    h = nn.Dropout(self.dropout, deterministic=not train)(h)
    h = _conv(self.channels, self.dtype, "conv2", init=nn.initializers.zeros)(h)
    if x.shape[-1] != self.channels:
      x = dense("shortcut")(x)
    return axes.constrain(x + h, axes.BATCH)


class AttnBlock(nn.Module):
  """x + out(attention(norm(x))) over all pixels; out is zero at first.

  Parameters norm, query, key, value, out.
  """

  num_heads: int
  groups: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H, W, C]."""
    width = x.shape[-1]
    dense = lambda name, init: nn.Dense(width, kernel_init=init, dtype=self.dtype, name=name)
    y = nn.GroupNorm(self.groups, epsilon=EPS, dtype=self.dtype, name="norm")(x)
    y = rearrange(y, "B H W C -> B (H W) C")
    q, k, v = (
      rearrange(dense(name, xavier)(y), "B N (h d) -> B N h d", h=self.num_heads)
      for name in ("query", "key", "value")
    )
    y = rearrange(attention(q, k, v), "B N h d -> B N (h d)")
    y = dense("out", nn.initializers.zeros)(y)
    return axes.constrain(x + y.reshape(x.shape), axes.BATCH)


class Stage(nn.Module):
  """One resolution: residual blocks, each with attention where asked, then down or up.

  Parameters resnet_<i>, attn_<i>, and `down` (stride 2) or `up` (after nearest-neighbour doubling).
  On the way up each block first takes one of `skips`, last one first, beside its input.
  """

  channels: int
  num_res_blocks: int
  attend: bool
  num_heads: int
  groups: int
  dropout: float
  remat: str
  dtype: jnp.dtype
  down: bool = False
  up: bool = False

  @nn.compact
  def __call__(self, x, emb, skips: list | None, train: bool) -> tuple[jax.Array, list]:
    """[B, H, W, C] -> the same at this stage's channels and next size; what skips hold after it."""
    res, attn = ResBlock, AttnBlock
    if self.remat != "none":
      res = nn.remat(ResBlock, policy=REMAT[self.remat], static_argnums=(3,))
      attn = nn.remat(AttnBlock, policy=REMAT[self.remat])
    upward, skips = skips is not None, list(skips or ())
    for i in range(self.num_res_blocks):
      if upward:
        x = jnp.concatenate([x, skips.pop()], axis=-1)
      x = res(self.channels, self.groups, self.dropout, self.dtype, name=f"resnet_{i}")(
        x, emb, train
      )
      if self.attend:
        x = attn(self.num_heads, self.groups, self.dtype, name=f"attn_{i}")(x)
      if not upward:
        skips.append(x)
    if self.down:
      x = _conv(self.channels, self.dtype, "down", stride=2)(x)
      skips.append(x)
    if self.up:
      x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
      x = _conv(self.channels, self.dtype, "up")(x)
    return axes.constrain(x, axes.BATCH), skips


class UNet(nn.Module):
  """conv_in, stages down_<i>, mid (block, attention, block), stages up_<i>, norm_out, conv_out.

      time_embed_0, time_embed_1                         [B] -> [B, 4 * channels]
      class_embed/embedding [num_classes + 1, 4 * channels]   the last row is the null class
      down_<i>/{resnet_<j>/..., attn_<j>/..., down}      num_res_blocks blocks
      mid_0/resnet_0, mid_0/attn_0, mid_1/resnet_0
      up_<i>/{resnet_<j>/..., attn_<j>/..., up}          num_res_blocks + 1 blocks; i as in down_<i>
      norm_out, conv_out                                 zero at first

  Convolutions are 3 x 3 kernels [3, 3, C, D], the rest dense.

  Attributes:
    channels, channel_mults: level i has channels * channel_mults[i] channels and half the size of
      the level before.
    attention_resolutions: heights at which blocks attend, for an input of `image_size`.
    num_classes: None, or a label steers the network; label `num_classes` is the null class of
      classifier-free guidance (arXiv:2207.12598).
    image_size, out_channels: what it makes, for samplers; it also runs on other sizes.
    remat: what the backward pass keeps of each block (`layers.stack.REMAT`).
    dtype: of the computation; parameters are always float32.
  """

  channels: int = 128
  channel_mults: tuple[int, ...] = (1, 2, 2, 2)
  num_res_blocks: int = 2
  attention_resolutions: tuple[int, ...] = (16,)
  num_heads: int = 1
  dropout: float = 0.0
  num_classes: int | None = None
  groups: int = 32
  out_channels: int = 3
  image_size: tuple[int, int] = (32, 32)
  remat: str = "none"
  dtype: str = "float32"

  @nn.compact
  def __call__(
    self, z: jax.Array, t: jax.Array, label: jax.Array | None = None, *, train: bool = False
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """z [B, H, W, C], t [B] in about 0..1000, label int32 [B] -> ([B, H, W, C'], intermediates).

    The output is float32. Without a label a network with classes takes the null class.
    Intermediates: `embedding` of time and class [B, 4 * channels], `down_<i>` [B, H / 2^i, W / 2^i,
    D] before the convolution that halves it, `mid`, and `up_<i>` after the one that doubled it.

    Raises:
      UserError: the image does not halve as often as there are levels; a label without classes.
    """
    dtype, levels = jnp.dtype(self.dtype), len(self.channel_mults)
    check_image(z.shape[1:3], levels)
    emb = time_embedding(t, self.channels).astype(dtype)
    dense = lambda name: nn.Dense(4 * self.channels, kernel_init=xavier, dtype=dtype, name=name)
    emb = dense("time_embed_1")(nn.silu(dense("time_embed_0")(emb)))
    if self.num_classes is not None:
      if label is None:
        label = jnp.full(t.shape, self.num_classes, jnp.int32)
      embed = nn.Embed(self.num_classes + 1, 4 * self.channels, dtype=dtype, name="class_embed")
      emb = emb + embed(label)
    elif label is not None:
      raise UserError("config.model: U-Net without num_classes was given labels")
    emb = axes.constrain(emb, axes.BATCH)

    def stage(name: str, level: int, blocks: int, attend: bool | None = None, **way: bool) -> Stage:
      if attend is None:
        attend = self.image_size[0] >> level in self.attention_resolutions
      return Stage(
        self.channels * self.channel_mults[level],
        blocks,
        attend,
        self.num_heads,
        self.groups,
        self.dropout,
        self.remat,
        dtype,
        name=name,
        **way,
      )

    out = {"embedding": emb}
    x = axes.constrain(_conv(self.channels, dtype, "conv_in")(z.astype(dtype)), axes.BATCH)
    skips, last = [x], levels - 1
    for i in range(levels):
      x, new = stage(f"down_{i}", i, self.num_res_blocks, down=i < last)(x, emb, None, train)
      skips, out[f"down_{i}"] = skips + new, new[self.num_res_blocks - 1]
    x, _ = stage("mid_0", last, 1, attend=True)(x, emb, None, train)
    x, _ = stage("mid_1", last, 1, attend=False)(x, emb, None, train)
    out["mid"] = x
    for i in reversed(range(levels)):
      x, skips = stage(f"up_{i}", i, self.num_res_blocks + 1, up=i > 0)(x, emb, skips, train)
      out[f"up_{i}"] = x
    x = nn.silu(nn.GroupNorm(self.groups, epsilon=EPS, dtype=dtype, name="norm_out")(x))
    x = _conv(self.out_channels, dtype, "conv_out", init=nn.initializers.zeros)(x)
    return axes.constrain(x.astype(jnp.float32), axes.BATCH), out


def check_image(size: tuple[int, int], levels: int) -> None:
  """Raises `UserError` where the image does not halve `levels - 1` times."""
  factor = 2 ** (levels - 1)
  if any(s % factor for s in size):
    raise UserError(
      f"config.model: image {size[0]} x {size[1]} does not halve {levels - 1} times; with "
      f"{levels} channel_mults it must be a multiple of {factor}"
    )


def make(**kwargs: Any) -> UNet:
  """A U-Net from its attributes; `image_size` may be one number for both directions.

  Raises:
    UserError: an unknown attribute, remat policy or dtype; an image that does not halve; channels
      that groups or heads do not divide.
  """
  where = "config.model: U-Net"
  if "image_size" in kwargs:
    size = kwargs["image_size"]
    kwargs["image_size"] = (size,) * 2 if isinstance(size, int) else tuple(size)
  for key in ("channel_mults", "attention_resolutions"):
    if key in kwargs:
      kwargs[key] = tuple(kwargs[key])
  model = call(UNet, kwargs, where)
  for key, known in dict(remat=tuple(REMAT), dtype=DTYPES).items():
    if getattr(model, key) not in known:
      raise unknown(f"{where} {key}", getattr(model, key), known)
  if not model.channel_mults:
    raise UserError(f"{where} channel_mults = (); expected one number a level, e.g. (1, 2, 2, 2)")
  check_image(model.image_size, len(model.channel_mults))
  for width in (model.channels * m for m in model.channel_mults):
    for key in ("groups", "num_heads"):
      if width % getattr(model, key):
        raise UserError(f"{where} {key} = {getattr(model, key)} does not divide {width} channels")
  if model.channels % 2 or model.channels < 4:
    raise UserError(f"{where} channels = {model.channels}; expected an even number from 4 on")
  return model
