"""ResNet (He et al., arXiv:1512.03385) with the stride in the 3x3 convolution ("v1.5").

image -> stem -> four stages of residual blocks -> mean over positions -> head
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_vision_like import axes
from big_vision_like.config import UserError, call, unknown
from big_vision_like.layers.batch_norm import BatchNorm
from big_vision_like.layers.transformer import DTYPES

VARIANTS = {  # bottleneck, blocks of each stage
  "18": (False, (2, 2, 2, 2)),
  "34": (False, (3, 4, 6, 3)),
  "50": (True, (3, 4, 6, 3)),
  "101": (True, (3, 4, 23, 3)),
  "152": (True, (3, 8, 36, 3)),
}
STEMS = ("imagenet", "small")
# arXiv:1502.01852 over the fan-out, as in the reference code of the paper.
kaiming = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def conv(features: int, kernel: int, stride: int, dtype: jnp.dtype, name: str) -> nn.Conv:
  """Without bias; padded by kernel // 2 on all sides, which `SAME` is not where the stride is 2."""
  pad = kernel // 2
  return nn.Conv(
    features,
    (kernel, kernel),
    strides=(stride, stride),
    padding=[(pad, pad)] * 2,
    use_bias=False,
    kernel_init=kaiming,
    dtype=dtype,
    name=name,
  )


class Block(nn.Module):
  """relu(x + f(x)), f two 3x3 convolutions, or 1x1, 3x3, 1x1 with four times as many outputs.

  Parameters conv1, bn1, conv2, bn2, (conv3, bn3), and where the shape changes shortcut_conv,
  shortcut_bn.
  """

  width: int
  stride: int
  bottleneck: bool
  groups: int
  zero_init: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """[B, H, W, C] -> [B, H / stride, W / stride, width or 4 width]."""
    norm = partial(BatchNorm, groups=self.groups, dtype=self.dtype)
    if self.bottleneck:  # (features, kernel, stride) of each convolution
      layers = [(self.width, 1, 1), (self.width, 3, self.stride), (4 * self.width, 1, 1)]
    else:
      layers = [(self.width, 3, self.stride), (self.width, 3, 1)]
    y = x
    for i, (features, kernel, stride) in enumerate(layers, 1):
      last = i == len(layers)
      y = conv(features, kernel, stride, self.dtype, f"conv{i}")(y)
      y = norm(zero_scale=last and self.zero_init, name=f"bn{i}")(y, train=train)
      y = y if last else nn.relu(y)
    if x.shape != y.shape:
      x = conv(y.shape[-1], 1, self.stride, self.dtype, "shortcut_conv")(x)
      x = norm(name="shortcut_bn")(x, train=train)
    return axes.constrain(nn.relu(x + y), axes.BATCH)


class ResNet(nn.Module):
  """Parameters stem_conv, stem_bn, stage1_block0/..., head; statistics in `batch_stats`.

  Attributes:
    bottleneck: blocks of three convolutions (from 50 layers on) or of two.
    stages: blocks of each stage; width and, but for the first, stride double.
    width: channels of the first stage; 128 is the "w2" of self-supervised papers.
    stem: `imagenet` (7x7 stride 2 and max-pool, together 1/4), `small` (3x3, full resolution).
    groups: batch statistics of that many groups of consecutive examples, see `BatchNorm`.
    zero_init: residual branches start as zero (arXiv:1706.02677, Sec. 5.1).
    num_classes: size of the linear head, or None.
  """

  bottleneck: bool
  stages: tuple[int, ...]
  width: int = 64
  stem: str = "imagenet"
  groups: int = 1
  zero_init: bool = True
  num_classes: int | None = None
  dtype: str = "float32"

  @nn.compact
  def __call__(
    self, image: jax.Array, *, train: bool = False
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """[B, H, W, C] -> ([B, D], or [B, K] with a head; intermediates).

    Intermediates: `stem`, `stage1` ... `stage4` [B, h, w, c], `pooled` [B, D], `logits` [B, K].
    """
    dtype = jnp.dtype(self.dtype)
    large = self.stem == "imagenet"
    kernel, stride = (7, 2) if large else (3, 1)
    x = conv(self.width, kernel, stride, dtype, "stem_conv")(image.astype(dtype))
    x = nn.relu(BatchNorm(groups=self.groups, dtype=dtype, name="stem_bn")(x, train=train))
    if large:
      x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    out = {"stem": axes.constrain(x, axes.BATCH)}
    for s, blocks in enumerate(self.stages):
      for b in range(blocks):
        stride = 2 if s > 0 and b == 0 else 1
        args = (self.width * 2**s, stride, self.bottleneck, self.groups, self.zero_init, dtype)
        x = Block(*args, name=f"stage{s + 1}_block{b}")(x, train)
      out[f"stage{s + 1}"] = x
    x = out["pooled"] = axes.constrain_batch(jnp.mean(x, axis=(1, 2)))
    if self.num_classes is not None:
      init = nn.initializers.normal(0.01)
      x = nn.Dense(self.num_classes, kernel_init=init, dtype=dtype, name="head")(x)
      x = out["logits"] = axes.constrain_batch(x)
    return x, out


def make(
  variant: str | int = "50", *, stages: Sequence[int] | None = None, **kwargs: Any
) -> ResNet:
  """ "18", "34", "50", "101" or "152"; `stages` and all other attributes win over the variant's.

  Raises:
    UserError: an unknown variant, attribute, stem or dtype, or a count that is not positive.
  """
  where = "config.model: ResNet"
  if str(variant) not in VARIANTS:
    raise unknown(f"{where} variant", str(variant), list(VARIANTS))
  bottleneck, default = VARIANTS[str(variant)]
  model = call(
    ResNet, {"bottleneck": bottleneck, "stages": tuple(stages or default), **kwargs}, where
  )
  for key, known in (("stem", STEMS), ("dtype", DTYPES)):
    if getattr(model, key) not in known:
      raise unknown(f"{where} {key}", getattr(model, key), known)
  for key in ("width", "groups", "stages", "num_classes"):
    value = getattr(model, key)
    counts = value if isinstance(value, tuple) else (value,)
    if value is not None and not all(isinstance(n, int) and n > 0 for n in counts):
      raise UserError(f"{where} {key} = {value!r}; expected whole numbers above 0")
  return model
