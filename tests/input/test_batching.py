"""Rows become batches: in one go, in place by several threads, or joined from parts."""

import concurrent.futures

import numpy as np
import pytest

from big_vision_like.config import UserError
from big_vision_like.input import batching


def examples(count, first=0):
  rng = np.random.default_rng(first)
  return [
    {
      "image": rng.integers(0, 256, (3, 4, 1), np.uint8),
      "half": rng.random(5),  # float64
      "label": first + i,
      "wide": np.int64(2**33 + 7),
      "good": bool(i % 2),
      "text": f"text {first + i}\0",
      "document": [{"text": "a"}, {"text": str(i)}],
      "index": 2**31 + first + i,
    }
    for i in range(count)
  ]


def assert_same(a, b):
  assert a.keys() == b.keys()
  for key in a:
    assert a[key].dtype == b[key].dtype and a[key].shape == b[key].shape
    assert a[key].tolist() == b[key].tolist()


def test_stack():
  rows = examples(6)
  out = batching.stack(rows, "pp")
  kinds = {k: v.dtype.name for k, v in out.items()}
  want = dict(image="uint8", half="float32", label="int32", wide="int32", good="bool")
  assert kinds == {**want, "text": "object", "document": "object", "index": "int32"}
  assert (out["image"] == np.stack([r["image"] for r in rows])).all()
  assert (out["half"] == np.stack([r["half"] for r in rows]).astype(np.float32)).all()
  assert out["wide"].tolist() == [7] * 6 and out["index"].tolist() == list(range(6))
  assert out["text"].tolist() == [r["text"] for r in rows]
  assert out["document"].shape == (6,) and out["document"][5] == rows[5]["document"]


def test_chunks_that_come_in_any_order_make_the_same_batches():
  rows = examples(24)
  assembly = batching.Assembly(12, "pp")
  places = [(batch, start) for batch in (1, 0) for start in (8, 0, 5)]
  size = {0: 5, 5: 3, 8: 4}
  with concurrent.futures.ThreadPoolExecutor(3) as pool:
    chunk = lambda at: rows[12 * at[0] + at[1] :][: size[at[1]]]
    list(pool.map(lambda at: assembly.put(*at, chunk(at)), places))
  for batch in (0, 1):
    assert_same(assembly.take(batch), batching.stack(rows[12 * batch :][:12], "pp"))
  with pytest.raises(KeyError):
    assembly.take(0)  # it has been forgotten


def test_a_batch_is_not_touched_after_it_was_taken():
  assembly = batching.Assembly(2, "pp")
  assembly.put(0, 0, examples(2))
  first = assembly.take(0)
  kept = first["image"].copy()
  assembly.put(1, 0, examples(2, first=9))
  assert (first["image"] == kept).all() and (assembly.take(1)["image"] != kept).any()


@pytest.mark.parametrize(
  "change, message",
  [
    ({"image": np.zeros((3, 5, 1), np.uint8)}, r"image is uint8\(3, 4, 1\) and uint8\(3, 5, 1\)"),
    ({"image": np.zeros((3, 4, 1), np.float32)}, r"image is uint8.* and float32"),
    ({"label": "seven"}, r"label is int\d\d\(\) and object\(\)"),
    ({"text": 7}, r"text is object\(\) and int64\(\)"),
    ({"more": 1}, r"keys .* and of keys .*more"),
  ],
)
def test_rows_that_differ(change, message):
  """Within a chunk, between chunks, between parts of a batch."""
  rows = examples(4)
  odd = [{**row, **change} for row in rows]
  assembly = batching.Assembly(8, "config.input.pp")
  assembly.put(0, 0, rows)
  with pytest.raises(UserError, match=f"config.input.pp: .*{message}"):
    assembly.put(0, 4, odd)
  with pytest.raises(UserError, match=message):
    batching.stack([*rows, *odd], "config.input.pp")
