"""Files of records: TFDS data sets and ArrayRecord. No TensorFlow."""

import fnmatch
import logging
import os
from collections.abc import Sequence
from typing import Any

from big_vision_like.config import UserError, unknown
from big_vision_like.input import paths
from big_vision_like.input.formats import array_records, records

INFO = "dataset_info.json"


def _prepared(name: str, data_dir: str | None) -> Any:
  """Folder of the newest prepared version of `name[/config][:version]`.

  Found on disk and not through the library: its code of many data sets imports TensorFlow.
  """
  from etils import epath

  if (epath.Path(name) / INFO).exists():
    return epath.Path(name)
  root = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  root = epath.Path(root).expanduser()
  if not root.is_dir():
    raise UserError(f"source tfds: {name!r}: {root} is not a folder; set data_dir")
  path, _, version = name.partition(":")
  folder = root / path
  if not folder.is_dir():
    raise unknown(f"source tfds: {folder}: data set", name, [d.name for d in root.iterdir()])
  versions = [f.parent for depth in ("*", "*/*") for f in folder.glob(f"{depth}/{INFO}")]
  versions = [d for d in versions if fnmatch.fnmatch(d.name, version or "*")]
  if not versions:
    raise UserError(f"source tfds: {folder} has no prepared version {version or ''} ({INFO})")
  configs = sorted({d.parent for d in versions})
  if len(configs) > 1:
    names = " or ".join(repr(str(c.relative_to(root))) for c in configs)
    raise UserError(f"source tfds: {name!r} has {len(configs)} configs in {root}; name = {names}")
  numbers = lambda d: [int(n) if n.isdigit() else -1 for n in d.name.split(".")]
  return max(versions, key=numbers)


def tfds(
  name: str,
  split: str = "train",
  data_dir: str | None = None,
  allow_missing_shards: bool = False,
) -> Any:
  """A prepared TFDS data set, any split or slice ("train[10%:60%]"); images stay encoded.

  `name` is `name[/config][:version]` in `data_dir` (else $TFDS_DATA_DIR, ~/tensorflow_datasets), or
  the folder of a prepared version (with `dataset_info.json`). `allow_missing_shards` reads the rest
  where files of the split are missing.

  Raises:
    UserError: nothing prepared there, no such split, missing files, or files without random access.
  """
  folder = _prepared(name, data_dir)
  import tensorflow_datasets as library

  try:
    builder = library.builder_from_directory(folder)
    decoders = {
      key: library.decode.SkipDecoding()
      for key, feature in builder.info.features.items()
      if isinstance(feature, library.features.Image)
    }
    source = builder.as_data_source(split, decoders=decoders or None)
    files = builder.info.splits[split].file_instructions
  except Exception as e:  # the library raises many types for what is one mistake
    reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
    raise UserError(f"source tfds: {folder} split {split!r}: {reason}") from None
  if type(source.data_source).__module__.startswith("array_record"):
    where = f"source tfds: {folder} split {split!r}"
    parts = [array_records.Part(os.fspath(f.filename), f.skip, f.take) for f in files]
    source.data_source = array_records.ArrayRecords(_present(parts, where, allow_missing_shards))
  return source


def _present(parts: list, where: str, allow_missing_shards: bool) -> list:
  """Those whose file is there."""
  there = [part for part in parts if paths.is_file(part.file, where)]
  if missing := sorted({part.file for part in parts} - {part.file for part in there}):
    if not (there and allow_missing_shards):
      hint = "; allow_missing_shards=True reads the rest" if there else ""
      of = f"{len(missing)} of {len(parts)} files are missing, first"
      raise UserError(f"{where}: {of} {missing[0]}{hint}")
    logging.warning("%s: %d files are missing, first %s", where, len(missing), missing[0])
  return there


class _ArrayRecord:
  """`records` are the bytes."""

  def __init__(self, found: array_records.ArrayRecords):
    self.records = found

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return _example(self.records[index])

  def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
    return [_example(data) for data in self.records.__getitems__(indices)]


def _example(data: bytes) -> dict[str, Any]:
  return records.decode(data) if records.is_record(data) else {"record": data}


def array_record(
  pattern: str | tuple[str, ...], allow_missing_shards: bool = False
) -> _ArrayRecord:
  """ArrayRecord files: the examples that `tools.convert_data` wrote, else bytes under `record`.

  Local files only: the library reads no other. Bad examples: "corrupt record", "missing file".

  Args:
    pattern: path with braces and wildcards, or several.
    allow_missing_shards: read the rest where files that the braces name are missing.

  Raises:
    UserError: missing files, a file that is cut or is no ArrayRecord.
  """
  where = "source array_record"
  files = paths.expand(pattern, where, allow_missing_shards=allow_missing_shards)
  if remote := [f for f in files if paths.is_remote(f)]:
    raise UserError(f"{where}: {remote[0]}: the library reads local files only; copy it first")
  return _ArrayRecord(array_records.ArrayRecords(array_records.whole(files, where)))
