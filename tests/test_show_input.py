"""tools.show_input: the page and the sheet show the examples that train reads, and nothing raw."""

import base64
import html
import io
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from big_vision_like.config import UserError, wrap
from big_vision_like.input import ops, pipeline, tokenizers
from configs import siglip
from tools.show_input import __main__ as command
from tools.show_input import examples, pictures, sheet

ROOT = pathlib.Path(__file__).parents[1]
# What ml_collections reads a config file with, on Python 3.11.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
NOTHING = examples.Reading({}, {})


def run(out, *args):
  assert command.main(["show_input", "--out", str(out), *args]) == 0
  drawn = Image.open(out / "sheet.png")
  drawn.load()
  assert min(drawn.size) > 100
  return (out / "index.html").read_text(), drawn


def images(page):
  found = re.findall(r'<img alt="([^"]*)" src="data:image/png;base64,([^"]+)">', page)
  return [(key, np.asarray(Image.open(io.BytesIO(base64.b64decode(x))))) for key, x in found]


def test_pairs(tmp_path):
  page, _ = run(tmp_path, "--config", "configs/siglip.py:smoke", "--count", "5", "--batch", "3")
  config = siglip.get_config("smoke")
  source = pipeline.Input(config.input.to_dict(), seed=0)
  batch = next(stream := source.batches(batch_size=128, start_step=3))
  stream.close()
  tokenizer = tokenizers.sentencepiece("train:digit_pairs", 96)
  found = images(page)
  assert [key for key, _ in found] == ["image"] * 5
  for i in range(5):
    pixels = np.round((batch["image"][i, ..., 0] + 1) * 127.5).astype(np.uint8)
    np.testing.assert_allclose(found[i][1][..., 0], pixels, atol=1)
    assert f"</span> {tokenizer.decode(batch['text'][i])}<" in page
    assert f"row {3 * 128 + i}, example " in page
  assert 'src="http' not in page and "<script" not in page


def test_views(tmp_path):
  page, _ = run(tmp_path, "--config", "configs/dino.py:smoke", "--count", "4")
  found = images(page)
  assert [key for key, _ in found] == ["global", "local"] * 4
  assert found[0][1].shape == (12, 12 * 2 + pictures.GAP, 3)
  assert found[1][1].shape == (8, 8 * 2 + pictures.GAP, 3)


def write_config(folder, text):
  file = folder / "tiny.py"
  file.write_text(
    f"from ml_collections import ConfigDict\n\n\ndef get_config():\n  return {text}\n"
  )
  return str(file)


TWO = """ConfigDict({"seed": 1, "input": {"batch_size": 4,
  "pairs": {"source": "digit_pairs(size=50)", "pp": "keep(image, text)"},
  "images": {"pp": "value_range(0, 1)|keep(image, label)",
    "parts": {"a": {"source": "digits"},
      "b": {"source": "digits(split='test')", "weight": 3}}}}})"""


def test_two_batches_and_a_mixture(tmp_path):
  page, _ = run(tmp_path, "--config", write_config(tmp_path, TWO), "--count", "6")
  assert re.findall(r"<h2>(.*?)</h2>", page) == [
    "images: 6 examples from row 0",
    "pairs: 6 examples from row 0",
  ]
  assert len(images(page)) == 12
  # Of every four examples, three are of part b.
  assert len(re.findall(r"<b>row \d, b \d+</b>", page)) in (4, 5)
  assert len(re.findall(r"</span> \w+ (left of|right of|then) ", page)) + page.count("on the") >= 6
  assert html.escape("digits(split='test')", quote=False) in html.unescape(page)


def test_everything_is_escaped_and_bad_examples_are_named(tmp_path):
  for name in ("<b>cat", "dog"):
    (tmp_path / "in" / name).mkdir(parents=True)
    for i in range(3):
      out = io.BytesIO()
      Image.fromarray(np.full((6, 6, 3), 40 * i, np.uint8)).save(out, "PNG")
      (tmp_path / "in" / name / f"{i}.png").write_bytes(out.getvalue())
  (tmp_path / "in" / "dog" / "0.png").write_bytes(b"")
  source = f"image_folder('{tmp_path / 'in'}')"
  config = {"seed": 0, "input": {"source": source, "pp": "decode", "batch_size": 6}}
  page, _ = run(
    tmp_path, "--config", write_config(tmp_path, f"ConfigDict({config!r})"), "--count", "6"
  )
  assert "&lt;b&gt;cat" in page and "<b>cat" not in page
  assert "Replaced by its neighbour: bad example 3 of image_folder" in page


def test_device_augmentation_is_applied(tmp_path):
  config = {
    "seed": 0,
    "augment": "solarize(p=1.0, threshold=0.0)|normalize(0.5, 0.5)",
    "input": {"source": "digits", "pp": "keep(image)", "batch_size": 4},
  }
  file = write_config(tmp_path, f"ConfigDict({config!r})")
  page, _ = run(tmp_path, "--config", file, "--count", "4")
  batch = next(
    stream := pipeline.Input(config["input"], seed=0).batches(batch_size=4, start_step=0)
  )
  stream.close()
  for i, (_, found) in enumerate(images(page)):
    np.testing.assert_allclose(found[..., 0], 255 - batch["image"][i, ..., 0].astype(int), atol=1)
  assert "solarize" in page


# --------------------------------------------------------------------------------- what keys become


def shown(row, how=NOTHING):
  out = examples.shown("t", row, how)
  return dict(out.pictures), dict(out.texts)


