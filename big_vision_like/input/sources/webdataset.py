"""Tar shards of samples, the format of the WebDataset library, with random access."""

import bisect
import functools
import itertools
import json
import logging
import os
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from big_vision_like.config import unknown
from big_vision_like.input import paths
from big_vision_like.input.bad import BadExample
from big_vision_like.input.formats import fields, tar, unpacked

WHERE = "source webdataset"
INDEX = "webdataset-1"
"""In the names of indices; another number where what they hold changes."""
OPEN_FILES = 256
GAP = 1 << 16
"""Bytes between two members that are rather read than left out by another read."""
AT_ONCE = 1 << 24
"""Bytes that are read in one go where several samples are."""


class _File:
  """A file that is open as long as somebody reads it; several threads may."""

  def __init__(self, path: str):
    self.fd = os.open(path, os.O_RDONLY)
    weakref.finalize(self, os.close, self.fd)

  def read(self, start: int, stop: int) -> bytes:
    return os.pread(self.fd, stop - start, start)


class _Shard:
  """One tar, by the arrays of `tar.index_samples`; `file` is where its bytes are, uncompressed."""

  def __init__(self, path: str, file: str, index: dict[str, np.ndarray]):
    self.path, self.file = path, file
    self.members, self.first = index["members"], index["first"]
    self.names, self.name_ends = index["names"], index["name_ends"]
    said = json.loads(str(index["said"]))
    self.cut, self.damage, self.unsafe = said["cut"], said["damage"], frozenset(said["unsafe"])
    self.extensions = said["extensions"]
    self.fields = [fields.of_extension(e) for e in self.extensions]

  def __len__(self) -> int:
    return len(self.first) - 1

  def key(self, i: int) -> str:
    start, end = self.name_ends[i : i + 2].tolist()
    return self.names[start:end].tobytes().decode()

  def wanted(self, i: int, keys: frozenset[str]) -> list[list[int]]:
    """(offset, size, extension) of the members of sample i; of all of them where no `keys`."""
    if i in self.unsafe:
      raise BadExample("unsafe path", f"{self.key(i)!r} in {self.path}")
    if i == self.cut:
      raise BadExample("truncated tar", f"{self.path}: {self.damage}")
    start, end = self.first[i : i + 2].tolist()
    members = self.members[start:end].tolist()
    return [m for m in members if self.fields[m[2]][0] in keys] if keys else members

  def example(
    self, i: int, members: list[list[int]], parts: list[bytes], keys: frozenset[str]
  ) -> dict[str, Any]:
    """Members and their bytes -> fields."""
    out: dict[str, Any] = {}
    for (_, size, extension), data in zip(members, parts):
      field, read = self.fields[extension]
      if len(data) < size:
        raise BadExample("truncated tar", f"{self._name(i, extension)} ends at byte {len(data)}")
      if field in out:
        raise BadExample("duplicate member", f"{self._name(i, extension)}: a second {field}")
      try:
        out[field] = read(data)
      except BadExample as e:
        raise BadExample(e.kind, f"{self._name(i, extension)}: {e}") from None
    if not keys or "key" in keys:
      out["key"] = self.key(i)
    if keys - out.keys():
      lacking = ", ".join(sorted(keys - out.keys()))
      raise BadExample("missing key", f"{self.path}: {self.key(i)!r} has no {lacking}")
    return out

  def _name(self, i: int, extension: int) -> str:
    return f"{self.path}: {self.key(i)}.{self.extensions[extension]}"


class _Shards:
  """Samples of local shards. Pickled as its arguments: each process opens its own files."""

  def __init__(self, shards: list[_Shard], keys: frozenset[str], made_of: tuple):
    self.shards, self.keys, self._made_of = shards, keys, made_of
    self.ends = list(itertools.accumulate(map(len, shards)))
    self._open = functools.lru_cache(OPEN_FILES)(_File)

  def __reduce__(self) -> Any:
    return webdataset, self._made_of

  def __len__(self) -> int:
    return self.ends[-1]

  def _find(self, index: int) -> tuple[_Shard, int]:
    """Its shard, and which sample of it."""
    if not 0 <= index < len(self):
      raise IndexError(index)
    n = bisect.bisect_right(self.ends, index)
    return self.shards[n], index - (self.ends[n - 1] if n else 0)

  def __getitem__(self, index: int) -> dict[str, Any]:
    shard, i = self._find(index)
    members = shard.wanted(i, self.keys)
    spans = _spans(members)
    parts = _parts(members, spans, [self._read(shard.file, *span) for span in spans])
    return shard.example(i, members, parts, self.keys)

  def _read(self, file: str, start: int, stop: int) -> bytes:
    if paths.is_remote(file):
      return paths.read_bytes(file, start, stop, WHERE)
    try:
      return self._open(file).read(start, stop)
    except FileNotFoundError:
      raise BadExample("missing file", file) from None


