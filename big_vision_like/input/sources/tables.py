"""A table of names and texts beside zips of images: sets of image-text pairs in a few files."""

import csv
import functools
import io
import pathlib
import zipfile
from typing import Any

import numpy as np

from big_vision_like.config import UserError, unknown


class _ZipTable:
  def __init__(self, rows: list[tuple[pathlib.Path, str, str]]):
    self.rows = rows
    self.labels = {t: i for i, t in enumerate(sorted({text for _, _, text in rows}))}

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, index: int) -> dict[str, Any]:
    file, name, text = self.rows[index]
    return {"image": _on_white(_open(file).read(name)), "label": self.labels[text], "text": text}


@functools.cache
def _open(file: pathlib.Path) -> zipfile.ZipFile:
  return zipfile.ZipFile(file)  # reading from several threads is safe


def _on_white(data: bytes) -> bytes | np.ndarray:
  """uint8 [H, W, 3] where the image has transparent parts: they become white; else as it is."""
  from PIL import Image

  with Image.open(io.BytesIO(data)) as picture:
    if not picture.has_transparency_data:
      return data
    picture = picture.convert("RGBA")
  white = Image.new("RGBA", picture.size, "white")
  return np.asarray(Image.alpha_composite(white, picture).convert("RGB"))


def zip_table(
  images: str | tuple[str, ...],
  table: str,
  image: str | tuple[str, ...],
  text: str,
  where: str = "",
) -> _ZipTable:
  """Rows of a table whose `image` column names a member of the zip `images`; text, label of it.

  image: encoded bytes for `decode`, or composited on white where it is transparent.

  Args:
    images: path of a zip, or of several.
    table: path of a .tsv or .csv file with a header.
    image: for each zip the column with its members' names; a row without a name there is left out.
    text: the column of captions; rows without one are left out.
    where: "column=value,other!=value": only rows for which all hold; an empty value is none.

  Raises:
    UserError: a file that is not there or not a zip, a column that the table lacks, a name that the
      zip lacks.
  """
  images, image = ((x,) if isinstance(x, str) else tuple(x) for x in (images, image))
  if len(images) != len(image):
    raise UserError(f"source zip_table: {len(images)} images, but image names {len(image)} columns")
  rows, columns = _read(table)
  conditions = [_condition(c, columns) for c in filter(None, where.split(","))]
  for column in (*image, text):
    if column not in columns:
      raise unknown(f"source zip_table: {table}: column", column, columns)
  out = []
  for file, column in zip(images, image):
    members = _members(file)
    for row in rows:
      if row[column] and row[text] and all((row[c] == v) == same for c, v, same in conditions):
        if row[column] not in members:
          raise UserError(f"source zip_table: {file} has no {row[column]!r}, named in {table}")
        out.append((pathlib.Path(file), row[column], row[text]))
  return _ZipTable(out)


def _condition(text: str, columns: list[str]) -> tuple[str, str, bool]:
  """`"a=b"` -> (a, b, True), `"a!=b"` -> (a, b, False)."""
  column, equals, value = text.strip().partition("=")
  same = not column.endswith("!")
  column = column.removesuffix("!")
  if not equals:
    raise UserError(f"source zip_table: where: {text!r}; expected column=value or column!=value")
  if column not in columns:
    raise unknown("source zip_table: where: column", column, columns)
  return column, value, same


@functools.cache
def _members(file: str) -> frozenset[str]:
  try:
    return frozenset(_open(pathlib.Path(file)).namelist())
  except (OSError, zipfile.BadZipFile) as e:
    raise UserError(f"source zip_table: images {file!r} cannot be read as a zip: {e}") from None


@functools.cache
def _read(table: str) -> tuple[list[dict[str, str]], list[str]]:
  try:
    with open(table, newline="", encoding="utf-8") as file:
      quoting = csv.QUOTE_NONE if table.endswith(".tsv") else csv.QUOTE_MINIMAL
      delimiter = "\t" if table.endswith(".tsv") else ","
      reader = csv.DictReader(file, delimiter=delimiter, quoting=quoting, restval="")
      return list(reader), list(reader.fieldnames or ())
  except OSError as e:
    raise UserError(f"source zip_table: table {table!r}: {e.strerror}") from None