def test_masks_lie_over_the_picture():
  row = {
    "image": np.zeros((32, 64, 3), np.uint8),
    "flat": np.arange(32) < 8,  # 4 x 8 patches: the first row
    "grid": np.eye(2, 4, dtype=bool),
    "several": np.stack([np.arange(32) < 8] * 3),
    "mask": np.arange(7) < 2,  # no grid
  }
  found, texts = shown(row)
  assert found.keys() == {"image", "flat", "grid", "several"} and texts == {"mask": "2 of 7"}
  red = found["flat"][..., 0] > 0
  assert red[:8].all() and not red[8:].any()
  assert (found["grid"][..., 0] > 0).sum() == 2 * 16 * 16
  assert found["several"].shape == (32, 64 * 3 + 2 * pictures.GAP, 3)


def test_masks_of_tokens_are_no_pictures():
  row = {
    "image": np.zeros((32, 32, 3), np.uint8),
    "text": np.arange(16, dtype=np.int32),
    "loss_mask": np.arange(16) < 3,
  }
  found, texts = shown(row)
  assert found.keys() == {"image"} and texts["loss_mask"] == "3 of 16"
  assert texts["text"].startswith("int32[16]: 0, 1, 2")


def test_sound_video_depth():
  row = {
    "audio": np.sin(np.arange(1000, dtype=np.float32)),
    "spectrogram": np.arange(50 * 20, dtype=np.float32).reshape(50, 20),
    "video": np.zeros((40, 6, 8, 3), np.uint8),
    "depth": np.full((5, 6), np.nan, np.float32),
    "fps": np.float32(12.5),
    "text": ["a", "b"],
    "document": [{"text": "see"}, {"image": b"123"}],
    "empty": np.zeros((0, 4), np.float32),
  }
  found, texts = shown(row)
  assert found.keys() == {"audio", "spectrogram", "video", "depth"}
  assert found["spectrogram"].shape == (20, 50, 3)
  assert found["spectrogram"][0, -1].sum() > found["spectrogram"][-1, 0].sum()
  assert found["video"].shape == (6, 8 * pictures.MOST + 15 * pictures.GAP, 3)
  assert texts["fps"] == "12.5" and texts["text"] == "a | b"
  assert texts["document"] == "text: see | image: 3 bytes"
  assert sheet.draw([("one", [examples.shown("t", row, NOTHING)])]).dtype == np.uint8


def test_native_patches_become_the_picture():
  whole = np.random.default_rng(0).integers(0, 255, (8, 12, 3), np.uint8)
  patches = whole.reshape(2, 4, 3, 4, 3).transpose(0, 2, 1, 3, 4).reshape(6, 48)
  row = {"patches": np.pad(patches, ((0, 2), (0, 0))), "patch_grid": np.array([2, 3], np.int32)}
  np.testing.assert_array_equal(shown(row)[0]["patches"], whole)


def test_floats_return_to_pixels():
  pixels = np.random.default_rng(0).integers(0, 255, (4, 4, 3), np.uint8)
  for pp in ("value_range(-1, 1)", "standardize", "value_range(0, 1)|rename(image, view)"):
    row = ops.build(pp)({"image": pixels}, None)
    found, _ = shown(row, examples.reading(pp))
    np.testing.assert_array_equal(next(iter(found.values())), pixels)
  stretched = pictures.image(np.array([[[-3.0], [5.0]]], np.float32))
  assert stretched[0, 0, 0] == 0 and stretched[0, 1, 0] == 255


def test_packed_texts_are_told_apart():
  class Words:
    def decode(self, ids):
      return " ".join("abcd"[i] for i in ids)

  row = {"text": np.array([0, 1, 2, 3, 0]), "segment_ids": np.array([1, 1, 2, 2, 0])}
  _, texts = shown(row, examples.Reading({}, {"text": Words()}))
  assert texts["text"] == "a b / c d"
  _, texts = shown({"text": np.array([9])}, examples.Reading({}, {"text": Words()}))
  assert texts["text"] == "int64[1]: 9"


# ------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize(
  "args, message",
  [
    ((), "--config is missing"),
    (("--config", "configs/siglip.py:smoke", "--config.input.pp=flip_rl"), "did you mean flip_lr"),
    (("--config", "configs/siglip.py:smoke", "--config.input.po=1"), "no key 'po'"),
    (("--config", "configs/siglip.py:smoke", "--count", "0"), "--count = 0"),
    (("--config", "configs/siglip.py:smoke", "--batch", "-1"), "--batch = -1"),
    (("--config", "configs/siglip.py:smoke", "--coun", "1"), "coun"),
    (("--config", "configs/siglip.py:smoke", "x"), "unknown argument 'x'; flags are --config, --"),
  ],
)
def test_mistakes(args, message, tmp_path):
  with pytest.raises(UserError, match=message):
    command.main(["show_input", *args, "--out", str(tmp_path / "out")])
  assert not (tmp_path / "out").exists()


def test_exit_code_and_one_line():
  result = subprocess.run(
    [sys.executable, "-m", "tools.show_input", "--config", "configs/siglip.py:smok"],
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  assert result.returncode == 2 and result.stderr.count("\n") == 1
  assert "'smok' is unknown" in result.stderr


def test_sections_start_where_train_would():
  config = wrap({"seed": 0, "input": {"source": "digits", "pp": "keep(label)", "batch_size": 8}})
  [section] = command.sections(config, 2, 3)
  assert section.first == 16 and [e.title.split(",")[0] for e in section.examples] == [
    "row 16",
    "row 17",
    "row 18",
  ]
