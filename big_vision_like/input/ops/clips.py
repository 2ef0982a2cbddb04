"""Ops on `video` [T, H, W, C], decoded: those on `image`, the same for every frame."""

from collections.abc import Callable
from typing import Any

import numpy as np

from big_vision_like.input import ops
from big_vision_like.input.sources import functions


class _Same:
  """Random numbers that are drawn for the first frame and are the same for the others."""

  def __init__(self, rng: Any):
    self._rng, self._drawn, self._at = rng, [], 0

  def again(self) -> "_Same":
    """The next frame begins."""
    self._at = 0
    return self

  def __getattr__(self, name: str) -> Callable[..., Any]:
    def draw(*args: Any, **kwargs: Any) -> Any:
      if self._at == len(self._drawn):
        self._drawn.append(getattr(self._rng, name)(*args, **kwargs))
      self._at += 1
      return self._drawn[self._at - 1]

    return draw


def _clip(name: str, key: str, *args: Any):
  """Lifts an op on `image` to clips: it does the same to every frame."""
  op = functions(ops.MODULES)[name](*args)

  def run(example, rng):
    rng = _Same(rng)
    frames = [op({"image": frame}, rng.again())["image"] for frame in example[key]]
    return {**example, key: np.stack(frames)}

  return run


def video_resize(height: int, width: int | None = None, method: str = "bilinear", key="video"):
  """[T, H, W, 3] -> [T, height, width, 3], whatever the aspect ratio (a square with one number).

  `method` as for the op `resize`, default "bilinear" (PIL's, antialiased).
  """
  return _clip("resize", key, height, width, method)


def video_resize_small(smaller: int, method: str = "bilinear", key: str = "video"):
  """Scales all frames so that their smaller side is `smaller`; `method` as for `resize_small`."""
  return _clip("resize_small", key, smaller, method)


def video_central_crop(height: int, width: int | None = None, key: str = "video"):
  """The middle height x width of all frames (a square with one number)."""
  return _clip("central_crop", key, height, width)


def video_random_crop(height: int, width: int | None = None, key: str = "video"):
  """A random height x width (a square with one number), the same of all frames."""
  return _clip("random_crop", key, height, width)


def video_random_resized_crop(
  height: int,
  width: int | None = None,
  area: tuple[float, float] = (0.08, 1.0),
  ratio: tuple[float, float] = (3 / 4, 4 / 3),
  method: str = "bilinear",
  key: str = "video",
):
  """Inception crop (Szegedy et al. 2015, arXiv:1409.4842) of a clip: one random box for all frames.

  As `random_resized_crop`: `area` is the part of the frame, `ratio` the range of width / height,
  resized to height x width (a square with one number) by `method`. VideoMAE (arXiv:2203.12602)
  takes area = (0.5, 1).
  """
  return _clip("random_resized_crop", key, height, width, area, ratio, method)


def video_flip_lr(key: str = "video"):
  """Mirrors every second clip, all its frames, at random."""
  return _clip("flip_lr", key)
