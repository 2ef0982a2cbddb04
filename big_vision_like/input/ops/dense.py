"""Ops on images with a depth map and a segmentation: decoding, and the same geometry for all."""

import inspect

import numpy as np

from big_vision_like.config import Call, UserError, parse_spec, unknown
from big_vision_like.input.bad import BadExample
from big_vision_like.input.formats import decoding
from big_vision_like.input.randomness import generator

_RANDOM = ("random_crop", "random_resized_crop", "random_place", "flip_lr", "flip_ud")
_GEOMETRY = (*_RANDOM, "resize", "resize_small", "resize_long", "central_crop", "pad")


def _values(data: bytes, what: str) -> np.ndarray:
  """Bytes of a picture of one channel -> [H, W, 1], the numbers of the file."""
  try:
    mode, values = decoding.numbers(data)
  except BadExample as e:
    raise BadExample(e.kind, f"{what}: {e}") from None
  if values.ndim != 2:
    raise BadExample(f"not a {what}", f"{mode} {values.shape}; expected one channel")
  return _unscaled(values, data)[..., None]


def _unscaled(values: np.ndarray, data: bytes) -> np.ndarray:
  """Grey PNGs of 2 and 4 bits, which PIL scales to 0..255, with the numbers of the file."""
  bits, colour = data[24:26] if data[:4] == b"\x89PNG" else (8, 0)
  return values // {2: 85, 4: 17}[bits] if colour == 0 and bits in (2, 4) else values


def decode_depth(scale: float = 1000.0, key: str = "depth"):
  """Bytes of a depth map -> float32 [H, W, 1] in metres, 0 where it is unknown; arrays stay.

  `scale`: what the file counts as a metre: 1000 (default) for 16-bit PNGs in millimetres, as of
  Kinect and PrimeSense cameras; 5000 TUM RGB-D, 256 KITTI.
  """
  if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not scale > 0:
    raise UserError(f"op decode_depth: scale = {scale!r}; expected a number above 0")

  def run(example, rng):
    if not isinstance(example[key], (bytes, bytearray)):
      return example
    values = _values(example[key], "depth map").astype(np.float32)
    return {**example, key: values / np.float32(scale)}

  return run


def decode_segmentation(key: str = "segmentation"):
  """Bytes of a segmentation -> int32 [H, W, 1]: the ids of a grey or palette PNG; arrays stay."""

  def run(example, rng):
    if not isinstance(example[key], (bytes, bytearray)):
      return example
    return {**example, key: _values(example[key], "segmentation").astype(np.int32)}

  return run


def jointly(spec: str, keys: tuple[str, ...] = ("image", "depth", "segmentation")):
  """Geometric ops with the same random numbers for image, depth and segmentation.

  `jointly('random_resized_crop(224)|flip_lr')`: one crop and one flip for all. The image is resized
  by the method of the op, all other keys by nearest neighbour: ids and depths are not interpolated.

  Args:
    spec: of random_crop, random_resized_crop, random_place, flip_lr, flip_ud, resize, resize_small,
      resize_long, central_crop and pad.
    keys: arrays [H, W, C] of equal H and W; those that the example lacks are left out.

  Raises:
    UserError: an op that is none of these, or its arguments are wrong.
  """
  from big_vision_like.input.ops import build  # which imports this file

  where = "op jointly"
  calls = parse_spec(spec, where)
  for call in calls:
    if call.name not in _GEOMETRY:
      raise unknown(f"{where}: geometric op", call.name, _GEOMETRY)
  keys = (keys,) if isinstance(keys, str) else tuple(keys)
  smooth = build(spec, where)
  exact = build("|".join(str(_nearest(call)) for call in calls), where)
  is_random = any(call.name in _RANDOM for call in calls)

  def run(example, rng):
    there = [key for key in keys if key in example]
    sizes = {key: example[key].shape[:2] for key in there}
    if len(set(sizes.values())) > 1:
      raise BadExample("sizes differ", str(sizes))
    seed = int(rng.integers(1 << 63)) if is_random else 0
    out = {}
    for key in there:
      op = smooth if key == "image" else exact
      out[key] = op({"image": example[key]}, generator(seed, 0))["image"]
    return {**example, **out}

  return run


def _nearest(call: Call) -> Call:
  """The same op with method nearest, where it has a method."""
  from big_vision_like.input.ops import MODULES, functions

  parameters = list(inspect.signature(functions(MODULES)[call.name]).parameters)
  if "method" not in parameters:
    return call
  args = call.args[: parameters.index("method")]
  return call._replace(args=args, kwargs={**call.kwargs, "method": "nearest"})
