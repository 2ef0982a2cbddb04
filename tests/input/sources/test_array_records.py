"""ArrayRecord files made here: raw and of our records, several of them, cut, damaged, gone."""

import pickle

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from big_vision_like.config import UserError
from big_vision_like.input import sources
from big_vision_like.input.bad import BadExample
from big_vision_like.input.formats import array_records, records


def write(path, data, options="group_size:1"):
  from array_record.python.array_record_module import ArrayRecordWriter

  writer = ArrayRecordWriter(str(path), options)
  for record in data:
    writer.write(record)
  writer.close()


def open_source(pattern, **options):
  spec = ", ".join(f"{k}={v!r}" for k, v in options.items())
  return sources.open_source(f"array_record({str(pattern)!r}, {spec})")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
  """7, 0 and 5 records."""
  folder = tmp_path_factory.mktemp("shards")
  for n, numbers in enumerate((range(7), (), range(7, 12))):
    write(folder / f"x-{n}.array_record", [b"%d" % i for i in numbers])
  return folder


def test_files_one_after_the_other(shards):
  source = open_source(f"{shards}/x-{{0..2}}.array_record")
  assert [source[i]["record"] for i in range(len(source))] == [b"%d" % i for i in range(12)]
  assert pickle.loads(pickle.dumps(source))[9] == {"record": b"9"}
  for index in (-1, 12):
    with pytest.raises(IndexError):
      source[index]


@hypothesis.given(st.lists(st.integers(0, 7)))
@hypothesis.settings(max_examples=50, deadline=None, derandomize=True)
def test_many_at_once_and_parts_of_files(shards, indices):
  files = [str(shards / f"x-{n}.array_record") for n in range(3)]
  parts = [(files[0], 2, 4), (files[1], 0, 0), (files[2], 1, 3), (files[0], 6, 1)]
  source = array_records.ArrayRecords([array_records.Part(*p) for p in parts])
  expected = [b"2", b"3", b"4", b"5", b"8", b"9", b"10", b"6"]
  assert len(source) == 8
  assert source.__getitems__(indices) == [expected[i] for i in indices]


def test_examples_come_back(tmp_path):
  examples = [{"image": b"\xff\xd8", "boxes": np.ones((1, 4), np.float32), "text": ["a"]}, {}]
  write(tmp_path / "x.array_record", [*map(records.encode, examples), b"raw", b""])
  source = open_source(tmp_path / "x.array_record")
  found = source.__getitems__([0, 1, 2, 3])
  np.testing.assert_array_equal(found[0].pop("boxes"), examples[0]["boxes"])
  assert found == [{"image": b"\xff\xd8", "text": ["a"]}, {}, {"record": b"raw"}, {"record": b""}]


def test_damage(tmp_path):
  noise = [np.random.default_rng(i).bytes(1000) for i in range(200)]
  path = tmp_path / "x.array_record"
  write(path, [*noise, records.encode({"a": 1})[:-1]])
  whole = bytearray(path.read_bytes())
  damaged = whole.copy()
  damaged[whole.index(noise[50]) + 500] ^= 1
  path.write_bytes(damaged)
  source = open_source(path)
  for i in (50, 200):
    with pytest.raises(BadExample) as error:
      source[i]
    assert error.value.kind == "corrupt record"
  assert source[51]["record"] == noise[51]
  unread = open_source(path)
  path.unlink()
  with pytest.raises(BadExample) as error:
    unread[0]
  assert error.value.kind == "missing file"
  path.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(UserError, match="is not made of ArrayRecords"):
    open_source(path)


def test_missing_files_and_files_elsewhere(shards):
  with pytest.raises(UserError, match=r"1 of 4 files are missing.*x-3\.array_record"):
    open_source(f"{shards}/x-{{0..3}}.array_record")
  assert len(open_source(f"{shards}/x-{{0..3}}.array_record", allow_missing_shards=True)) == 12
  fsspec = pytest.importorskip("fsspec")
  fsspec.filesystem("memory").pipe_file("/x.array_record", b"")
  with pytest.raises(UserError, match="the library reads local files only"):
    open_source("memory://x.array_record")


def test_groups_are_slow(tmp_path, caplog):
  write(tmp_path / "x.array_record", [b"1", b"2"], "group_size:4")
  assert open_source(tmp_path / "x.array_record")[1] == {"record": b"2"}
  assert "random access is slow" in caplog.text
