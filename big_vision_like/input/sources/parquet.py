"""Parquet files of images and texts, as img2dataset and Hugging Face write them."""

import functools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from big_vision_like.config import UserError, unknown, whole_number
from big_vision_like.input import paths
from big_vision_like.input.bad import BadExample

_WHERE = "source parquet"
_KNOWN = {
  "image": ("image", "img", "jpg", "jpeg", "png", "webp"),
  "text": ("text", "caption", "txt", "TEXT"),
  "label": ("label",),
}
"""Columns that are looked for, in this order, where none is named."""


def _open(file: str, metadata: Any = None) -> Any:
  """Raises `UserError`: not a Parquet file, or no pyarrow."""
  try:
    import pyarrow.parquet as pq
  except ImportError:
    raise UserError(f"{_WHERE}: pyarrow is not installed; pip install -e '.[data]'") from None
  source = paths.open_file(file, _WHERE) if paths.is_remote(file) else file
  try:
    return pq.ParquetFile(source, metadata=metadata)
  except (ValueError, OSError) as e:  # pyarrow.ArrowInvalid is a ValueError
    raise UserError(f"{_WHERE}: {file} cannot be read as Parquet: {e}") from None


@functools.lru_cache(maxsize=64)
def _metadata(file: str, stamp: str) -> Any:
  """The end of a file, which describes all row groups: larger than one of them may be."""
  with _open(file) as data:
    return data.metadata


def _groups(file: str) -> dict[str, np.ndarray]:
  """Rows of each row group."""
  with _open(file) as data:
    groups = range(data.metadata.num_row_groups)
    return {"rows": np.array([data.metadata.row_group(i).num_rows for i in groups], np.int64)}


def _classes(schema: Any, column: str) -> list[str]:
  """Names of a ClassLabel column of Hugging Face, else none."""
  try:
    features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    return list(features[column]["names"])
  except (KeyError, ValueError, TypeError):
    return []


class _Parquet:
  def __init__(self, files: list[str], columns: Sequence[str], names: dict[str, str], cached: int):
    self.files = files
    with _open(files[0]) as data:
      schema = data.schema_arrow
    there, at = list(schema.names), f"{_WHERE}: {files[0]}: column"
    for column in (*columns, *filter(None, names.values())):
      if column not in there:
        raise unknown(at, column, there)
    found = {
      key: names[key] or next((c for c in known if c in (columns or there)), "")
      for key, known in _KNOWN.items()
    }
    self.names = {column: key for key, column in found.items() if column}
    self.columns = list(dict.fromkeys([*(columns or there), *self.names]))
    self.classes = _classes(schema, found["label"])
    self.label_is_text = bool(self.classes) and not found["text"]
    groups = paths.cached_index(files, _groups, "groups", _WHERE)
    rows = [index["rows"] for index in groups]
    self.group_file = np.repeat(np.arange(len(files)), [len(r) for r in rows])
    self.group_number = np.concatenate([np.arange(len(r)) for r in rows])
    self.first = np.concatenate([[0], np.cumsum(np.concatenate(rows))])
    self._group = functools.lru_cache(maxsize=cached)(self._read)  # threads may share it

  def __len__(self) -> int:
    return int(self.first[-1])

  def _read(self, group: int) -> Any:
    """The columns of a row group, decompressed."""
    file = self.files[self.group_file[group]]
    number = int(self.group_number[group])
    try:
      with _open(file, _metadata(file, str(paths.stamp(file, _WHERE)))) as data:
        return data.read_row_group(number, columns=self.columns, use_threads=False)
    except FileNotFoundError:
      raise BadExample("missing file", file) from None
    except (ValueError, OSError) as e:
      raise BadExample("broken row group", f"{number} of {file}: {e}") from None

  def _locate(self, index: int) -> tuple[int, int]:
    if not 0 <= index < len(self):
      raise IndexError(index)
    group = int(np.searchsorted(self.first, index, "right")) - 1
    return group, index - int(self.first[group])

  def __getitem__(self, index: int) -> dict[str, Any]:
    group, row = self._locate(index)
    return self._example(self._group(group), group, row)

  def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
    """Each row group is read once."""
    at = [self._locate(i) for i in indices]
    out: list[dict[str, Any]] = [{}] * len(at)
    for i in sorted(range(len(at)), key=at.__getitem__):
      group, row = at[i]
      out[i] = self._example(self._group(group), group, row)
    return out

  def _example(self, table: Any, group: int, row: int) -> dict[str, Any]:
    file, out = self.files[self.group_file[group]], {}
    for column in self.columns:
      if column not in table.column_names:
        raise BadExample("missing column", f"{column!r} in {file}, which the first file has")
      key = self.names.get(column, column)
      out[key] = _value(table[column][row], file)
      if key == "image" and out[key] is None:
        raise BadExample("missing image", f"row {row} of row group {group} of {file}")
    if self.label_is_text:
      label = out["label"]
      out["text"] = self.classes[label] if 0 <= label < len(self.classes) else ""
    return out


