"""Packing: no token is lost, none is over the budget, and rows are a function of their number."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from big_vision_like.config import UserError
from big_vision_like.input import packing, pipeline

some = settings(max_examples=150, deadline=None, derandomize=True)
SIZES = st.lists(st.integers(0, 12), min_size=1, max_size=20)


def texts(sizes):
  """Tokens that are found nowhere else, padded to one length as `tokenize` does."""
  ids = [np.arange(1, n + 1) + 100 * i for i, n in enumerate(sizes)]
  return [
    {"text": np.pad(x, (0, 12 - len(x))).astype(np.int32), "loss_mask": np.arange(12) % 2 == 0}
    for x in ids
  ]


@some
@given(SIZES, st.integers(1, 30), st.integers(1, 5), st.none() | st.integers(1, 4))
def test_bins_hold_what_they_can(sizes, capacity, bins, most):
  packed = packing.first_fit_decreasing(sizes, capacity, bins, most)
  placed = [i for items in packed for i in items]
  assert len(packed) == bins and len(placed) == len(set(placed))
  for items in packed:
    assert items == sorted(items) and all(sizes[i] > 0 for i in items)
    assert sum(sizes[i] for i in items) <= capacity and len(items) <= (most or len(sizes))
  for i in set(range(len(sizes))) - set(placed):  # there was really no room
    full = [most is not None and len(items) >= most for items in packed]
    free = [capacity - sum(sizes[j] for j in items) for items in packed]
    assert sizes[i] == 0 or all(f or sizes[i] > room for f, room in zip(full, free))


def test_the_largest_go_first():
  assert packing.first_fit_decreasing([3, 5, 2, 5, 3], 8, 2) == [[0, 1], [3, 4]]
  assert packing.first_fit_decreasing([2, 2, 2], 4, 1) == [[0, 1]]


@some
@given(SIZES, st.integers(1, 30), st.integers(1, 5))
def test_texts_are_whole_and_in_order(sizes, length, rows):
  packer = packing.PackText(length, rows, len(sizes), beside=("loss_mask",))
  examples = texts(sizes)
  packed, dropped = packer(examples)
  assert len(packed) == rows
  found = []
  for row in packed:
    assert row.keys() == {"text", "loss_mask", "segment_ids", "positions"}
    for key, dtype in (("text", "i4"), ("segment_ids", "i4"), ("positions", "i4")):
      assert row[key].dtype == dtype and row[key].shape == (length,)
    segments = row["segment_ids"]
    count = segments.max()
    assert [s for s in dict.fromkeys(segments.tolist()) if s] == list(range(1, count + 1))
    assert (np.diff(np.where(segments, segments, count + 1)) >= 0).all()  # padding at the end
    assert not row["text"][segments == 0].any() and not row["positions"][segments == 0].any()
    for s in range(1, count + 1):
      here = segments == s
      np.testing.assert_array_equal(row["positions"][here], np.arange(here.sum()))
      np.testing.assert_array_equal(row["loss_mask"][here], np.arange(here.sum()) % 2 == 0)
      tokens = row["text"][here]
      i = int(tokens[0]) // 100
      np.testing.assert_array_equal(tokens, examples[i]["text"][: sizes[i]])
      found.append(i)
  assert len(found) == len(set(found)) == len(sizes) - dropped


def images(sizes, budget=12):
  rng = np.random.default_rng(0)
  out = []
  for i, n in enumerate(sizes):
    mask = np.arange(budget) < n
    patches = rng.integers(1, 256, (budget, 3)).astype(np.uint8) * mask[:, None]
    positions = rng.integers(0, 9, (budget, 2)).astype(np.int32) * mask[:, None]
    one = {"patches": patches, "patch_mask": mask, "patch_positions": positions, "label": i}
    out.append({**one, "text": np.full(4, i, np.int32)})
  return out


@some
@given(SIZES, st.integers(1, 30), st.integers(1, 5), st.integers(1, 4))
def test_patches_are_whole_and_in_order(sizes, tokens, rows, most):
  packer = packing.PackPatches(tokens, rows, len(sizes), most, per_image=("label", "text"))
  examples = images(sizes)
  packed, dropped = packer(examples)
  found = []
  for row in packed:
    assert row["patches"].shape == (tokens, 3) and row["patches"].dtype == np.uint8
    assert row["patch_positions"].shape == (tokens, 2)
    assert row["label"].shape == (most,) and row["text"].shape == (most, 4)
    segments = row["segment_ids"]
    np.testing.assert_array_equal(row["patch_mask"], segments > 0)
    assert not row["patches"][segments == 0].any()
    assert row["image_mask"].sum() == segments.max() <= most
    for s in range(1, segments.max() + 1):
      i = int(row["label"][s - 1])
      np.testing.assert_array_equal(
        row["patches"][segments == s], examples[i]["patches"][: sizes[i]]
      )
      np.testing.assert_array_equal(
        row["patch_positions"][segments == s], examples[i]["patch_positions"][: sizes[i]]
      )
      assert (row["text"][s - 1] == i).all()
      found.append(i)
  assert len(found) == len(set(found)) == len(sizes) - dropped


@pytest.mark.parametrize(
  "spec, message",
  [
    ("pack_txt(8, 1, 2)", "config.input.pack 'pack_txt' is unknown; did you mean pack_text"),
    ("pack_text(8, 1, 2)|pack_text(8, 1, 2)", "expected one of pack_text, pack_patches"),
    ("pack_text(8, 1)", "examples"),
    ("pack_text(8, 1, 2, keys=text)", "did you mean key"),
    ("pack_text(0, 1, 2)", "length = 0"),
    ("pack_patches(8, 0, 2)", "rows = 0"),
  ],
)
def test_mistakes(spec, message):
  with pytest.raises(UserError) as error:
    packing.build(spec)
  assert message in str(error.value)


def test_examples_that_do_not_pack_are_told():
  with pytest.raises(UserError, match=r"no key 'patches'; they have text"):
    packing.PackPatches(8, 1, 1)([{"text": 1}])
  two = [{"text": np.ones(2, np.int32)}, {"text": np.ones(2, np.float32)}]
  with pytest.raises(UserError, match=r"text is int32\(2,\) and float32\(2,\)"):
    packing.PackText(8, 1, 2)(two)


# ---------------------------------------------------------------------------------------- streams

TOKENIZE = "tokenize(24, 'train:digit_pairs', 64)"
TEXT = {
  "parts": {
    "a": {"source": "digit_pairs(split='train', size=37)", "weight": 2.5},
    "b": {"source": "digits(split='test')"},
  },
  "pp": TOKENIZE,
  "pack": "pack_text(length=16, rows=2, examples=6)",
}
PATCHES = {
  "source": "digit_pairs(split='train', size=50)",
  "pp": f"random_crop(8, 10)|maybe(0.5, 'random_crop(6, 4)')|patchify_native(2, 11)|{TOKENIZE}",
  "pack": "pack_patches(tokens=20, rows=1, examples=3, images=3, per_image=('label', 'text'))",
}
BATCH = 16


def read(cfg, steps, start=0, index=0, count=1, **more):
  stream = pipeline.train_batches(
    {**cfg, **more},
    batch_size=BATCH,
    seed=3,
    start_step=start,
    process_index=index,
    process_count=count,
  )
  out = [next(stream) for _ in range(steps)]
  stream.close()
  return out, stream.dropped


@pytest.mark.parametrize("cfg", [TEXT, PATCHES], ids=["text", "patches"])
def test_four_hosts_killed_and_resumed_as_two_and_as_eight(cfg):
  """What they read together is the uninterrupted stream, bit for bit."""
  whole, _ = read(cfg, 5, num_threads=1)
  killed_at = 2
  four = [read(cfg, killed_at, index=i, count=4)[0] for i in range(4)]
  for hosts in (2, 8):
    after = [read(cfg, 3, start=killed_at, index=i, count=hosts)[0] for i in range(hosts)]
    for k in range(5):
      parts = [p[k] for p in four] if k < killed_at else [p[k - killed_at] for p in after]
      assert parts[0].keys() == whole[k].keys()
      for key in whole[k]:
        np.testing.assert_array_equal(np.concatenate([p[key] for p in parts]), whole[k][key])


def test_rows_are_static_numbered_and_full_of_their_windows():
  batches, dropped = read(TEXT, 3)
  np.testing.assert_array_equal(np.concatenate([b["index"] for b in batches]), np.arange(3 * BATCH))
  for batch in batches:
    assert batch["text"].shape == batch["segment_ids"].shape == (BATCH, 16)
  windows = 3 * BATCH // 2
  packed = sum(int(b["segment_ids"].max(1).sum()) for b in batches)
  assert packed + dropped == 6 * windows and 0 < dropped < 2 * windows


def test_a_batch_is_whole_windows():
  with pytest.raises(UserError, match="does not divide into windows of 2 packed rows"):
    read(TEXT, 1, index=0, count=16)
