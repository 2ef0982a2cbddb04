"""Where data lies: local files and fsspec URLs, patterns of shards, and nothing outside a folder.

A path with a scheme (`gs://bucket/a.tar`, `s3://...`, `memory://...`) goes through fsspec (extra
`data`, and the package of its scheme); any other path is a local file, read without it.
"""

import concurrent.futures
import fnmatch
import glob
import hashlib
import itertools
import json
import logging
import os
import pathlib
import re
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import IO, Any

import numpy as np

from big_vision_like.config import UserError
from big_vision_like.input.bad import BadExample

CACHE = "BIG_VISION_LIKE_CACHE"
"""Environment variable: the folder of indices of data that lies in folders one cannot write to."""
REMOTE_THREADS = 32
"""Files elsewhere that are asked about at once: each answer takes a network's round trip."""


def is_remote(path: str) -> bool:
  """Whether fsspec reads it."""
  return "://" in path


def filesystem(path: str, where: str) -> tuple[Any, str]:
  """fsspec's file system for a URL, and the path in it.

  Raises:
    UserError: fsspec, or the package of this scheme, is not installed.
  """
  try:
    import fsspec

    return fsspec.core.url_to_fs(path)
  except (ImportError, ValueError) as e:
    raise UserError(f"{where}: {path!r}: {e}; pip install -e '.[data]'") from None


def read_bytes(path: str, start: int = 0, stop: int | None = None, where: str = "source") -> bytes:
  """Bytes start to stop of a file.

  Raises:
    BadExample: the file is not there.
  """
  try:
    if is_remote(path):
      fs, inner = filesystem(path, where)
      return fs.cat_file(inner, start=start or None, end=stop)
    with open(path, "rb") as file:
      file.seek(start)
      return file.read() if stop is None else file.read(stop - start)
  except (FileNotFoundError, IsADirectoryError):
    raise BadExample("missing file", path) from None


def open_file(path: str, where: str = "source") -> IO[bytes]:
  """Opened for reading bytes, seekable."""
  if is_remote(path):
    fs, inner = filesystem(path, where)
    return fs.open(inner, "rb")
  return open(path, "rb")


def is_file(path: str, where: str = "source") -> bool:
  """Whether it is there, and a file."""
  if is_remote(path):
    fs, inner = filesystem(path, where)
    return fs.isfile(inner)
  return os.path.isfile(path)


def stamp(path: str, where: str = "source") -> list[Any]:
  """What changes with the file: path, size, time or tag."""
  if is_remote(path):
    fs, inner = filesystem(path, where)
    info = fs.info(inner)
    tags = [str(info[k]) for k in ("mtime", "etag", "ETag", "LastModified") if k in info]
    return [path, info["size"], *tags]
  found = os.stat(path)
  return [os.path.abspath(path), found.st_size, found.st_mtime_ns]


# ---------------------------------------------------------------------------------------- patterns


def braces(pattern: str) -> list[str]:
  """`a-{000..002}.tar` and `{x,y}.tar` -> all names, several braces in all combinations."""
  parts = re.split(r"(\{[^{}]*\})", pattern)
  return ["".join(choice) for choice in itertools.product(*map(_choices, parts))]


def _choices(part: str) -> list[str]:
  if not (part.startswith("{") and part.endswith("}")):
    return [part]
  if span := re.fullmatch(r"\{(\d+)\.\.(\d+)\}", part):
    first, last = span.groups()
    return [str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)]
  return part[1:-1].split(",")


def expand(
  pattern: str | Sequence[str], where: str, *, allow_missing_shards: bool = False
) -> list[str]:
  """Files of a pattern, or of several: braces, then `*`, `?` and `[...]`, each sorted.

  Raises:
    UserError: nothing matches; or a name that the braces say is missing, unless
      `allow_missing_shards`, which logs it.
  """
  out, missing = [], []
  for one in (pattern,) if isinstance(pattern, str) else pattern:
    for name in braces(os.path.expanduser(str(one))):
      found = _matches(name, where)
      out += found
      missing += [] if found else [name]
  if not out or (missing and not allow_missing_shards):
    total = len(out) + len(missing)
    of = f"{len(missing)} of {total} files are missing, " if out or total > 1 else ""
    hint = "; allow_missing_shards=True reads the rest" if out else ""
    name = missing[0] if missing else str(pattern)
    matches = "matches " if _is_wild(name) else ""
    raise UserError(f"{where}: {of}no file {matches}{name}{hint}")
  if missing:
    logging.warning("%s: %d shards are missing, first %s", where, len(missing), missing[0])
  return out


def _is_wild(name: str) -> bool:
  return any(c in name for c in "*?[")


def _matches(name: str, where: str) -> list[str]:
  if not _is_wild(name):
    return [name] if is_file(name, where) else []
  if is_remote(name):
    fs, inner = filesystem(name, where)
    return sorted(fs.unstrip_protocol(f) for f in fs.glob(inner))
  return sorted(f for f in glob.glob(name, recursive=True) if os.path.isfile(f))


