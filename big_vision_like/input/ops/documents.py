"""Ops on `document`, a list of {"text": str} and {"image": bytes} in order."""

import numpy as np

from big_vision_like.config import UserError, whole_number
from big_vision_like.input.ops.image import decode, resize


def interleave(
  max_images: int,
  image_size: int,
  placeholder: str = "<image>",
  sep: str = "",
  method: str = "bilinear",
):
  """`document` -> text with a placeholder for each picture, images, image_mask.

  text: the texts and placeholders, joined by `sep`. images: uint8 [max_images, image_size,
  image_size, 3], decoded and resized whatever their aspect ratio, zeros where there are fewer.
  image_mask: bool [max_images], which of them are there. Pictures after the first `max_images` are
  dropped with their placeholders; a placeholder that stands in a text is taken out of it, so that
  the k-th in `text` is the k-th of `images`. `document` goes.

  Args:
    max_images: pictures that are kept.
    image_size: of the squares.
    placeholder: stands for a picture ("<image>", as in Flamingo, arXiv:2204.14198).
    sep: between the parts ("").
    method: of the resizing (bilinear), see `resize`.

  Raises:
    UserError: a count or size that is not positive, an empty placeholder, an unknown method.
  """
  whole_number(max_images, "op interleave: max_images")
  whole_number(image_size, "op interleave: image_size")
  if not placeholder or placeholder in sep:
    raise UserError(f"op interleave: placeholder = {placeholder!r}; expected a text not in sep")
  decoded, resized = decode(), resize(image_size, method=method)

  def run(example, rng):
    texts: list[list[str]] = [[]]  # before, between and after the pictures
    images = np.zeros((max_images, image_size, image_size, 3), np.uint8)
    for part in example["document"]:
      if "text" in part:
        texts[-1].append(part["text"])
      elif len(texts) <= max_images:
        picture = resized(decoded({"image": part["image"]}, rng), rng)["image"]
        images[len(texts) - 1] = picture
        texts.append([])
    count = len(texts) - 1
    pieces = []
    for i, between in enumerate(texts):
      text = _without(sep.join(between), placeholder)
      pieces += ([placeholder] if i else []) + ([text] if text else [])
    out = {k: v for k, v in example.items() if k != "document"}
    mask = np.arange(max_images) < count
    return {**out, "text": sep.join(pieces), "images": images, "image_mask": mask}

  return run


def _without(text: str, placeholder: str) -> str:
  while placeholder in text:  # taking one out may make another
    text = text.replace(placeholder, "")
  return text
