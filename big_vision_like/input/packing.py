"""Packing: windows of examples become rows of several examples each, of static shapes.

`config.input.pack = "pack_text(length=512, rows=8, examples=40)"`. Rows are made of `examples`
consecutive examples of the stream and of no others, so a row is a function of its number, however
many processes read, and from wherever they start. Examples that find no room in their window's rows
are left out and counted (`input/unpacked`): give so many that few are.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from big_vision_like.config import UserError, call, parse_spec, unknown, whole_number

Example = dict[str, Any]


class Packer(Protocol):
  """`examples` examples -> `rows` rows, and how many of the examples are in none."""

  rows: int
  examples: int

  def __call__(self, examples: list[Example]) -> tuple[list[Example], int]: ...


def first_fit_decreasing(
  sizes: Sequence[int], capacity: int, bins: int, most: int | None = None
) -> list[list[int]]:
  """Which items go into which bin: the largest first, each into the first bin with room.

  Johnson 1973, "Near-optimal bin packing algorithms". Items of one size go by their number; within
  a bin they are in order. Items of no size are left out, and so are those that find no room.

  Args:
    sizes: of the items.
    capacity: of every bin.
    bins: number of them.
    most: items in a bin.
  """
  free, out = [capacity] * bins, [[] for _ in range(bins)]
  for item in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
    for b in range(bins):
      if 0 < sizes[item] <= free[b] and (most is None or len(out[b]) < most):
        out[b].append(item)
        free[b] -= sizes[item]
        break
  return [sorted(items) for items in out]


class PackText:
  """Texts, one after the other, in rows of `length` tokens.

  In a row are the tokens of `key`, int32 `segment_ids` (1, 2, ... for its texts, 0 for padding) and
  int32 `positions` (0, 1, ... within each text), all [length]; attention must stay within a
  segment. First fit decreasing. Other keys of the examples are not in the rows.

  Args:
    length: tokens of a row.
    rows, examples: so many examples become so many rows.
    key: of the tokens, [n] of any n; padding at its end is taken off.
    pad: id of padding.
    beside: further keys, [n] as `key`, which are packed along (`loss_mask`).
  """

  def __init__(
    self,
    length: int,
    rows: int,
    examples: int,
    key: str = "text",
    pad: int = 0,
    beside: tuple[str, ...] = (),
  ):
    self.length = whole_number(length, "pack_text: length")
    self.rows = whole_number(rows, "pack_text: rows")
    self.examples = whole_number(examples, "pack_text: examples")
    self.pad = whole_number(pad, "pack_text: pad", 0)
    self.key, self.beside = key, (beside,) if isinstance(beside, str) else tuple(beside)

  def __call__(self, examples: list[Example]) -> tuple[list[Example], int]:
    """`Packer`'s."""
    _check("pack_text", examples, (self.key, *self.beside))
    sizes = [len(without_padding(np.asarray(e[self.key]), self.pad)) for e in examples]
    packed = first_fit_decreasing(sizes, self.length, self.rows)
    rows = []
    for items in packed:
      row = _segments(sizes, items, self.length)
      for key in (self.key, *self.beside):
        fill = self.pad if key == self.key else 0
        row[key] = _concatenated("pack_text", key, examples, sizes, items, self.length, fill)
      rows.append(row)
    return rows, len(examples) - sum(map(len, packed))


