"""Rows of a batch as pictures and texts: what each key is, is told from its name and shape."""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from big_vision_like import augment
from big_vision_like.config import parse_spec
from big_vision_like.input import ops, tokenizers
from big_vision_like.input.sources import functions
from tools.show_input import pictures

SHOWN_IDS = 24


class Shown(NamedTuple):
  """An example on the page: (key, picture) and (key, text)."""

  title: str
  pictures: list[tuple[str, np.ndarray]]
  texts: list[tuple[str, str]]


class Reading(NamedTuple):
  """How ops say their results are to be read.

  Attributes:
    scale: key of an image -> (factor, summand) that bring it to 0..1.
    tokenizer: key of tokens -> what decodes them.
  """

  scale: dict[str, tuple[np.ndarray, np.ndarray]]
  tokenizer: dict[str, Any]


def reading(pp: str, augmented: str = "") -> Reading:
  """From the ops of a part, and of `config.augment`."""
  known = functions(ops.MODULES)
  calls = [(known[c.name], c) for c in parse_spec(pp, "pp")]
  calls += [(augment.OPS[c.name], c) for c in parse_spec(augmented, "config.augment")]
  out = Reading({}, {})
  for fn, (name, args, kwargs) in calls:
    bound = inspect.signature(fn).bind(*args, **kwargs)
    bound.apply_defaults()
    a = bound.arguments
    f32 = lambda *values: tuple(np.asarray(v, np.float32) for v in values)
    if name == "value_range":
      span = a["high"] - a["low"]
      out.scale[a["key"]] = f32(1 / span, -a["low"] / span) if span else f32(1, 0)
    elif name in ("standardize", "normalize") and {"mean", "std", "key"} <= a.keys():
      out.scale[a["key"]] = f32(a["std"], a["mean"])
    elif name in ("copy", "rename"):
      for had in out:
        if a["source"] in had:
          had[a["target"]] = had[a["source"]]
    elif {"model", "key"} <= a.keys():
      out.tokenizer[a["key"]] = tokenizers.by_name(a["model"], a.get("vocab_size"))
  return out


def shown(title: str, row: Mapping[str, Any], how: Reading) -> Shown:
  """All keys of a row."""
  out = Shown(title, [], [])
  row = {k: v for k, v in row.items() if k != "index"}
  if {"patches", "patch_grid"} <= row.keys():
    whole = pictures.from_patches(row["patches"], row["patch_grid"])
    if whole is not None:
      out.pictures.append(("patches", pictures.image(whole, how.scale.get("image"))))
      row = {k: v for k, v in row.items() if not k.startswith("patch")}
  masks = {}
  for key, value in row.items():
    if isinstance(value, np.ndarray) and value.dtype == bool and value.ndim:
      masks[key] = value
    elif (picture := _picture(key, value, how)) is not None:
      out.pictures.append((key, picture))
    else:
      out.texts.append((key, text(key, value, row, how)))
  base = next(
    (_first(row[k], how.scale.get(k)) for k, _ in out.pictures if _is_image(row, k)), None
  )
  for key, mask in masks.items():
    over = None if base is None or _of_tokens(mask, row) else _masked(base, mask)
    if over is not None:
      out.pictures.append((key, over))
    else:
      out.texts.append((key, f"{int(mask.sum())} of {mask.size}"))
  return out


def _is_image(row: Mapping[str, Any], key: str) -> bool:
  return key in row and np.ndim(row[key]) >= 3


def _first(x: np.ndarray, scale: Any) -> np.ndarray:
  """The picture, or first view or frame, that masks are drawn on."""
  while x.ndim > 3:
    x = x[0]
  return pictures.image(x, scale)


def _of_tokens(mask: np.ndarray, row: Mapping[str, Any]) -> bool:
  """Whether the row has as many tokens, so that the mask is theirs."""
  return any(
    isinstance(v, np.ndarray) and v.dtype.kind == "i" and v.shape == mask.shape
    for v in row.values()
  )


def _masked(base: np.ndarray, mask: np.ndarray) -> np.ndarray | None:
  """The base under one mask, or under each of several."""
  if mask.ndim == 3 and mask.shape[-1] == 1:
    mask = mask[..., 0]
  if mask.ndim == 1:
    grid = pictures.grid_of(mask, *base.shape[:2])
    return None if grid is None else pictures.overlay(base, grid)
  height, width = base.shape[:2]
  looks_like_grid = mask.ndim == 2 and 0.8 < mask.shape[0] / mask.shape[1] * width / height < 1.25
  if looks_like_grid:
    return pictures.overlay(base, mask)
  parts = [_masked(base, part) for part in mask[: pictures.MOST]]
  if any(part is None for part in parts):
    return pictures.overlay(base, mask) if mask.ndim == 2 else None
  return pictures.strip(parts)


def _picture(key: str, value: Any, how: Reading) -> np.ndarray | None:
  """A value as a picture; None where it is not one."""
  if not isinstance(value, np.ndarray) or not value.size or value.dtype.kind not in "uif":
    return None
  if value.ndim in (3, 4, 5) and value.shape[-1] in (1, 3, 4):
    scale = how.scale.get(key)
    if value.ndim == 3:
      return pictures.image(value, scale)
    return pictures.strip([pictures.image(x, scale) for x in value.reshape(-1, *value.shape[-3:])])
  if key == "audio" and value.ndim == 1:
    return pictures.wave(value)
  if key == "spectrogram" and value.ndim == 2:  # time to the right, high frequencies above
    return pictures.heat(value.T[::-1])
  if value.ndim == 2 and min(value.shape) >= 4 and (value.dtype.kind == "f" or _is_map(key)):
    return pictures.heat(value)
  return None


def _is_map(key: str) -> bool:
  return key in ("depth", "segmentation") or key.endswith("_map")


def text(key: str, value: Any, row: Mapping[str, Any], how: Reading) -> str:
  """A value in words."""
  if isinstance(value, (str, int, float)):
    return str(value)
  if isinstance(value, bytes):
    return f"{len(value):,} bytes"
  if isinstance(value, (list, tuple, dict)):
    return _plain(value)
  array = np.asarray(value)
  if not array.ndim:
    return f"{array.item():.6g}" if array.dtype.kind == "f" else str(array.item())
  tokenizer = how.tokenizer.get(key)
  if tokenizer is not None and array.dtype.kind in "iu" and array.ndim == 1:
    try:
      return " / ".join(tokenizer.decode(ids) for ids in _segments(array, row.get("segment_ids")))
    except (IndexError, ValueError, OverflowError):
      pass  # ids that are no piece of the model, such as a mask's: shown as they are
  head = ", ".join(f"{v:.4g}" for v in array.reshape(-1)[:SHOWN_IDS].tolist())
  rest = ", ..." if array.size > SHOWN_IDS else ""
  return f"{array.dtype}{list(array.shape)}: {head}{rest}"


def _segments(ids: np.ndarray, segments: Any) -> list[np.ndarray]:
  if segments is None or np.shape(segments) != ids.shape:
    return [ids]
  return [ids[segments == s] for s in np.unique(segments) if s > 0]


def _plain(value: Any) -> str:
  """Lists and dicts of texts, bytes and numbers, without what is long."""
  if isinstance(value, dict):
    return ", ".join(f"{k}: {_plain(v)}" for k, v in value.items())
  if isinstance(value, (list, tuple)):
    return " | ".join(_plain(v) for v in value)
  if isinstance(value, bytes):
    return f"{len(value):,} bytes"
  return f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else str(value)