def listed(folder: str, where: str, suffixes: Sequence[str] = ("",)) -> list[str]:
  """Files anywhere below a folder whose names end so, sorted, relative to it, with `/`.

  Raises:
    UserError: it is not a folder.
  """
  if is_remote(folder):
    fs, inner = filesystem(folder, where)
    names = [f[len(inner.rstrip("/")) + 1 :] for f in fs.find(inner)]
  else:
    folder = os.path.expanduser(folder)
    if not os.path.isdir(folder):
      raise UserError(f"{where}: {folder} is not a folder")
    names = [
      os.path.relpath(os.path.join(at, name), folder).replace(os.sep, "/")
      for at, _, files in os.walk(folder)
      for name in files
    ]
  return sorted(n for n in names if n.lower().endswith(tuple(suffixes)))


def matching(names: Sequence[str], pattern: str) -> list[str]:
  """Those of `names` that match, case counting."""
  return [n for n in names if fnmatch.fnmatchcase(n, pattern)]


def leads_out(name: str) -> bool:
  """Whether a name is empty, absolute, a URL, or has `..` in it: not a path in a folder."""
  absolute = os.path.isabs(name) or is_remote(name) or re.match(r"[A-Za-z]:|\\\\", name)
  return bool(absolute) or ".." in re.split(r"[/\\]", name) or "\0" in name or not name


def inside(folder: str, name: str) -> str:
  """`folder/name`, where that does not lead out of the folder, also not by a link.

  Raises:
    BadExample: it does, or is not a relative path.
  """
  if leads_out(name):
    raise BadExample("unsafe path", f"{name!r} leads out of {folder}")
  joined = f"{folder.rstrip('/')}/{name}"
  if not is_remote(folder) and _has_link(folder, name):
    root, real = os.path.realpath(folder), os.path.realpath(joined)
    if os.path.commonpath([root, real]) != root:
      raise BadExample("unsafe path", f"{name!r} is a link that leads out of {folder}")
  return joined


def _has_link(folder: str, name: str) -> bool:
  """Whether a part of the name is one; asking for each is faster than the real path of all."""
  at = folder
  for part in name.split("/"):
    at = f"{at}/{part}"
    if os.path.islink(at):
      return True
  return False


# ------------------------------------------------------------------------------------------- cache


def cached_index(
  files: Sequence[str],
  make: Callable[[str], dict[str, np.ndarray]],
  kind: str,
  where: str,
  cache: str = "",
  is_right: Callable[[dict[str, np.ndarray]], bool] = lambda found: True,
) -> list[dict[str, np.ndarray]]:
  """`make(file)` for each of the files, kept between runs: arrays without objects.

  An index lies as `.NAME.KIND.npz` beside its file or, where that cannot be written or `cache` (or
  $BIG_VISION_LIKE_CACHE) names one, in a folder. It is made anew when the file changed, or when the
  one that was found is not `is_right`.
  """
  folder = cache or os.environ.get(CACHE, "")
  cached = lambda file: _cached(file, make, kind, where, folder, is_right)
  if not any(map(is_remote, files)):
    return list(map(cached, files))
  with concurrent.futures.ThreadPoolExecutor(REMOTE_THREADS) as pool:
    return list(pool.map(cached, files))


def cache_folder(cache: str = "") -> pathlib.Path:
  """`cache`, else $BIG_VISION_LIKE_CACHE, else `~/.cache/big_vision_like`."""
  return pathlib.Path(cache or os.environ.get(CACHE, "") or "~/.cache/big_vision_like").expanduser()


def _cached(
  file: str,
  make: Callable[[str], dict[str, np.ndarray]],
  kind: str,
  where: str,
  folder: str,
  is_right: Callable[[dict[str, np.ndarray]], bool],
) -> dict[str, np.ndarray]:
  mark = json.dumps(stamp(file, where))
  for path in (p := _index_paths(file, kind, folder)):
    if (found := _load(path, mark)) is not None and is_right(found):
      return found
  made = make(file)
  for path in p:
    if _save(path, {**made, "_stamp": np.array(mark)}):
      break
  else:
    logging.warning("%s: index of %s cannot be kept; set $%s to a folder", where, file, CACHE)
  return made


def _index_paths(file: str, kind: str, folder: str) -> list[pathlib.Path]:
  name = file.rstrip("/").rsplit("/", 1)[-1]
  digest = hashlib.sha256(file.encode()).hexdigest()[:16]
  beside = [] if folder or is_remote(file) else [pathlib.Path(file).parent / f".{name}.{kind}.npz"]
  return [*beside, cache_folder(folder) / f"{name}.{digest}.{kind}.npz"]


def _load(path: pathlib.Path, mark: str) -> dict[str, np.ndarray] | None:
  try:
    # Opened here: of a file that is not a zip, NumPy would leave it open.
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as data:
      if str(data["_stamp"]) != mark:
        return None
      return {k: data[k] for k in data.files if k != "_stamp"}
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
    return None  # absent, or cut by a crash: made anew


def _save(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> bool:
  """Written whole under its name, or not at all; whether it worked."""
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
      np.savez(file, **arrays)
    os.replace(file.name, path)
    return True
  except OSError:
    return False
