"""Documents of texts and pictures in several layouts, and their op."""

import base64
import io
import json
import pathlib
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from big_vision_like.config import UserError
from big_vision_like.input import ops, schema, sources
from big_vision_like.input.bad import BadExample
from big_vision_like.input.randomness import generator

REAL = pathlib.Path(__file__).parents[4] / "shared/data/interleaved_carpentries"


def png(value, size=(2, 2)):
  out = io.BytesIO()
  Image.new("RGB", size, (value,) * 3).save(out, "PNG")
  return out.getvalue()


def opened(path, **options):
  spec = ", ".join([repr(str(path)), *(f"{k}={v!r}" for k, v in options.items())])
  return sources.open_source(f"documents({spec})")


def kind(source, index):
  with pytest.raises(BadExample) as e:
    source[index]
  return e.value.kind


@pytest.fixture
def folder(tmp_path):
  for i in range(3):
    (tmp_path / f"{i}.png").write_bytes(png(i))
  return tmp_path


def write(path, *rows):
  path.write_text("\n".join(map(json.dumps, rows)))
  return path


A, B = {"image": png(0)}, {"image": png(1)}


@pytest.mark.parametrize(
  "row, parts",
  [
    (
      {"document": [{"text": "x"}, {"image": "0.png"}, {"image": "1.png"}, {"text": ""}]},
      [{"text": "x"}, A, B, {"text": ""}],
    ),
    (
      {"document": [{"image": base64.b64encode(png(1)).decode()}, {"text": "y"}]},
      [B, {"text": "y"}],
    ),
    (
      {"texts": ["x", None, "y", None], "images": [None, "1.png", None, "0.png"]},
      [{"text": "x"}, B, {"text": "y"}, A],
    ),
    (
      {
        "text_list": ["x", "y"],
        "image_info": [
          {"image_name": "0.png", "matched_text_index": 1},
          {"image_name": "1.png", "matched_text_index": 0},
        ],
      },
      [B, {"text": "x"}, A, {"text": "y"}],
    ),
    ({"document": []}, []),
  ],
)
def test_layouts(folder, row, parts):
  source = opened(write(folder / "a.jsonl", row))
  assert len(source) == 1 and source[0] == {"document": parts}
  schema.check(source[0])


def test_markdown(folder):
  (folder / "a.md").write_text(
    "---\ntitle: none\n---\n\n# Head\n\n![a [b]](0.png){alt='c'} more\n![](1.png 'title')\n"
  )
  (folder / "b.md").write_text("[a link](0.png), no picture\n---\n")
  source = opened(folder / "*.md")
  assert source[0]["document"] == [{"text": "# Head"}, A, {"text": "more"}, B]
  assert source[1]["document"] == [{"text": "[a link](0.png), no picture\n---"}]
  write(folder / "a.jsonl", {"document": []})
  with pytest.raises(UserError, match="Markdown and other files"):
    opened(folder / "a.*")


def test_bad_documents(folder):
  source = opened(
    write(
      folder / "a.jsonl",
      {"document": [{"image": "9.png"}]},
      {"document": [{"image": "../9.png"}]},
      {"document": [{"image": "https://example.org/9.png"}]},
      {"document": [{"image": "no base64"}]},
      {"document": [{"text": 3}]},
      {"document": ["text"]},
      {"document": [{"video": "0.mp4"}]},
      {"texts": ["a"], "images": []},
      {"texts": ["a"], "images": ["0.png"]},
      {"text_list": ["a"], "image_info": [{"image_name": "0.png"}]},
      {"text_list": ["a"], "image_info": [{"image_name": "0.png", "matched_text_index": 1}]},
      {"text": "a"},
    )
  )
  assert [kind(source, i) for i in range(len(source))] == [
    "missing file",
    "unsafe path",
    "missing file",
    "bad base64",
    *["broken document"] * 7,
    "missing key",
  ]


def test_missing_pictures_can_be_dropped(folder):
  row = {"document": [{"image": "9.png"}, {"text": "x"}, {"image": "http://a/b"}, {"image": None}]}
  source = opened(write(folder / "a.jsonl", row, {"document": [{"image": "../9"}]}), missing="drop")
  assert source[0] == {"document": [{"text": "x"}]}
  assert kind(source, 1) == "unsafe path"
  with pytest.raises(UserError, match="missing 'skip' is unknown"):
    opened(folder / "a.jsonl", missing="skip")


def test_real_lessons(tmp_path):
  file = REAL / "image_processing_lesson.zip"
  if not file.exists():
    pytest.skip("../shared/data/interleaved_carpentries is absent")
  with zipfile.ZipFile(file) as data:
    data.extractall(tmp_path)
    names = data.namelist()
  source = opened(tmp_path / "episodes" / "*.md", missing="drop")
  kinds = [next(iter(part)) for i in range(len(source)) for part in source[i]["document"]]
  pictures = sum("/fig/" in name for name in names)
  assert len(source) == 9 and kinds.count("image") >= pictures
  op = ops.build("interleave(4, 32)")
  for i in range(len(source)):
    out = op(source[i], generator(0, i))
    assert out["text"].count("<image>") == out["image_mask"].sum() > 0
    schema.check(out)


# --------------------------------------------------------------------------------------------- op


def interleaved(document, spec="interleave(2, 4)"):
  return ops.build(spec)({"document": document, "label": 1}, generator(0, 0))


def test_interleave():
  out = interleaved([{"text": "x"}, {"image": png(7, (3, 9))}, {"text": "y"}])
  assert out["text"] == "x<image>y" and out["label"] == 1 and "document" not in out
  assert out["images"].shape == (2, 4, 4, 3) and out["images"].dtype == np.uint8
  assert (out["images"][0] == 7).all() and not out["images"][1].any()
  assert out["image_mask"].tolist() == [True, False] and out["image_mask"].dtype == bool


def test_further_pictures_go_with_their_placeholders():
  parts = [{"image": png(i)} for i in range(1, 4)]
  out = interleaved([*parts, {"text": "x"}], "interleave(2, 4, placeholder='[i]', sep=' ')")
  assert out["text"] == "[i] [i] x" and out["images"][:, 0, 0, 0].tolist() == [1, 2]
  assert out["image_mask"].all()


PART = st.one_of(
  st.text("<image>x", max_size=12).map(lambda t: {"text": t}), st.just({"image": png(3)})
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(PART, st.just({"text": "<im<image>age>"})), max_size=6))
def test_as_many_placeholders_as_pictures(document):
  out = interleaved(document)
  shown = min(2, sum("image" in part for part in document))
  assert out["text"].count("<image>") == shown == out["image_mask"].sum()


@pytest.mark.parametrize(
  "spec, message",
  [
    ("interleave(0, 4)", "max_images = 0"),
    ("interleave(2, -1)", "image_size = -1"),
    ("interleave(2, 4, placeholder='')", "placeholder = ''"),
    ("interleave(2, 4, method=cubic)", "method 'cubic'"),
  ],
)
def test_interleave_errors(spec, message):
  with pytest.raises(UserError, match=message):
    ops.build(spec)
