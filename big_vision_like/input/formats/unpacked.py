"""Compressed files that are read at random: decompressed once, into the cache folder."""

import concurrent.futures
import hashlib
import json
import logging
import os
import pathlib
import tempfile
import zlib
from collections.abc import Sequence
from typing import Any

from big_vision_like.config import UserError
from big_vision_like.input import paths

GZIP = 31
"""zlib's number for the format."""


def plain(files: Sequence[str], where: str, cache: str = "") -> list[str]:
  """The files themselves; of `.gz` and `.tgz` the decompressed copies, made once, in the cache.

  Raises:
    UserError: one is no gzip file, or there is no room for the copy.
  """
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:  # zlib runs beside Python
    return list(pool.map(lambda file: _plain(file, where, cache), files))


def _plain(path: str, where: str, cache: str) -> str:
  if not path.endswith((".gz", ".tgz")):
    return path
  digest = hashlib.sha256(json.dumps(paths.stamp(path, where)).encode()).hexdigest()[:16]
  name = path.rsplit("/", 1)[-1].removesuffix(".gz").removesuffix(".tgz").removesuffix(".tar")
  target = paths.cache_folder(cache) / f"{name}.{digest}.tar"
  if target.exists():
    return str(target)
  part = None
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, suffix=".tmp", delete=False) as out:
      part = pathlib.Path(out.name)
      _decompress(path, where, out)
    os.replace(part, target)
  except OSError as e:
    raise UserError(f"{where}: {path} cannot be decompressed to {target.parent}: {e}") from None
  finally:
    if part:
      part.unlink(missing_ok=True)
  return str(target)


def _decompress(path: str, where: str, out: Any) -> None:
  """All of a gzip file or, where it is damaged, what comes before that."""
  unpack, damage = zlib.decompressobj(GZIP), ""
  with paths.open_file(path, where) as file:
    try:
      while data := file.read(1 << 14):  # of the piece that is damaged nothing is left
        out.write(unpack.decompress(data))
        while unpack.eof and unpack.unused_data.strip(b"\0"):  # several in one file
          data, unpack = unpack.unused_data, zlib.decompressobj(GZIP)
          out.write(unpack.decompress(data))
    except zlib.error as e:
      damage = str(e)
  if not (out.tell() or unpack.eof):
    raise UserError(f"{where}: {path} is not a gzip file: {damage or 'it is cut'}")
  if damage or not unpack.eof:
    logging.warning("%s: %s: %s; what comes before is read", where, path, damage or "it is cut")
