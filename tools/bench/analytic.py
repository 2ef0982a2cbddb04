"""FLOPs of SigLIP and MAE by their formulas: 2 x multiply-accumulates, attention included.

    block of N tokens   2 N (4 D^2 + 2 D F) + 4 N^2 D
    patches             2 N (p q C) D, of the visible ones only
    MAP head            keys and values of all tokens 4 N D^2; query, output, scores and MLP of one
    step                3 x forward: the backward pass is two products for each one

Nothing here looks at a program: it is what compiled and counted FLOPs are held against.
"""

from typing import NamedTuple

from big_vision_like.models.vit import SIZES


class Size(NamedTuple):
  """Of a transformer; `of("B")` takes those of `models.vit`."""

  width: int
  depth: int
  mlp_dim: int

  @classmethod
  def of(cls, variant: str) -> "Size":
    return cls(*SIZES[variant][:3])


def blocks(size: Size, tokens: int) -> int:
  """Of one example through all blocks."""
  d, f = size.width, size.mlp_dim
  return size.depth * (2 * tokens * (4 * d * d + 2 * d * f) + 4 * tokens * tokens * d)


def image_tower(size: Size, *, patch: int, res: int = 224, visible: float = 1.0) -> int:
  """Of one image with a MAP head; `visible` is the share of patches that are kept (FLIP)."""
  d, f, tokens = size.width, size.mlp_dim, round(visible * (res // patch) ** 2)
  embed = 2 * tokens * 3 * patch * patch * d
  pool = 4 * tokens * d * d + 4 * d * d + 4 * tokens * d + 4 * d * f
  return embed + blocks(size, tokens) + pool


def text_tower(size: Size, tokens: int = 64) -> int:
  """Of one text, the last token projected to the width of the image."""
  return blocks(size, tokens) + 2 * size.width**2


def siglip(variant: str, *, visible: float = 1.0, tokens: int = 64) -> int:
  """Of loss and gradients of one pair, without the loss itself; `variant` such as "B/16"."""
  name, patch = variant.split("/")
  image = image_tower(Size.of(name), patch=int(patch), visible=visible)
  return 3 * (image + text_tower(Size.of(name), tokens))


DECODER = Size(512, 8, 2048)


def mae_encoder(variant: str, *, visible: float = 0.25) -> int:
  """Of the visible patches of one image and the class token."""
  name, patch = variant.split("/")
  size, patch = Size.of(name), int(patch)
  tokens = round(visible * (224 // patch) ** 2)
  return 2 * tokens * 3 * patch * patch * size.width + blocks(size, tokens + 1)


def mae_decoder(variant: str, *, visible: float = 0.25, decoder: Size = DECODER) -> int:
  """Of all patches of one image, from the encoder's width to pixels."""
  name, patch = variant.split("/")
  patch, width = int(patch), SIZES[name][0]
  patches = (224 // patch) ** 2
  embed = 2 * (round(visible * patches) + 1) * width * decoder.width
  predict = 2 * patches * decoder.width * 3 * patch * patch
  return embed + blocks(decoder, patches + 1) + predict


def mae(variant: str) -> int:
  """Of loss and gradients of one image, 75 % hidden."""
  return 3 * (mae_encoder(variant) + mae_decoder(variant))


def mae_saving(variant: str) -> float:
  """How many times more a ViT needs that sees every patch and averages them."""
  name, patch = variant.split("/")
  size, patch = Size.of(name), int(patch)
  tokens = (224 // patch) ** 2
  return 3 * (2 * tokens * 3 * patch * patch * size.width + blocks(size, tokens)) / mae(variant)
