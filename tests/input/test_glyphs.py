"""Glyphs: what the splits hold back, what the fonts really draw, the same pixels every time."""

import unicodedata

import numpy as np
import pytest

from big_vision_like.config import UserError
from big_vision_like.input import sources
from big_vision_like.input.sources import glyphs as module
from big_vision_like.input.sources.glyphs import glyphs


def pairs(split, **options):
  return set(glyphs(split, **options).pairs)


def test_splits_hold_back_characters_a_font_and_pairs():
  train, val, font, characters = (pairs(s) for s in module.SPLITS)
  codes = lambda rows: {code for _, code in rows}
  fonts = lambda rows: {font for font, _ in rows}
  assert not train & val
  assert not codes(train | val | font) & codes(characters)
  assert fonts(train) == fonts(characters) == set(module.FONTS[:-1])
  assert fonts(font) == {module.TEST_FONT}
  assert len(codes(font)) == len(font)  # retrieval by name: every name once
  assert codes(font) <= codes(train | val)
  # The docstring's figures; another release of the fonts would change them.
  assert [len(x) for x in (train, val, font, characters)] == [25_354, 1_318, 2_379, 2_730]


def test_held_out_characters_never_change():
  held = [c for c in range(0x41, 0x3CA) if module._held_out(c)]
  assert held[:6] == [74, 95, 106, 123, 139, 153] and 0.05 < len(held) / (0x3CA - 0x41) < 0.15


def test_example():
  source = sources.open_source("glyphs(split='train', size=24, scripts='greek', fonts='Serif')")
  labels = sorted({c for f in module.FONTS for c in module._characters(f, "greek")})
  by_text = {}
  for i in range(len(source)):
    example = source[i]
    by_text[example["text"]] = example
    assert unicodedata.lookup(example["text"].upper()) == chr(labels[example["label"]])
    image = example["image"]
    assert image.shape == (24, 24, 1) and image.dtype == np.uint8 and image.max() > 100
  assert "greek small letter alpha with tonos" in by_text
  again = glyphs("train", 24, "greek", "Serif")
  module._render.cache_clear()
  for i in (0, len(again) - 1):
    np.testing.assert_array_equal(again[i]["image"], source[i]["image"])


def test_the_place_in_the_line_is_kept():
  """Two braille dots differ by nothing else, and a wide arrow is not cut."""
  ink = lambda code: module._render("Sans", code, 32)[..., 0] > 128
  first, third = ink(0x2801), ink(0x2804)
  assert np.nonzero(first)[0].mean() < np.nonzero(third)[0].mean() - 4
  wide = ink(0x27F6)
  assert np.ptp(np.nonzero(wide)[1]) > 24 and not wide[:, [0, -1]].all(axis=0).any()


def test_only_what_the_font_draws():
  assert not module._characters("Serif", "hebrew") and module._characters("Sans", "hebrew")
  assert 0x2800 not in module._characters("Sans", "braille")  # braille pattern blank
  everything = glyphs("val")
  assert all(everything[i]["image"].any() for i in range(len(everything)))


@pytest.mark.parametrize(
  "options, message",
  [
    ("split='test'", "split 'test' is unknown; did you mean test_font"),
    ("scripts='greek,latn'", "scripts 'latn' is unknown; did you mean latin"),
    ("fonts='Serif-BoldItalic'", "fonts 'Serif-BoldItalic' is unknown"),
    ("size=4", "size = 4; expected a whole number >= 8"),
  ],
)
def test_mistakes(options, message):
  with pytest.raises(UserError, match=message):
    sources.open_source(f"glyphs({options})")
