"""Where the members of a tar file lie: a walk over its headers, and samples of it as arrays.

The formats are POSIX ustar and pax (IEEE Std 1003.1, "pax") and GNU tar's long names and sizes.
Nothing is ever extracted: a name is a name and not a place to write to.
"""

import json
import logging
from collections.abc import Iterator
from typing import IO, NamedTuple

import numpy as np

from big_vision_like.config import UserError
from big_vision_like.input import paths

BLOCK = 512
MAX_NAME = 1 << 20
"""Bytes of an extended header: a longer one is damage, not a name."""
FILES, NO_DATA = (b"0", b"\0", b"7"), (b"1", b"2", b"3", b"4", b"5", b"6")
EXTENDED = (b"L", b"K", b"x", b"g")
NO_END = "there is no end mark"


class Member(NamedTuple):
  """A file in the tar: its bytes are `offset` to `offset + size`."""

  name: str
  offset: int
  size: int


class Damage(Exception):
  """The headers cannot be followed from this byte on."""

  def __init__(self, at: int, reason: str):
    super().__init__(f"{reason} at byte {at}")
    self.at, self.reason = at, reason


def members(file: IO[bytes], end: int) -> Iterator[Member]:
  """The files in it, in order; links, folders and devices are left out. `end`: size of the tar.

  Raises:
    Damage: a header that is cut or is not one, a member that is cut (it comes first), or the end of
      the file without an end mark.
  """
  at, name, size = 0, None, None  # name and size: from an extended header before the member
  while True:
    file.seek(at)
    header = file.read(BLOCK)
    if header == bytes(BLOCK):
      return
    if len(header) < BLOCK:
      whole = not header.strip(b"\0") and (name, size) == (None, None)
      raise Damage(at, NO_END if whole else "a header is cut")
    if not _sum_is_right(header):
      raise Damage(at, "there is no header")
    kind, own_size = header[156:157], _number(header[124:136], at)
    at += BLOCK
    if kind in EXTENDED:
      data = file.read(own_size) if own_size <= MAX_NAME else b""
      if len(data) < own_size:
        raise Damage(at, "an extended header is cut")
      if kind == b"L":
        name = _text(data)
      elif kind == b"x":
        pax = _pax(data, at)
        name = _text(pax[b"path"]) if b"path" in pax else name
        size = _decimal(pax[b"size"], at) if b"size" in pax else size
      at += _padded(own_size)
      continue
    if kind == b"S":  # GNU's sparse files: more blocks of the map of holes
      more = header[482]
      while more:
        more = (file.read(BLOCK) + bytes(BLOCK))[504]
        at += BLOCK
    own_size = own_size if size is None else size
    own_name = _name(header) if name is None else name
    if kind in FILES and not own_name.endswith("/"):
      yield Member(own_name, at, own_size)
    if kind not in NO_DATA:
      if at + own_size > end:
        raise Damage(at, "a member is cut")
      at += _padded(own_size)
    name = size = None


