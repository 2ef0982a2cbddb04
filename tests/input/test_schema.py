"""The schema of examples: its table, and what `check` lets through."""

import numpy as np
import pytest

from big_vision_like.input import schema


def test_table_has_a_row_for_each_key():
  lines = schema.table().splitlines()
  assert len(lines) == 2 + len(schema.KEYS)
  assert all(line.count("|") == 4 for line in lines)  # no further column by accident
  assert "| `depth` | bytes or float32 [H, W, 1] |" in schema.table()


@pytest.mark.parametrize(
  "example",
  [
    {"image": b"encoded", "label": 3, "text": "x", "unknown": object()},
    {"image": np.zeros((2, 3, 1), np.uint8), "label": np.int64(3), "text": ["x", "y"]},
    {"image": np.zeros((2, 3, 3), np.float32), "text": np.zeros(4, np.int32)},
    {"document": [{"text": "x"}, {"image": b"y"}], "image_mask": np.zeros(2, bool)},
  ],
)
def test_good(example):
  schema.check(example)


@pytest.mark.parametrize(
  "example",
  [
    {"image": np.zeros((2, 3), np.uint8)},
    {"image": np.zeros((2, 3, 3), np.float64)},
    {"depth": np.zeros((2, 3, 3), np.float32)},
    {"label": "dog"},
    {"label": True},
    {"text": b"bytes"},
    {"document": [{"text": "x", "image": b"y"}]},
    {"document": [{"text": 3}]},
    {"document": [{"video": b""}]},
  ],
)
def test_bad(example):
  with pytest.raises(ValueError, match=r"schema|part of document"):
    schema.check(example)