def _value(cell: Any, file: str) -> Any:
  """A cell as Python has it; lists of numbers as an array, {bytes, path} as the bytes."""
  import pyarrow as pa

  if pa.types.is_struct(cell.type) and {f.name for f in cell.type} == {"bytes", "path"}:
    return _contents(cell.as_py(), file)
  lists = (pa.ListType, pa.LargeListType, pa.FixedSizeListType)
  if not isinstance(cell.type, lists) or not cell.is_valid:
    return cell.as_py()
  values, kind = [_value(v, file) for v in cell], cell.type.value_type
  if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
    return np.array(values, kind.to_pandas_dtype())
  alike = values and all(isinstance(v, np.ndarray) and v.shape == values[0].shape for v in values)
  return np.stack(values) if alike else values


def _contents(cell: dict[str, Any] | None, file: str) -> bytes | None:
  if cell is None or cell["bytes"] is not None:
    return cell and cell["bytes"]
  folder = file.rpartition("/")[0] or "."
  return paths.read_bytes(paths.inside(folder, cell["path"])) if cell["path"] else None


def parquet(
  pattern: str,
  columns: tuple[str, ...] = (),
  image: str = "",
  text: str = "",
  label: str = "",
  cached_groups: int = 4,
  allow_missing_shards: bool = False,
) -> _Parquet:
  """Rows of Parquet files: image as encoded bytes, text, label, other columns under their names.

  A row group is read as a whole, in those columns only, and the last ones stay in memory: random
  order is fast where row groups are small (about 100 rows, as Hugging Face and img2dataset write
  images), or after `python -m tools.convert_data`.

  Structs {bytes, path} become the bytes (of the file at `path`, in the folder of the Parquet file,
  where there are none), lists of numbers arrays. A row without an image, as img2dataset writes for
  a failed download, is a bad example (missing image). Where a label has names (Hugging Face's
  ClassLabel) and there is no text, the text is the name.

  Args:
    pattern: a file, or a pattern (`train-*.parquet`), also of fsspec.
    columns: that are read beside the three below; default: all.
    image: column of encoded images; default: the first there of image, img, jpg, jpeg, png, webp.
    text: column of captions; default: the first there of text, caption, txt, TEXT.
    label: column of labels; default: label, where it is there.
    cached_groups: row groups that stay in memory (4).
    allow_missing_shards: files that the braces name and that are not there are left out.

  Raises:
    UserError: no such file, not Parquet, a column that is not there.
  """
  columns = (columns,) if isinstance(columns, str) else tuple(columns)
  whole_number(cached_groups, f"{_WHERE}: cached_groups")
  files = paths.expand(pattern, _WHERE, allow_missing_shards=allow_missing_shards)
  return _Parquet(files, columns, dict(image=image, text=text, label=label), cached_groups)
