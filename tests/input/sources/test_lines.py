"""Image-text pairs in csv, tsv and JSON lines, made here."""

import base64
import csv
import io
import json
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from big_vision_like.config import UserError
from big_vision_like.input import pipeline, schema, sources
from big_vision_like.input.bad import BadExample
from big_vision_like.input.formats import rows


def png(value):
  out = io.BytesIO()
  Image.new("L", (2, 2), value).save(out, "PNG")
  return out.getvalue()


def opened(name, path, **options):
  spec = ", ".join([repr(str(path)), *(f"{k}={v!r}" for k, v in options.items())])
  return sources.open_source(f"{name}({spec})")


def kind(source, index):
  with pytest.raises(BadExample) as e:
    source[index]
  return e.value.kind


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "img").mkdir()
  for i in range(3):
    (tmp_path / "img" / f"{i}.png").write_bytes(png(i))
  (tmp_path.parent / "secret.png").write_bytes(b"secret")
  return tmp_path


# ------------------------------------------------------------------------------------------ table


def test_csv(folder):
  (folder / "a.csv").write_bytes(
    b"\xef\xbb\xbfid,path, caption,kind\r\n"
    b'0,img/0.png,"two\r\nlines, ""quoted""",dog\r\n'
    b"\r\n"
    b"1,img/1.png,,cat\r\n"
    b"2,img/2.png,last,dog"
  )
  source = opened("table", folder / "a.csv", image="path", text="caption", label="kind")
  got = [source[i] for i in range(len(source))]
  assert [e["text"] for e in got] == ['two\r\nlines, "quoted"', "", "last"]
  assert [e["label"] for e in got] == [1, 0, 1] and source.classes == ["cat", "dog"]
  assert [e["image"] for e in got] == [png(0), png(1), png(2)]
  for example in got:
    schema.check(example)
  with pytest.raises(IndexError):
    source[3]


def test_tsv_has_no_quotes(folder):
  (folder / "a.tsv").write_text('image\ttext\tlabel\nimg/0.png\ta 5" pipe\t7\nimg/1.png\tb\t-1\n')
  source = opened("table", folder / "a.tsv", label="label")
  assert source[0] == {"image": png(0), "text": 'a 5" pipe', "label": 7}
  assert source[1]["label"] == -1


def test_tables_of_a_pattern_have_their_own_headers(folder):
  (folder / "p-0.csv").write_text("image,text\nimg/0.png,a\nimg/1.png,b\n")
  (folder / "p-1.csv").write_text("text,image\nc,img/2.png\n")
  source = opened("table", folder / "p-{0..1}.csv")
  assert [(e["text"], e["image"]) for e in map(source.__getitem__, range(3))] == [
    ("a", png(0)),
    ("b", png(1)),
    ("c", png(2)),
  ]
  with pytest.raises(UserError, match="1 of 3 files are missing"):
    opened("table", folder / "p-{0..2}.csv")
  assert len(opened("table", folder / "p-{0..2}.csv", allow_missing_shards=True)) == 3


def test_root(folder):
  (folder / "sub").mkdir()
  (folder / "sub" / "a.csv").write_text("image,text\n1.png,b\n")
  source = opened("table", folder / "sub" / "a.csv", root=str(folder / "img"))
  assert source[0]["image"] == png(1)
  assert kind(opened("table", folder / "sub" / "a.csv"), 0) == "missing file"
  with pytest.raises(UserError, match="is not a folder"):
    opened("table", folder / "sub" / "a.csv", root=str(folder / "imgs"))


def test_bad_rows(folder):
  (folder / "a.csv").write_bytes(
    b"image,text\n../secret.png,x\nimg/9.png,x\nimg/0.png\nimg/0.png,\xff\n,x\nimg/2.png,fine\n"
  )
  source = opened("table", folder / "a.csv")
  assert [kind(source, i) for i in range(5)] == [
    "unsafe path",
    "missing file",
    "broken line",
    "not UTF-8",
    "missing image",
  ]
  assert source[5]["text"] == "fine"


def test_bad_rows_are_counted_and_replaced(folder):
  (folder / "a.csv").write_bytes(b"image,text\nimg/0.png,\xff\nimg/1.png,one\nimg/9.png,x\n")
  cfg = {"source": f"table('{folder}/a.csv')", "pp": "decode|keep(image, text)", "num_threads": 1}
  cfg |= {"max_bad_fraction": 1.0, "shuffle": False}
  stream = pipeline.train_batches(cfg, batch_size=3, seed=0, start_step=0)
  batch = next(stream)
  stream.close()
  assert batch["text"].tolist() == ["one"] * 3 and (batch["image"] == 1).all()
  assert stream.bad.kinds == {"not UTF-8": 2, "missing file": 1}  # row 2's neighbour is row 0