class PackPatches:
  """Images of any number of patches, one after the other, in rows of `tokens` patches.

  Patch n' Pack, NaViT, Dehghani et al. 2023 (arXiv:2307.06304), Sec. 2.1. The examples come from
  op `patchify_native`; a row has `patches` [tokens, d], `patch_mask` [tokens], `patch_positions`
  [tokens, 2] and int32 `segment_ids` [tokens] (1, 2, ... for its images, 0 for padding); attention
  must stay within a segment. First fit decreasing.

  Args:
    tokens: patches of a row.
    rows, examples: so many examples become so many rows.
    images: most images in a row.
    per_image: keys that an image has once (`label`, `text`): [images, ...] in a row, that of
      segment s at s - 1, zeros for those there are not; with them bool `image_mask` [images].
  """

  def __init__(
    self,
    tokens: int,
    rows: int,
    examples: int,
    images: int = 16,
    per_image: tuple[str, ...] = (),
  ):
    self.tokens = whole_number(tokens, "pack_patches: tokens")
    self.rows = whole_number(rows, "pack_patches: rows")
    self.examples = whole_number(examples, "pack_patches: examples")
    self.images = whole_number(images, "pack_patches: images")
    self.per_image = (per_image,) if isinstance(per_image, str) else tuple(per_image)

  def __call__(self, examples: list[Example]) -> tuple[list[Example], int]:
    """`Packer`'s."""
    keys = ("patches", "patch_positions")
    _check("pack_patches", examples, (*keys, "patch_mask", *self.per_image))
    sizes = [int(np.sum(e["patch_mask"])) for e in examples]
    packed = first_fit_decreasing(sizes, self.tokens, self.rows, self.images)
    rows = []
    for items in packed:
      row = {"segment_ids": _segments(sizes, items, self.tokens)["segment_ids"]}
      row["patch_mask"] = row["segment_ids"] > 0
      for key in keys:
        row[key] = _concatenated("pack_patches", key, examples, sizes, items, self.tokens, 0)
      if self.per_image:
        row["image_mask"] = np.arange(self.images) < len(items)
      for key in self.per_image:
        one_each = [{key: np.asarray(e[key])[None]} for e in examples]
        row[key] = _concatenated(
          "pack_patches", key, one_each, [1] * len(examples), items, self.images, 0
        )
      rows.append(row)
    return rows, len(examples) - sum(map(len, packed))


PACKERS: dict[str, type] = {"pack_text": PackText, "pack_patches": PackPatches}


def build(spec: str, where: str = "config.input.pack") -> Packer:
  """`"pack_text(length=512, rows=8, examples=40)"` -> that packer.

  Raises:
    UserError: more than one packer, an unknown one, or arguments it does not take.
  """
  calls = parse_spec(spec, where)
  if len(calls) != 1:
    raise UserError(f"{where} = {spec!r}; expected one of {', '.join(PACKERS)}, with arguments")
  [(name, args, kwargs)] = calls
  if name not in PACKERS:
    raise unknown(where, name, list(PACKERS))
  return call(PACKERS[name], kwargs, f"{where}: {name}", *args)


def without_padding(ids: np.ndarray, pad: int) -> np.ndarray:
  """[n] without the `pad`s at its end."""
  used = np.flatnonzero(ids != pad)
  return ids[: used[-1] + 1] if len(used) else ids[:0]


def _check(packer: str, examples: list[Example], keys: Sequence[str]) -> None:
  for example in examples:
    for key in keys:
      if key not in example:
        raise UserError(
          f"config.input.pack: {packer}: examples have no key {key!r}; they have "
          f"{', '.join(example)}"
        )


def _segments(sizes: Sequence[int], items: Sequence[int], length: int) -> Example:
  """int32 [length] each: number of the item in its row, from 1, and position in the item."""
  segment, position = np.zeros((2, length), np.int32)
  start = 0
  for number, item in enumerate(items, 1):
    here = slice(start, start + sizes[item])
    segment[here], position[here] = number, np.arange(sizes[item])
    start = here.stop
  return {"segment_ids": segment, "positions": position}


def _concatenated(
  packer: str,
  key: str,
  examples: list[Example],
  sizes: Sequence[int],
  items: Sequence[int],
  length: int,
  fill: Any,
) -> np.ndarray:
  """The first `sizes[i]` of `key` of those examples, one after the other, [length, ...]."""
  like = np.asarray(examples[0][key])
  out = np.full((length, *like.shape[1:]), fill, like.dtype)
  start = 0
  for item in items:
    value = np.asarray(examples[item][key])
    if (value.shape[1:], value.dtype) != (like.shape[1:], like.dtype) or len(value) < sizes[item]:
      raise UserError(
        f"config.input.pack: {packer}: {key} is {like.dtype}{like.shape} and "
        f"{value.dtype}{value.shape}; expected one dtype, and {sizes[item]} tokens or more"
      )
    out[start : start + sizes[item]] = value[: sizes[item]]
    start += sizes[item]
  return out
