"""Views of simple solids of a named shape and colour, ray-cast exactly: made here, no files.

The world has z up, a solid at the origin and one lamp that stands still; the camera looks at the
origin from a random side. `generation/volume.py` uses the same camera, so that what is rendered
through it can be compared with these views.
"""

import itertools
from typing import Any

import numpy as np

from big_vision_like.config import unknown, whole_number
from big_vision_like.input.randomness import generator

SHAPES = ("sphere", "cube", "cylinder", "cone")
COLOURS = {
  "red": (0.90, 0.15, 0.15),
  "green": (0.15, 0.75, 0.20),
  "blue": (0.15, 0.25, 0.90),
  "yellow": (0.95, 0.85, 0.10),
}
CLASSES = [f"{colour} {shape}" for shape, colour in itertools.product(SHAPES, COLOURS)]
"""Label = index into this list = shape * number of colours + colour."""

DISTANCE = 3.2  # of the camera from the origin
FOV = 40.0  # degrees, of the whole image
ELEVATION = (5.0, 50.0)  # degrees above the horizon
LAMP = np.array([2.0, 1.0, 3.0]) / np.sqrt(14.0)
AMBIENT = 0.55
SPLITS = {"train": 8192, "test": 1024}  # examples

_SPHERE, _CUBE, _CYLINDER, _CONE = 0.8, 0.62, (0.6, 0.65), (0.8, 0.75)  # radius, half height


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  return np.sum(a * b, axis=-1)


