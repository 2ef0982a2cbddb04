"""A zip of images and a table of captions, made here."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from big_vision_like.config import UserError
from big_vision_like.input import sources


def png(mode, colour):
  out = io.BytesIO()
  Image.new(mode, (4, 4), colour).save(out, "PNG")
  return out.getvalue()


@pytest.fixture
def folder(tmp_path):
  for name, mode, colour in (("a", "RGB", (10, 20, 30)), ("b", "RGBA", (200, 0, 0, 0))):
    with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as file:
      for i in range(3):
        file.writestr(f"{name}{i}.png", png(mode, colour))
  (tmp_path / "pairs.tsv").write_text(
    'in_a\tin_b\tname\ttone\na0.png\tb0.png\tcat "x"\t\na1.png\t\tdog\t1\n'
    "\tb2.png\tant\t\na2.png\t\t\t\n"
  )
  return tmp_path


def rows(folder, **changes):
  options = dict(images=f"{folder}/a.zip", table=f"{folder}/pairs.tsv", image="in_a", text="name")
  spec = ", ".join(f"{k}={v!r}" for k, v in (options | changes).items())
  source = sources.open_source(f"zip_table({spec})")
  return [source[i] for i in range(len(source))]


def test_rows_with_image_and_text(folder):
  assert [(r["text"], r["label"]) for r in rows(folder)] == [('cat "x"', 0), ("dog", 1)]
  assert rows(folder)[0]["image"] == png("RGB", (10, 20, 30))  # bytes, for decode
  both = rows(folder, images=(f"{folder}/a.zip", f"{folder}/b.zip"), image=("in_a", "in_b"))
  assert [r["text"] for r in both] == ['cat "x"', "dog", 'cat "x"', "ant"]
  assert both[0]["label"] == both[2]["label"]


def test_transparent_is_white(folder):
  [cat, _] = rows(folder, images=f"{folder}/b.zip", image="in_b")
  np.testing.assert_array_equal(cat["image"], np.full((4, 4, 3), 255, np.uint8))


def test_where(folder):
  names = lambda where: [r["text"] for r in rows(folder, where=where)]
  assert names("tone=") == ['cat "x"'] and names("tone!=") == ["dog"] == names("tone=1")
  assert names("tone=1,name!=dog") == []


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(text="nmae"), "column 'nmae' is unknown; did you mean name"),
    (dict(where="ton=1"), "where: column 'ton' is unknown; did you mean tone"),
    (dict(where="tone"), "'tone'; expected column=value"),
    (dict(image=("in_a", "in_b")), "1 images, but image names 2 columns"),
    (dict(image="in_b"), "has no 'b0.png'"),
    (dict(table="none.tsv"), "table 'none.tsv': No such file"),
    (dict(images="none.zip"), "'none.zip' cannot be read as a zip"),
  ],
)
def test_mistakes(folder, changes, message):
  with pytest.raises(UserError, match=message):
    rows(folder, **changes)