class _RemoteShards(_Shards):
  """Samples of shards elsewhere: several are asked for at once, neighbours in one go."""

  def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any] | None]:
    """Examples; None for one that is bad: `__getitem__` says why."""
    found = [self._wanted(*self._find(i)) for i in indices]
    spans = {(shard.file, *span) for shard, _, members in found for span in _spans(members)}
    merged = _neighbours(sorted(spans))
    fs, _ = paths.filesystem(self.shards[0].file, WHERE)
    files, starts, stops = (list(x) for x in zip(*merged)) if merged else ([], [], [])
    read = fs.cat_ranges([paths.filesystem(f, WHERE)[1] for f in files], starts, stops)
    return [self._example(*f, merged, read) for f in found]

  def _wanted(self, shard: _Shard, i: int) -> tuple[_Shard, int, list[list[int]]]:
    try:
      return shard, i, shard.wanted(i, self.keys)
    except BadExample:
      return shard, -1, []

  def _example(
    self, shard: _Shard, i: int, members: list, merged: list, read: list
  ) -> dict[str, Any] | None:
    parts = []
    for offset, size, _ in members:
      n = bisect.bisect_right(merged, (shard.file, offset, 1 << 62)) - 1
      if isinstance(read[n], Exception):
        return None
      start = offset - merged[n][1]
      parts.append(read[n][start : start + size])
    try:
      return shard.example(i, members, parts, self.keys) if i >= 0 else None
    except BadExample:
      return None


def _neighbours(spans: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
  """Sorted (file, start, stop), joined where the gap is small and the whole not too large."""
  out: list[tuple[str, int, int]] = []
  for file, start, stop in spans:
    if out and out[-1][0] == file and start - out[-1][2] <= GAP and stop - out[-1][1] <= AT_ONCE:
      out[-1] = file, out[-1][1], max(stop, out[-1][2])
    else:
      out.append((file, start, stop))
  return out


def _spans(members: list[list[int]]) -> list[tuple[int, int]]:
  """What to read for these members: those that lie close together at once."""
  out: list[tuple[int, int]] = []
  for offset, size, _ in members:
    if out and offset - out[-1][1] <= GAP:
      out[-1] = out[-1][0], offset + size
    else:
      out.append((offset, offset + size))
  return out


def _parts(members: list, spans: list[tuple[int, int]], read: list[bytes]) -> list[bytes]:
  """The bytes of each member, out of the spans."""
  if len(members) == 1:
    return read
  out, n = [], 0
  for offset, size, _ in members:
    n += offset > spans[n][1] + GAP
    start = offset - spans[n][0]
    out.append(read[n][start : start + size])
  return out


def webdataset(
  pattern: str | tuple[str, ...],
  allow_missing_shards: bool = False,
  cache: str = "",
  keys: str | tuple[str, ...] = (),
) -> _Shards:
  """Tar shards of samples: `0001.jpg`, `0001.txt`, ... are one example, with random access.

  The layout is that of the WebDataset library (and of img2dataset): members that follow each other
  and are equal up to the first dot of their name are a sample. Fields by extension:

      jpg jpeg png webp gif bmp   image, encoded bytes      txt    text
      mp4 avi mkv webm mov        video, encoded bytes      cls    label, int
      wav flac mp3 ogg            audio, encoded bytes      json   json, the document as it is
      depth.png, boxes.npy, ...   depth, boxes: the name    npy    npy, an array without objects
                                  before the last dot       other  bytes, under the extension
      (the name of the sample)    key

  A shard is indexed once; the index lies beside it, or in the cache folder. A sample is read by its
  place, so that samples can be taken in any order.

  A damaged tar gives the samples before the damage, and one bad example ("truncated tar") for the
  sample that is cut. Other bad examples: "unsafe path" (a member's name leads out of the folder),
  "empty file", "not UTF-8", "not a label", "not JSON", "not an array", "missing key" (a sample
  that lacks one of `keys`), "duplicate member" (two files of a sample are the same field).

  Args:
    pattern: path or URL of fsspec (`gs://...`), with braces and wildcards, or several. A shard
      `.tar.gz` or `.tgz` is decompressed into the cache folder once, which takes as much disk as
      the plain tar: compressed, it could only be read from its start.
    allow_missing_shards: read the rest where shards that the braces name are missing.
    cache: folder of indices and decompressed shards; default $BIG_VISION_LIKE_CACHE, else
      `~/.cache/big_vision_like`, where it cannot be beside the shard.
    keys: only these fields, and of a sample only the files that they need; default all.

  Raises:
    UserError: missing shards, a file that is no tar, a field that no sample has.
  """
  keys = (keys,) if isinstance(keys, str) else tuple(keys)
  files = paths.expand(pattern, WHERE, allow_missing_shards=allow_missing_shards)
  plain = unpacked.plain(files, WHERE, cache)
  index = lambda file: tar.index_samples(file, WHERE)
  found = paths.cached_index(plain, index, INDEX, WHERE, cache)
  shards = [_Shard(*args) for args in zip(files, plain, found)]
  known = {"key"} | {field for shard in shards for field, _ in shard.fields}
  for key in keys:
    if key not in known:
      raise unknown(f"{WHERE}: keys: field", key, sorted(known))
  for shard in shards:
    if shard.damage:
      logging.warning("%s: %s: %s", WHERE, shard.path, shard.damage)
  schemes = {file.partition("://")[0] for file in plain if paths.is_remote(file)}
  together = len(schemes) == 1 and all(map(paths.is_remote, plain))
  kind = _RemoteShards if together else _Shards
  return kind(shards, frozenset(keys), (pattern, allow_missing_shards, cache, keys))
