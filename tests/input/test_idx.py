"""IDX files, written here byte by byte."""

import gzip
import struct

import numpy as np
import pytest

from big_vision_like.config import UserError
from big_vision_like.input import pipeline
from big_vision_like.input.sources import open_source

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 3, 4)).astype(np.uint8)
LABELS = np.array([3, 1, 4, 1, 5], np.uint8)


def write(path, array, kind=8, cut=None):
  head = struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape)
  data = (head + array.tobytes())[:cut]
  path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
  return path


@pytest.fixture
def spec(tmp_path):
  x, y = write(tmp_path / "x.gz", IMAGES), write(tmp_path / "y", LABELS)
  return f"idx(images='{x}', labels='{y}'"


def test_examples(spec):
  source = open_source(spec + ", start=1, stop=4)")
  assert len(source) == 3
  np.testing.assert_array_equal(source[2]["image"], IMAGES[3][..., None])
  assert [source[i]["label"] for i in range(3)] == [1, 4, 1]
  assert len(open_source(spec + ")")) == 5


def test_batches(spec):
  cfg = dict(source=spec + ")", pp="value_range(0, 1)", shuffle=False)
  batch = next(pipeline.train_batches(cfg, batch_size=4, seed=0, start_step=0))
  assert batch["image"].shape == (4, 3, 4, 1) and batch["label"].dtype == np.int32
  np.testing.assert_allclose(batch["image"][..., 0], IMAGES[:4] / 255, rtol=1e-6)


def test_mistakes(tmp_path, spec):
  with pytest.raises(UserError, match=r"start = 4, stop = 9; .* has 5 examples"):
    open_source(spec + ", start=4, stop=9)")
  x, y = write(tmp_path / "x", IMAGES), write(tmp_path / "y", LABELS)
  for name, args, message in (
    ("text", dict(array=LABELS, kind=13), r"is not an IDX file of bytes \(first: 00000d01\)"),
    ("cut", dict(array=IMAGES, cut=-1), r"holds 59 bytes, its head says \(5, 3, 4\)"),
    ("few", dict(array=IMAGES[:2]), r"expected \[N, H, W\] and \[N\]"),
  ):
    file = write(tmp_path / name, **args)
    with pytest.raises(UserError, match=message):
      open_source(f"idx(images='{file}', labels='{y}')")
  with pytest.raises(UserError, match="absent: No such file"):
    open_source(f"idx(images='{x}', labels='{tmp_path / 'absent'}')")