def _roots(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Roots of a t^2 + 2 b t + c, nan where they are not real."""
  with np.errstate(invalid="ignore", divide="ignore"):
    root = np.sqrt(b * b - a * c)
    return (-b - root) / a, (-b + root) / a


# Each solid: (origins, directions) [N, 3] -> surfaces the ray may enter by, as pairs of distance
# [N] (inf or nan where it misses) and outward normal [N, 3].


def _sphere(o, d):
  t, _ = _roots(np.ones(len(d)), _dot(o, d), _dot(o, o) - _SPHERE**2)
  yield t, (o + t[:, None] * d) / _SPHERE


def _cube(o, d):
  with np.errstate(divide="ignore"):
    near, far = (-np.sign(d) * _CUBE - o) / d, (np.sign(d) * _CUBE - o) / d
  axis = near.argmax(1)
  normal = -np.sign(d) * (np.arange(3) == axis[:, None])
  yield np.where(near.max(1) < far.min(1), near.max(1), np.inf), normal


def _disk(o, d, z, radius):
  """A cap at height z, facing away from the origin."""
  with np.errstate(divide="ignore"):
    t = (z - o[:, 2]) / d[:, 2]
  point = o + t[:, None] * d
  hit = np.hypot(point[:, 0], point[:, 1]) <= radius
  yield np.where(hit, t, np.inf), np.broadcast_to([0.0, 0.0, np.sign(z)], d.shape)


def _cylinder(o, d):
  radius, half = _CYLINDER
  flat = np.array([1.0, 1.0, 0.0])
  t, _ = _roots(_dot(d * flat, d), _dot(o * flat, d), _dot(o * flat, o) - radius**2)
  point = o + t[:, None] * d
  yield np.where(np.abs(point[:, 2]) <= half, t, np.inf), point * flat / radius
  yield from _disk(o, d, half, radius)
  yield from _disk(o, d, -half, radius)


def _cone(o, d):
  radius, half = _CONE
  slope = radius / (2 * half)  # x^2 + y^2 = slope^2 (z - apex)^2, from the apex down to the base
  quadric, tip = np.array([1.0, 1.0, -(slope**2)]), o - np.array([0.0, 0.0, half])
  for t in _roots(_dot(d * quadric, d), _dot(tip * quadric, d), _dot(tip * quadric, tip)):
    point = tip + t[:, None] * d
    normal = point * quadric
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
    yield np.where((point[:, 2] <= 0) & (point[:, 2] >= -2 * half), t, np.inf), normal
  yield from _disk(o, d, -half, radius)


_SOLIDS = dict(zip(SHAPES, (_sphere, _cube, _cylinder, _cone)))


def _rays(azimuth: float, elevation: float, pixels: int) -> tuple[np.ndarray, np.ndarray]:
  """Origin [3] and unit directions [pixels * pixels, 3], rows of the image from top to bottom."""
  eye = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth)])
  back = np.append(eye, np.sin(elevation))
  right = np.array([-np.sin(azimuth), np.cos(azimuth), 0.0])
  up = np.cross(back, right)
  grid = ((np.arange(pixels) + 0.5) / pixels * 2 - 1) * np.tan(np.radians(FOV) / 2)
  d = -back + grid[None, :, None] * right - grid[:, None, None] * up
  d = d.reshape(-1, 3)
  return DISTANCE * back, d / np.linalg.norm(d, axis=1, keepdims=True)


def _view(shape: str, colour: str, azimuth: float, elevation: float, size: int) -> np.ndarray:
  """uint8 [size, size, 3] on white; angles in radians; 3 x 3 rays a pixel."""
  eye, d = _rays(azimuth, elevation, 3 * size)
  surfaces = list(_SOLIDS[shape](np.broadcast_to(eye, d.shape), d))
  t = np.stack([np.where(np.isnan(t), np.inf, t) for t, _ in surfaces])
  first = t.argmin(0)
  normal = np.stack([n for _, n in surfaces])[first, np.arange(len(d))]
  light = AMBIENT + (1 - AMBIENT) * np.maximum(np.nan_to_num(normal) @ LAMP, 0.0)
  lit = light[:, None] * np.array(COLOURS[colour])
  image = np.where(np.isfinite(t.min(0))[:, None], lit, 1.0)
  image = image.reshape(size, 3, size, 3, 3).mean((1, 3))
  return np.round(255 * image).astype(np.uint8)


class _Solids:
  """Example i is drawn by (split, i) alone."""

  def __init__(self, split: str, size: int, labels: list[int], examples: int):
    self.seed, self.size, self.labels = list(SPLITS).index(split), size, labels
    self.examples = examples
    self.views: dict[int, np.ndarray] = {}  # a view is cast once, a few epochs use it

  def __len__(self) -> int:
    return self.examples

  def __getitem__(self, index: int) -> dict[str, Any]:
    if not 0 <= index < self.examples:
      raise IndexError(index)
    label = self.labels[index % len(self.labels)]
    colour, shape = CLASSES[label].split()
    if index not in self.views:
      rng = generator(self.seed, index)
      azimuth, elevation = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(*ELEVATION))
      self.views[index] = _view(shape, colour, azimuth, elevation, self.size)
    return {"image": self.views[index], "label": label, "text": f"a {colour} {shape}"}


def solids(
  split: str = "train",
  size: int = 16,
  shape: str | None = None,
  colour: str | None = None,
  examples: int | None = None,
) -> _Solids:
  """A solid seen from a random side, with its name "a red cube".

  image uint8 [size, size, 3], label = index into `CLASSES`, text. Splits train (8,192 views) and
  test (1,024 views from other sides). `shape` and `colour` keep those classes only; all classes of
  a split are equally frequent. `examples` overrides the length of the split.

  Raises:
    UserError: an unknown split, shape or colour, a size or length that is not positive.
  """
  if split not in SPLITS:
    raise unknown("source solids: split", split, list(SPLITS))
  for key, name, known in (("shape", shape, SHAPES), ("colour", colour, tuple(COLOURS))):
    if name is not None and name not in known:
      raise unknown(f"source solids: {key}", name, known)
  examples = SPLITS[split] if examples is None else examples
  for key, value in (("size", size), ("examples", examples)):
    whole_number(value, f"source solids: {key}")
  wanted = itertools.product(SHAPES, COLOURS)
  pairs = enumerate(wanted)
  labels = [i for i, (s, c) in pairs if shape in (None, s) and colour in (None, c)]
  return _Solids(split, size, labels, examples)
