"""Parquet files in the layouts of img2dataset and Hugging Face, made here."""

import json

import numpy as np
import pytest

from big_vision_like.config import UserError
from big_vision_like.input import schema, sources
from big_vision_like.input.bad import BadExample

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def opened(path, **options):
  spec = ", ".join([repr(str(path)), *(f"{k}={v!r}" for k, v in options.items())])
  return sources.open_source(f"parquet({spec})")


def kind(source, index):
  with pytest.raises(BadExample) as e:
    source[index]
  return e.value.kind


def img2dataset(path, first, rows, group):
  table = pa.table(
    {
      "jpg": [None if i % 5 == 4 else b"jpg%d" % i for i in range(first, first + rows)],
      "caption": [f"caption {i}" for i in range(first, first + rows)],
      "status": ["failed" if i % 5 == 4 else "success" for i in range(first, first + rows)],
      "width": pa.array(range(first, first + rows), pa.int32()),
    }
  )
  pq.write_table(table, path, row_group_size=group)


def test_img2dataset(tmp_path):
  img2dataset(tmp_path / "00000.parquet", 0, 10, 3)
  img2dataset(tmp_path / "00001.parquet", 10, 7, 4)
  source = opened(tmp_path / "{00000..00001}.parquet")
  assert len(source) == 17
  good = [i for i in range(17) if i % 5 != 4]
  for i in good:
    assert source[i] == {
      "image": b"jpg%d" % i,
      "text": f"caption {i}",
      "status": "success",
      "width": i,
    }
    schema.check(source[i])
  assert [kind(source, i) for i in (4, 9, 14)] == ["missing image"] * 3
  with pytest.raises(IndexError):
    source[17]


def test_each_row_group_is_read_once(tmp_path):
  img2dataset(tmp_path / "a.parquet", 0, 16, 2)
  source = opened(tmp_path / "a.parquet", columns=("width",), image="jpg", cached_groups=1)
  order = [15, 0, 6, 1, 7, 15, 13]
  got = source.__getitems__(order)
  assert [e["width"] for e in got] == order
  assert got[1].keys() == {"width", "image", "text"} - {"text"}
  assert source._group.cache_info().misses == 4
  assert source[13]["width"] == 13 and source._group.cache_info().misses == 5  # one is kept


def hugging_face(path):
  image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
  columns = {
    "image": pa.array(
      [{"bytes": b"png", "path": None}, {"bytes": None, "path": "b.png"}, None], image
    ),
    "label": pa.array([1, 0, -1], pa.int64()),
    "audio": pa.array([{"bytes": b"wav", "path": "a.wav"}] * 3, image),
    "pages": pa.array([[{"bytes": b"1", "path": None}, {"bytes": b"2", "path": None}]] * 3),
    "boxes": pa.array([[[0.0, 0.5, 1.0, 1.0]]] * 3, pa.list_(pa.list_(pa.float32(), 4))),
    "captions": pa.array([["a", "b"], [], None]),
    "ids": pa.array([[1, 2], [], [3]], pa.list_(pa.int32())),
  }
  features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
  metadata = {"huggingface": json.dumps({"info": {"features": features}})}
  pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)


def test_hugging_face(tmp_path):
  hugging_face(tmp_path / "a.parquet")
  (tmp_path / "b.png").write_bytes(b"other")
  source = opened(tmp_path / "a.parquet")
  first, second = source[0], source[1]
  schema.check(first)
  assert (first["image"], first["label"], first["text"]) == (b"png", 1, "dog")
  assert (second["image"], second["label"], second["text"]) == (b"other", 0, "cat")
  assert first["audio"] == b"wav" and first["pages"] == [b"1", b"2"]
  assert first["captions"] == ["a", "b"] and second["captions"] == []
  np.testing.assert_array_equal(first["boxes"], np.float32([[0, 0.5, 1, 1]]))
  np.testing.assert_array_equal(first["ids"], np.int32([1, 2]))
  assert first["ids"].dtype == np.int32 == second["ids"].dtype and second["ids"].shape == (0,)
  assert kind(source, 2) == "missing image"
  captions = opened(tmp_path / "a.parquet", columns="captions", text="captions")
  assert captions[0] == {"text": ["a", "b"]}  # only what is asked for


def test_path_of_a_struct_stays_inside(tmp_path):
  cell = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
  column = pa.array([{"bytes": None, "path": "../secret"}, {"bytes": None, "path": None}], cell)
  pq.write_table(pa.table({"image": column}), tmp_path / "a.parquet")
  source = opened(tmp_path / "a.parquet")
  assert [kind(source, i) for i in range(2)] == ["unsafe path", "missing image"]


def test_names_that_are_given_go_first(tmp_path):
  table = pa.table({"image": [b"a"], "thumb": [b"b"], "text": ["x"], "alt": ["y"], "class": [3]})
  pq.write_table(table, tmp_path / "a.parquet")
  example = opened(tmp_path / "a.parquet", image="thumb", text="alt", label="class")[0]
  assert (example["image"], example["text"], example["label"]) == (b"b", "y", 3)


def test_errors(tmp_path):
  img2dataset(tmp_path / "a.parquet", 0, 4, 2)
  with pytest.raises(UserError, match=r"'captoin' is unknown; did you mean caption.*jpg, status"):
    opened(tmp_path / "a.parquet", text="captoin")
  with pytest.raises(UserError, match="column 'url'"):
    opened(tmp_path / "a.parquet", columns=("url",))
  with pytest.raises(UserError, match="cached_groups = 0"):
    opened(tmp_path / "a.parquet", cached_groups=0)
  (tmp_path / "b.parquet").write_bytes(b"no parquet at all")
  with pytest.raises(UserError, match=r"b\.parquet cannot be read as Parquet"):
    opened(tmp_path / "b.parquet")
  with pytest.raises(UserError, match="no file"):
    opened(tmp_path / "c.parquet")


def test_broken_group_and_missing_column(tmp_path):
  img2dataset(tmp_path / "a.parquet", 0, 4, 2)
  source = opened(tmp_path / "a.parquet")
  data = bytearray((tmp_path / "a.parquet").read_bytes())
  start = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(0).column(0).file_offset or 4
  data[start : start + 60] = b"\xff" * 60
  (tmp_path / "a.parquet").write_bytes(data)
  assert kind(source, 0) == "broken row group"
  assert source[2]["text"] == "caption 2"  # the other one is whole

  img2dataset(tmp_path / "p0.parquet", 0, 4, 2)
  pq.write_table(pa.table({"jpg": [b"x"]}), tmp_path / "p1.parquet")
  source = opened(tmp_path / "p*.parquet")
  assert source[3]["text"] == "caption 3" and kind(source, 4) == "missing column"


def test_through_fsspec(tmp_path, monkeypatch):
  fsspec = pytest.importorskip("fsspec")
  monkeypatch.setenv("BIG_VISION_LIKE_CACHE", str(tmp_path / "cache"))
  img2dataset(tmp_path / "a.parquet", 0, 4, 2)
  fs = fsspec.filesystem("memory")
  fs.pipe("/parquet/a.parquet", (tmp_path / "a.parquet").read_bytes())
  source = opened("memory://parquet/*.parquet")
  assert [source[i]["image"] for i in range(4)] == [b"jpg0", b"jpg1", b"jpg2", b"jpg3"]