@pytest.mark.parametrize(
  "name, content, message",
  [
    ("a.csv", b"image,caption\nx.png,y\n", "column 'text' is unknown.*caption, image"),
    ("a.csv", b"", "column 'image' is unknown"),
    ("a.csv", b"\xff,text\nx.png,y\n", "header is not UTF-8"),
    ("a.csv", b'image,text\nx.png,"' + b"y" * 200_000, "quote"),
    ("a.tsv", b"\x1f\x8b\0\0\n", "compressed"),
    ("a.txt", b"image,text\n", "ends in txt"),
  ],
)
def test_table_errors(tmp_path, name, content, message):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(UserError, match=message):
    opened("table", tmp_path / name)


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\0\ufeff"), max_size=8)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(CELL, CELL), max_size=8), st.sampled_from(["\n", "\r\n"]))
def test_rows_are_those_of_the_csv_module(pairs, end):
  pairs = [p for p in pairs if any(cell.strip() for cell in p)]  # others are empty rows
  with tempfile.TemporaryDirectory() as folder:
    path = f"{folder}/a.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
      writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator=end)
      writer.writerows([("text", "label"), *pairs])
    found = rows.Rows([path], "test", quoted=True, header=True)
    got = [tuple(rows.cells(found[i][1], False, "")) for i in range(len(found))]
  assert got == pairs


# ------------------------------------------------------------------------------------------ jsonl


def test_jsonl(folder):
  inline = base64.b64encode(png(7)).decode()
  examples = [
    {"image": "img/0.png", "caption": "a", "n": 1, "class": 3},
    {"image": f"data:image/png;base64,{inline}", "caption": ["b", "c"], "n": 2, "class": 4},
    {"image": inline, "caption": "", "n": 3, "class": 5},
  ]
  text = "\n\n".join(map(json.dumps, examples))  # an empty line between, no end of the last one
  (folder / "a.jsonl").write_text(text)
  source = opened("jsonl", folder / "a.jsonl", text="caption", label="class")
  got = [source[i] for i in range(len(source))]
  assert [e["image"] for e in got] == [png(0), png(7), png(7)]
  assert [e["text"] for e in got] == ["a", ["b", "c"], ""]
  assert [(e["n"], e["label"]) for e in got] == [(1, 3), (2, 4), (3, 5)]
  for example in got:
    schema.check(example)
    assert example.keys() == {"image", "text", "label", "n"}


def test_jsonl_bad_lines(folder):
  lines = [
    b'{"image": "img/0.png", "text": "cut',
    b"[1]",
    b'{"text": "no image"}',
    b'{"image": "img/0.png", "text": "\xff"}',
    b'{"image": "not base64!", "text": ""}',
    b'{"image": "data:image/png,abc", "text": ""}',
    b'{"image": "../secret.png", "text": ""}',
    b'{"image": null, "text": ""}',
    b"[" * 100_000,
    b'{"image": "img/1.png", "text": "fine"}',
  ]
  (folder / "a.jsonl").write_bytes(b"\n".join(lines))
  source = opened("jsonl", folder / "a.jsonl")
  assert [kind(source, i) for i in range(9)] == [
    "broken line",
    "broken line",
    "missing key",
    "not UTF-8",
    "bad base64",
    "bad base64",
    "unsafe path",
    "missing image",
    "broken line",
  ]
  assert source[9] == {"image": png(1), "text": "fine"}


def test_label_must_be_a_number(folder):
  (folder / "a.jsonl").write_text('{"y": "dog"}\n{"y": true}\n{"y": 1}\n')
  source = opened("jsonl", folder / "a.jsonl", image="", text="", label="y")
  assert [kind(source, i) for i in range(2)] == ["label not a number"] * 2
  assert source[2] == {"label": 1}


def test_lines_across_blocks_and_a_kept_index(tmp_path, monkeypatch):
  monkeypatch.setattr(rows, "BLOCK", 7)
  texts = [f"{'x' * (i % 11)}{i}" for i in range(100)]
  path = tmp_path / "a.jsonl"
  path.write_text("\n".join(json.dumps({"text": t}) for t in texts) + "\n")
  source = opened("jsonl", path, image="")
  assert [source[i]["text"] for i in range(len(source))] == texts

  def fails(*args, **kwargs):
    raise AssertionError("the file is searched again")

  monkeypatch.setattr(rows, "_lines", fails)
  assert opened("jsonl", path, image="")[99]["text"] == texts[99]  # from the index
  monkeypatch.undo()
  path.write_text('{"text": "new"}\n')  # the index is of another file now
  assert [e["text"] for e in [opened("jsonl", path, image="")[0]]] == ["new"]


def test_through_fsspec():
  fsspec = pytest.importorskip("fsspec")
  fs = fsspec.filesystem("memory")
  fs.pipe("/lines/a.jsonl", b'{"image": "b.png", "text": "x"}\n')
  fs.pipe("/lines/b.png", b"bytes")
  with tempfile.TemporaryDirectory() as cache:
    source = opened("jsonl", "memory://lines/a.jsonl", cache=cache)
  assert source[0] == {"image": b"bytes", "text": "x"}


def test_starts_of_a_large_file(tmp_path):
  line = b'{"text": "abc"}\n'
  (tmp_path / "a.jsonl").write_bytes(line * 100_000)
  found = rows._lines(str(tmp_path / "a.jsonl"), "test")
  np.testing.assert_array_equal(found["starts"], np.arange(100_000) * len(line))
  assert (found["stops"] - found["starts"] == len(line) - 1).all()