def _padded(size: int) -> int:
  return -(-size // BLOCK) * BLOCK


def _sum_is_right(header: bytes) -> bool:
  """Sum of all bytes, those of the sum itself as spaces; some old writers took signed bytes."""
  said = _octal(header[148:156])
  found = sum(header) - sum(header[148:156]) + 8 * 32
  return said == found or said == found - 256 * sum(b > 127 for b in header[:148] + header[156:])


def _octal(field: bytes) -> int:
  """The number, or -1 where there is none."""
  digits = field.strip(b" \0") or b"0"
  return int(digits, 8) if digits.isdigit() and not digits.strip(b"01234567") else -1


def _number(field: bytes, at: int) -> int:
  """Octal digits or, where the first bit is set, a binary number."""
  value = int.from_bytes(field[1:], "big") if field[0] == 0x80 else _octal(field)
  if not 0 <= value < 1 << 62:
    raise Damage(at, f"a size is {field!r}")
  return value


def _decimal(value: bytes, at: int) -> int:
  if not value.isdigit() or len(value) > 18:
    raise Damage(at, f"a size is {value[:20]!r}")
  return int(value)


def _name(header: bytes) -> str:
  name, prefix = header[:100], header[345:500]
  if header[257:263] == b"ustar\0" and prefix[0]:
    return f"{_text(prefix)}/{_text(name)}"
  return _text(name)


def _text(data: bytes) -> str:
  return data.split(b"\0", 1)[0].decode("utf-8", "replace")


def _pax(data: bytes, at: int) -> dict[bytes, bytes]:
  """Records `"LENGTH key=value\\n"`; the length counts the whole record."""
  out = {}
  while data.strip(b"\0"):
    digits, space, _ = data[:20].partition(b" ")
    length = int(digits) if space and digits.isdigit() else 0
    key, equals, value = data[len(digits) + 1 : length].partition(b"=")
    if not (equals and value.endswith(b"\n") and length <= len(data)):
      raise Damage(at, "an extended header is damaged")
    out[key], data = value[:-1], data[length:]
  return out


# ----------------------------------------------------------------------------------------- samples


def split_name(name: str) -> tuple[str, str]:
  """`a/b.seg.png` -> (`a/b`, `seg.png`): up to the first dot of the last part, and behind it.

  The extension is in lower case, and empty where the last part begins with a dot or has none.
  """
  folder, slash, base = name.rpartition("/")
  stem, _, extension = base.partition(".")
  return folder + slash + stem, extension.lower() if stem else ""


def index_samples(file: str, where: str) -> dict[str, np.ndarray]:
  """The samples of a shard, as arrays for `paths.cached_index`.

  A sample is a run of members whose names are equal up to the first dot (WebDataset's rule).
  Members without an extension are left out, unless their name leads out of the folder.

  Where the tar is damaged, a sample is bad for it: the last one, where its member is cut or it
  lacks one that the sample before it has; else one of no name after it, which stands for all that
  is lost. A tar that merely lacks the end mark, with a sample at its end that is as the one before
  it, is whole.

  Returns:
    members int64 [m, 3]: offset, size, number of the extension; first int64 [n + 1]: first member
    of each sample; names uint8, all keys in a row, and name_ends int64 [n + 1]; said: JSON of
    extensions, unsafe (samples with a name that leads out of the folder), cut (the sample that is
    bad for the damage, or -1) and damage (what is wrong).

  Raises:
    UserError: it is no tar file, or cannot be read.
  """
  logging.info("%s: indexing %s", where, file)
  found, damage = [], None
  try:
    with paths.open_file(file, where) as stream:
      end = stream.seek(0, 2)
      try:
        for member in members(stream, end):
          found.append(member)
      except Damage as e:
        damage = e
      if damage and damage.at == 0:
        stream.seek(0)
        start = f"it begins with {stream.read(8)!r}" if end else "it is empty"
        raise UserError(f"{where}: {file} is not a tar file: {start}")
  except OSError as e:
    raise UserError(f"{where}: {file} cannot be read: {e}") from None
  return _arrays(found, damage)


def _arrays(found: list[Member], damage: Damage | None) -> dict[str, np.ndarray]:
  keys, first, rows, codes, unsafe = [], [], [], {}, []
  for name, offset, size in found:
    name = name.removeprefix("./")
    key, extension = split_name(name)
    if not (extension or paths.leads_out(name)):
      continue
    if not keys or keys[-1] != key:
      keys.append(key)
      first.append(len(rows))
    if paths.leads_out(name):
      unsafe.append(len(keys) - 1)
    rows.append((offset, size, codes.setdefault(extension, len(codes))))
  cut = -1
  if damage is not None:
    last_is_cut = (bool(rows) and rows[-1][0] == damage.at) or _lacks_members(first, rows)
    if not last_is_cut and damage.reason != NO_END:
      keys.append("")
      first.append(len(rows))
    if damage.reason != NO_END or last_is_cut:
      cut = len(keys) - 1
  names = [k.encode("utf-8", "replace") for k in keys]
  said = dict(extensions=list(codes), unsafe=unsafe, cut=cut, damage=str(damage or ""))
  return {
    "members": np.array(rows, np.int64).reshape(-1, 3),
    "first": np.array([*first, len(rows)], np.int64),
    "names": np.frombuffer(b"".join(names), np.uint8),
    "name_ends": np.cumsum([0, *map(len, names)], dtype=np.int64),
    "said": np.array(json.dumps(said)),
  }


def _lacks_members(first: list[int], rows: list[tuple[int, int, int]]) -> bool:
  """Whether the last sample lacks an extension of the one before it."""
  if len(first) < 2:
    return False
  before, last = rows[first[-2] : first[-1]], rows[first[-1] :]
  return not {code for *_, code in before} <= {code for *_, code in last}
