"""Glyphs of the DejaVu fonts that matplotlib ships, each with its Unicode name as caption.

Thousands of exact, compositional image-text pairs without a download: "greek small letter alpha
with tonos", "box drawings heavy down and light horizontal", "braille pattern dots-1245".
"""

import functools
import hashlib
import pathlib
import threading
import unicodedata
from typing import Any

import numpy as np

from big_vision_like.config import unknown, whole_number

FONTS = (  # all but the last train
  "Sans",
  "Sans-Bold",
  "Sans-Oblique",
  "Sans-BoldOblique",
  "SansMono",
  "SansMono-Bold",
  "SansMono-Oblique",
  "SansMono-BoldOblique",
  "Serif",
  "Serif-Bold",
  "Serif-Italic",
  "Serif-BoldItalic",
)
TEST_FONT = FONTS[-1]

SCRIPTS = {  # where the words of a name say what is to be seen
  "latin": "LATIN ",
  "greek": "GREEK ",
  "cyrillic": "CYRILLIC ",
  "armenian": "ARMENIAN ",
  "georgian": "GEORGIAN ",
  "hebrew": "HEBREW ",
  "arabic": "ARABIC ",  # presentation forms: "arabic letter beh initial form"
  "braille": "BRAILLE PATTERN ",
  "box": "BOX DRAWINGS ",
  "cards": "PLAYING CARD ",
  "domino": "DOMINO TILE ",
  "arrows": ((0x2190, 0x21FF), (0x27F0, 0x27FF), (0x2900, 0x297F)),
  "math": ((0x2200, 0x22FF), (0x2A00, 0x2AFF)),
  "blocks": ((0x2580, 0x259F),),
  "shapes": ((0x25A0, 0x25FF),),
}

SPLITS = ("train", "val", "test_font", "test_characters")
_LOCK = threading.Lock()  # a FreeType face is not to be used by two threads at once


def _fraction(*key: Any) -> float:
  """A number in [0, 1) that belongs to `key` on every machine, for ever."""
  digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
  return int.from_bytes(digest, "big") / 2**64


def _held_out(code: int) -> bool:
  """A fixed tenth of the characters is never trained on, in any font."""
  return _fraction(code) < 0.1


def _path(font: str) -> pathlib.Path:
  import matplotlib

  return pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"DejaVu{font}.ttf"


def _in_script(script: str, code: int) -> bool:
  place = SCRIPTS[script]
  if isinstance(place, str):
    return unicodedata.name(chr(code), "").startswith(place)
  return any(low <= code <= high for low, high in place)


@functools.cache
def _characters(font: str, script: str) -> frozenset[int]:
  """Code points of the script that the font itself draws: a glyph with outlines and a name."""
  codes = [c for c in _drawn(font) if _in_script(script, c)]
  # Combining marks have no place of their own: they would be drawn over the edge.
  return frozenset(c for c in codes if unicodedata.category(chr(c))[0] in "LNPS")


@functools.cache
def _drawn(font: str) -> tuple[int, ...]:
  from fontTools.ttLib import TTFont

  with TTFont(_path(font), lazy=True) as table:
    begins, number = table["loca"].locations, table.getReverseGlyphMap()
    ids = {code: number[name] for code, name in table.getBestCmap().items()}
  return tuple(c for c, i in ids.items() if i and begins[i] < begins[i + 1])  # 0 is .notdef


@functools.cache
def _font(font: str, points: int) -> Any:
  from PIL import ImageFont

  # The basic layout is there whatever libraries PIL was built with.
  engine = ImageFont.Layout.BASIC
  return ImageFont.truetype(str(_path(font)), points, layout_engine=engine)


@functools.lru_cache(maxsize=1 << 16)
def _render(font: str, code: int, size: int) -> np.ndarray:
  """uint8 [size, size, 1], white on black.

  The advance width and the line, not the ink, are in the centre: a comma and an apostrophe, or
  two braille dots, differ only by where they are. What is larger than the image is drawn smaller.
  """
  from PIL import Image, ImageDraw

  text, points = chr(code), round(0.8 * size)
  with _LOCK:
    while True:
      pen = _font(font, points)
      ascent, descent = pen.getmetrics()
      place = (size / 2, (size + ascent - descent) / 2)
      left, top, right, bottom = pen.getbbox(text, anchor="ms")
      x, y = place
      fits = min(x + left, y + top) >= 0 and max(x + right, y + bottom) <= size
      if fits or points <= size // 4:
        break
      points -= 1
    image = Image.new("L", (size, size))
    ImageDraw.Draw(image).text(place, text, fill=255, font=pen, anchor="ms")
  array = np.asarray(image)[..., None]
  array.flags.writeable = False  # shared by everyone who asks for this glyph
  return array


class _Glyphs:
  """Rendered when first asked for; ordered by font, then code point."""

  def __init__(self, split: str, size: int, scripts: list[str], fonts: list[str]):
    self.size = size
    every = {f: frozenset().union(*(_characters(f, s) for s in scripts)) for f in FONTS}
    self.labels = {c: i for i, c in enumerate(sorted(frozenset().union(*every.values())))}
    self.pairs = [
      (f, c)
      for f in fonts
      for c in sorted(every[f])
      if _held_out(c) == (split == "test_characters")
      and (split not in ("train", "val") or (_fraction(f, c) < 0.05) == (split == "val"))
    ]

  def __len__(self) -> int:
    return len(self.pairs)

  def __getitem__(self, index: int) -> dict[str, Any]:
    font, code = self.pairs[index]
    image = _render(font, code, self.size)
    return {
      "image": image,
      "text": unicodedata.name(chr(code)).lower(),
      "label": self.labels[code],
    }


def glyphs(
  split: str = "train", size: int = 32, scripts: str = "all", fonts: str = "all"
) -> _Glyphs:
  """image uint8 [size, size, 1], text its Unicode name in lower case, label of the character.

  Labels count the sorted code points of the chosen scripts, the same in every split. Fonts differ
  in what they have; a character that a font lacks is not drawn. Letters such as latin, greek and
  cyrillic capital a look alike, so no model can name all of them.

      train            25,354  11 fonts, nine tenths of the characters
      val               1,318  a fixed twentieth of these pairs, not in train
      test_font         2,379  the trained characters in DejaVu Serif Bold Italic
      test_characters   2,730  the held-out tenth of the characters in the 11 fonts

  Args:
    split: one of the above.
    size: side of the image; letters are about half of it.
    scripts: "all" or names of `SCRIPTS` with commas: "latin,greek".
    fonts: "all" those of the split, or some of them with commas: "Sans,Serif-Bold".

  Raises:
    UserError: an unknown split, script or font, a size that is no whole number of at least 8.
  """
  if split not in SPLITS:
    raise unknown("source glyphs: split", split, SPLITS)
  whole_number(size, "source glyphs: size", 8)
  known = [TEST_FONT] if split == "test_font" else list(FONTS[:-1])
  return _Glyphs(
    split, size, _chosen("scripts", scripts, list(SCRIPTS)), _chosen("fonts", fonts, known)
  )


def _chosen(key: str, text: str, known: list[str]) -> list[str]:
  """`"all"` or names with commas -> those of `known`, in its order."""
  names = known if text == "all" else [n.strip() for n in str(text).split(",")]
  for name in names:
    if name not in known:
      raise unknown(f"source glyphs: {key}", name, ["all", *known])
  return [n for n in known if n in names]
