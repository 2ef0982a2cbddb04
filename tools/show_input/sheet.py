"""The contact sheet as one PNG."""

import math
import pathlib
import textwrap

import numpy as np

from tools.show_input.examples import Shown

WIDTH, MARGIN, LINE = 200, 8, 14
LETTERS = 32
"""Of a line of text."""
LINES = 4
"""Of one text."""


def draw(sections: list[tuple[str, list[Shown]]]) -> np.ndarray:
  """uint8 [H, W, 3]: the examples of each section row by row, below its name."""
  parts = []
  for name, examples in sections:
    columns = min(8, max(1, math.ceil(math.sqrt(len(examples)))))
    width = columns * (WIDTH + MARGIN) + MARGIN
    if name:
      parts.append(_lines([name], width))
    tiles = [_tile(e) for e in examples]
    for i in range(0, len(tiles), columns):
      parts.append(_row(tiles[i : i + columns], width))
  widest = max(p.shape[1] for p in parts)
  return np.concatenate([_padded(p, p.shape[0], widest) for p in parts])


def _row(tiles: list[np.ndarray], width: int) -> np.ndarray:
  height = max(t.shape[0] for t in tiles) + MARGIN
  row = np.concatenate([_padded(t, height, WIDTH + MARGIN, left=MARGIN) for t in tiles], 1)
  return _padded(row, height, width)


def _padded(x: np.ndarray, height: int, width: int, left: int = 0) -> np.ndarray:
  out = np.full((height, width, 3), 255, np.uint8)
  out[: x.shape[0], left : left + x.shape[1]] = x
  return out


def _tile(example: Shown) -> np.ndarray:
  """Its pictures, one below the other, and its texts, [height, WIDTH, 3]."""
  lines = [example.title]
  for key, value in example.texts:
    lines += textwrap.wrap(f"{key}: {value}", LETTERS, max_lines=LINES, placeholder=" ...")
  parts = [_padded(p := _fitted(x), p.shape[0] + 2, WIDTH) for _, x in example.pictures]
  return np.concatenate([*parts, _lines(lines, WIDTH)])


def _fitted(picture: np.ndarray) -> np.ndarray:
  """Scaled to fit WIDTH x WIDTH; small ones by a whole number, so that pixels stay pixels."""
  from PIL import Image

  scale = WIDTH / max(picture.shape[:2])
  scale = math.floor(scale) if scale >= 1 else scale
  height, width = (max(1, round(s * scale)) for s in picture.shape[:2])
  how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BILINEAR
  return np.asarray(Image.fromarray(picture).resize((width, height), how))


def _lines(lines: list[str], width: int) -> np.ndarray:
  import matplotlib
  from PIL import Image, ImageDraw, ImageFont

  font = pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
  out = Image.new("RGB", (width, LINE * len(lines) + 4), "white")
  pen = ImageDraw.Draw(out)
  for i, line in enumerate(lines):
    pen.text((0, i * LINE), line, "black", ImageFont.truetype(str(font), 11))
  return np.asarray(out)
