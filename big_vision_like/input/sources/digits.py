"""Scikit-learn's bundled scans of digits (1,797 real ones), alone and two side by side."""

import functools
import importlib.resources
import json
from typing import Any

import numpy as np

from big_vision_like.config import unknown, whole_number
from big_vision_like.input.randomness import generator

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@functools.cache
def _scans(held_out: bool) -> tuple[np.ndarray, np.ndarray]:
  """uint8 [n, 8, 8, 1] and labels [n]; a fixed fifth of each class is held out."""
  from sklearn.datasets import load_digits

  bunch = load_digits()
  images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
  order = np.random.default_rng(0).permutation(len(images))
  rank = np.zeros(len(images), int)  # position within the class, in the shuffled order
  for digit in range(10):
    members = order[bunch.target[order] == digit]
    rank[members] = np.arange(len(members))
  chosen = (rank % 5 == 0) == held_out
  return images[chosen], bunch.target[chosen].astype(np.int32)


class _Digits:
  def __init__(self, split: str):
    self.images, self.labels = _scans(split == "test")

  def __len__(self) -> int:
    return len(self.images)

  def __getitem__(self, index: int) -> dict[str, Any]:
    label = int(self.labels[index])
    return {"image": self.images[index], "label": label, "text": WORDS[label]}


def digits(split: str = "train") -> _Digits:
  """image uint8 [8, 8, 1], label 0-9, text "seven"; split train (1,434 or so) or test."""
  if split not in ("train", "test"):
    raise unknown("source digits: split", split, ("train", "test"))
  return _Digits(split)


NEW_PAIRS = frozenset((left, (left + k) % 10) for left in range(10) for k in (3, 6))
"""20 ordered pairs that training never shows; every digit is still seen on either side."""

_SPLITS = {  # split -> (held-out scans, never-trained pairs, examples)
  "train": (False, False, 100_000),
  "val": (True, False, 2_000),
  "test_seen": (True, False, 2_000),
  "test_new_pairs": (True, True, 1_000),
}


@functools.cache
def _templates() -> list[str]:
  file = importlib.resources.files("big_vision_like.input") / "data" / "digit_pairs.json"
  return json.loads(file.read_text())["templates"]


class _DigitPairs:
  """Example i is drawn by (split, i) alone."""

  def __init__(self, split: str, size: int | None):
    held_out, new, default = _SPLITS[split]
    self.size = default if size is None else size
    self.seed = list(_SPLITS).index(split)
    self.images, labels = _scans(held_out)
    self.by_digit = [np.flatnonzero(labels == d) for d in range(10)]
    every = [(a, b) for a in range(10) for b in range(10)]
    self.pairs = [p for p in every if (p in NEW_PAIRS) == new]

  def __len__(self) -> int:
    return self.size

  def __getitem__(self, index: int) -> dict[str, Any]:
    if not 0 <= index < self.size:
      raise IndexError(index)
    rng = generator(self.seed, index)
    left, right = self.pairs[rng.integers(len(self.pairs))]
    image = np.concatenate([self.images[rng.choice(self.by_digit[d])] for d in (left, right)], 1)
    template = _templates()[rng.integers(len(_templates()))]
    text = template.format(left=WORDS[left], right=WORDS[right])
    return {"image": image, "text": text, "label": 10 * left + right}


def digit_pairs(split: str = "train", size: int | None = None) -> _DigitPairs:
  """Two scans side by side with a caption such as "three left of seven".

  image uint8 [8, 16, 1], text, label = 10 * left + right. Splits: train (80 pairs of training
  scans), val and test_seen (the same pairs, held-out scans), test_new_pairs (the 20 pairs of
  `NEW_PAIRS`, held-out scans).
  """
  if split not in _SPLITS:
    raise unknown("source digit_pairs: split", split, list(_SPLITS))
  if size is not None:
    whole_number(size, "source digit_pairs: size")
  return _DigitPairs(split, size)
