"""Examples as bytes and back."""

import json

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from big_vision_like.config import UserError
from big_vision_like.input.bad import BadExample
from big_vision_like.input.formats import records

DTYPES = st.sampled_from(["bool", "u1", "i2", "i8", "u8", "f2", "f4", ">f8", "c8", "S3", "U2"])
ARRAYS = DTYPES.flatmap(lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, min_side=0)))
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | ARRAYS
VALUES = st.recursive(
  LEAVES | st.floats(width=32).map(np.float32) | st.integers(0, 9).map(np.uint8),
  lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=3), v, max_size=3),
  max_leaves=8,
)
EXAMPLES = st.dictionaries(st.text(max_size=5), VALUES, max_size=5)


def same(a, b):
  if isinstance(a, dict):
    return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
  if isinstance(a, list):
    return len(a) == len(b) and all(map(same, a, b))
  if isinstance(a, (np.ndarray, np.generic)):
    return type(a) is type(b) and (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
  return type(a) is type(b) and (a == b or (a != a and b != b))


@hypothesis.given(EXAMPLES)
@hypothesis.settings(max_examples=200, deadline=None, derandomize=True)
def test_round_trip(example):
  data = records.encode(example)
  assert records.is_record(data) and same(example, records.decode(data))


def test_schema():
  example = {
    "image": b"\xff\xd8 not JSON \x00",
    "text": ["a", "\u00e9\U0001f600"],
    "label": 3,
    "fps": 29.97,
    "boxes": np.arange(8, dtype=np.float32).reshape(2, 4),
    "document": [{"text": "one"}, {"image": b"\x00\x01"}, {"text": ""}],
  }
  back = records.decode(records.encode(example))
  assert same(example, back)
  back["boxes"][0, 0] = 7  # its own memory


@hypothesis.given(EXAMPLES, st.data())
@hypothesis.settings(max_examples=200, deadline=None, derandomize=True)
def test_damage_is_a_bad_example_or_another_value(example, data):
  raw = bytearray(records.encode(example))
  at = data.draw(st.integers(4, len(raw) - 1))
  raw[at] ^= data.draw(st.integers(1, 255))
  try:
    records.decode(bytes(raw))
  except BadExample as e:
    assert e.kind == "corrupt record"


def test_every_cut_is_found():
  raw = records.encode({"a": b"12345", "n": np.zeros(3, np.int16)})
  for end in range(len(raw)):
    with pytest.raises(BadExample) as error:
      records.decode(raw[:end])
    assert error.value.kind == "corrupt record"


@pytest.mark.parametrize(
  "header, message",
  [
    ({"a": {"bytes": [-1, 1]}}, "offset -1"),
    ({"a": {"bytes": [0, 9]}}, "of a payload of 4"),
    ({"a": {"array": ["|O8", [1], 0]}}, "dtype"),
    ({"a": {"array": ["<f4", [-1], 0]}}, "shape"),
    ({"a": {"array": ["<f4", [1 << 40, 1 << 40], 0]}}, "of a payload of 4"),
    ({"a": {"code": "x"}}, "kind 'code'"),
    ([1], "AttributeError"),
  ],
)
def test_hostile_headers(header, message):
  text = json.dumps(header).encode()
  raw = records._START.pack(records.MAGIC, records.VERSION, len(text)) + text + b"1234"
  with pytest.raises(BadExample, match=message):
    records.decode(raw)


@pytest.mark.parametrize(
  "value, message",
  [
    (np.array([None]), "example.a: a record cannot hold an array of object"),
    ([{"b": object()}], r"example.a\[0\].b: a record cannot hold a object"),
    ({1: 2}, "cannot hold a dict"),
  ],
)
def test_what_a_record_cannot_hold(value, message):
  with pytest.raises(UserError, match=message):
    records.encode({"a": value})
