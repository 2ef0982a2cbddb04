"""The one schema of examples: what each key holds, from the source on."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Key(NamedTuple):
  """`forms`: what the value may be, `dtype [axes]` or a type of Python, in the order of ops."""

  forms: str
  meaning: str


KEYS = {
  "index": Key("int", "position of the row in the stream, set by the reader"),
  "label": Key("int | int32 []", "class, from 0 on"),
  "text": Key("str | list | int32 [L]", "caption, or a list of them; token ids after `tokenize`"),
  "image": Key(
    "bytes | uint8 [H, W, C] | float32 [H, W, C]",
    "encoded; after `decode` 0 to 255; after `value_range` in its range",
  ),
  "depth": Key("bytes | float32 [H, W, 1]", "encoded; after `decode_depth` metres, 0 unknown"),
  "segmentation": Key("bytes | int32 [H, W, 1]", "encoded; after `decode_segmentation` ids"),
  "object_masks": Key("bool [N, H, W]", "a mask for each object"),
  "boxes": Key("float32 [N, 4]", "y0, x0, y1, x1 of each object, as fractions of the image"),
  "video": Key("bytes | uint8 [T, H, W, 3] | float32 [T, H, W, 3]", "frames in order"),
  "fps": Key("float", "frames per second of `video`"),
  "frame_times": Key("float32 [T]", "seconds from the start of the file, of each frame"),
  "audio": Key("bytes | float32 [S]", "encoded; then samples of one channel, -1 to 1"),
  "sample_rate": Key("int", "samples per second of `audio`"),
  "audio_length": Key("int", "samples of `audio` before it was padded"),
  "spectrogram": Key("float32 [F, M]", "frames by mel bins"),
  "document": Key("list", "parts in order, each {text: str} or {image: bytes}"),
  "images": Key("uint8 [K, H, W, 3] | float32 [K, H, W, 3]", "pictures of a document"),
  "image_mask": Key("bool [K]", "which of several pictures are there"),
  "global": Key("uint8 [V, H, W, C] | float32 [V, H, W, C]", "large views of `multi_crop`"),
  "local": Key("uint8 [V, H, W, C] | float32 [V, H, W, C]", "its small views"),
  "mask": Key("bool [N] | bool [H, W] | bool [T, H, W]", "True: the patch is hidden"),
  "context_mask": Key("bool [N]", "True: the patch is in the context (I-JEPA)"),
  "target_masks": Key("bool [K, N]", "True: the patch is in this target"),
  "patches": Key("uint8 [N, D] | float32 [N, D]", "of an image in its own aspect ratio"),
  "patch_mask": Key("bool [N]", "True: a patch, not padding"),
  "patch_positions": Key("int32 [N, 2]", "row and column of each patch"),
  "patch_grid": Key("int32 [2]", "rows and columns of the image's patches"),
  "segment_ids": Key("int32 [L]", "which of the packed examples, from 1 on; 0 is padding"),
  "positions": Key("int32 [L]", "place within the packed example"),
  "prefix_mask": Key("bool [L]", "True: the token sees the whole prefix"),
  "loss_mask": Key("bool [L]", "True: the token is to be predicted"),
  "inputs": Key("int32 [L]", "tokens of the encoder, after `span_mask`"),
  "targets": Key("int32 [L]", "tokens that the decoder is to write, after `span_mask`"),
  "labels": Key("int32 [L]", "tokens that `bert_mask` hid, -1 elsewhere"),
  "record": Key("bytes", "a record that is not parsed"),
}
_TYPES = {"int": (int, np.integer), "float": (float, int, np.floating), "str": (str,)}
_TYPES |= {"bytes": (bytes, bytearray), "list": (list, tuple)}


def table() -> str:
  """The schema as a table in Markdown."""
  rows = [
    f"| `{k}` | {form.replace('|', 'or')} | {meaning} |" for k, (form, meaning) in KEYS.items()
  ]
  return "\n".join(["| key | value | meaning |", "|---|---|---|", *rows]) + "\n"


def check(example: Mapping[str, Any]) -> None:
  """Keys that the schema does not know may hold anything.

  Raises:
    ValueError: a key of the schema whose value has none of its forms.
  """
  for key, value in example.items():
    if key in KEYS and not any(_is(form, value) for form in KEYS[key].forms.split(" | ")):
      shown = f"{value.dtype}{value.shape}" if hasattr(value, "shape") else type(value).__name__
      raise ValueError(f"{key} is {shown}; the schema has {KEYS[key].forms}")
  for part in example.get("document", ()):
    if len(part) != 1 or not part.keys() <= {"text", "image"}:
      raise ValueError(f"a part of document has the keys {', '.join(part)}; text or image expected")
    check(part)


def _is(form: str, value: Any) -> bool:
  match = re.fullmatch(r"(\w+) \[(.*)\]", form)
  if match is None:
    return isinstance(value, _TYPES[form]) and not isinstance(value, (bool, np.bool_))
  if not isinstance(value, np.ndarray) or value.dtype != match[1]:
    return False
  axes = match[2].split(", ") if match[2] else []
  return value.ndim == len(axes) and all(
    size == int(axis) for size, axis in zip(value.shape, axes) if axis.isdigit()
  )
