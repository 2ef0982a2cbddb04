"""An example as one self-describing run of bytes: what `tools.convert_data` writes as ArrayRecord.

    bytes 0-3     magic, 4 version, 5-8 length n of the header (little endian)
    next n        header: JSON of the example. Bytes and arrays stand in it as
                  {"bytes": [offset, size]} and {"array": [dtype, shape, offset]}, NumPy's
                  scalars as {"scalar": ...} likewise, dicts as {"dict": {...}}; lists, texts,
                  numbers, booleans and null as themselves
    the rest      payload: those bytes and arrays, offsets counted from its start

Nothing in it is code: a damaged or hostile record is a `BadExample`, never more than that.
"""

import json
import math
import re
import struct
from typing import Any

import numpy as np

from big_vision_like.config import UserError
from big_vision_like.input.bad import BadExample

MAGIC = b"\x93BVR"
VERSION = 1
_START = struct.Struct("<4sBI")
_DTYPE = re.compile(r"[<>|][biufcSU][1-9]\d*")


def is_record(data: bytes) -> bool:
  """Whether the magic is there."""
  return data[:4] == MAGIC


def encode(example: dict[str, Any]) -> bytes:
  """An example -> its record: bytes, str, int, float, bool, None, NumPy arrays, lists, dicts.

  Tuples become lists; the rest comes back as it was.

  Raises:
    UserError: a value of another type, an array of objects, a key that is not a str.
  """
  payload: list[bytes] = []
  size = 0

  def kept(data: bytes) -> int:
    nonlocal size
    payload.append(data)
    size += len(data)
    return size - len(data)

  def node(value: Any, path: str) -> Any:
    if isinstance(value, (bytes, bytearray, memoryview)):
      return {"bytes": [kept(bytes(value)), memoryview(value).nbytes]}
    if isinstance(value, str):  # before NumPy's scalars: np.str_ is one
      return str(value)
    if isinstance(value, (np.ndarray, np.generic)):
      array = np.asarray(value)
      if not _DTYPE.fullmatch(array.dtype.str):
        raise UserError(f"records: {path}: a record cannot hold an array of {array.dtype}")
      kind = "array" if isinstance(value, np.ndarray) else "scalar"
      return {kind: [array.dtype.str, list(array.shape), kept(array.tobytes())]}
    if value is None or isinstance(value, (bool, int, float)):
      return value
    if isinstance(value, (list, tuple)):
      return [node(v, f"{path}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(k, str) for k in value):
      return {"dict": {str(k): node(v, f"{path}.{k}") for k, v in value.items()}}
    raise UserError(f"records: {path}: a record cannot hold a {type(value).__name__}")

  header = json.dumps(node(dict(example), "example")["dict"], separators=(",", ":")).encode()
  return b"".join([_START.pack(MAGIC, VERSION, len(header)), header, *payload])


def decode(data: bytes) -> dict[str, Any]:
  """A record -> the example; arrays are copies and can be written to.

  Raises:
    BadExample: it is cut, damaged, or of a later version.
  """
  if not is_record(data):
    raise BadExample("corrupt record", f"it begins with {bytes(data[:4])!r}, not {MAGIC!r}")
  try:
    _, version, length = _START.unpack_from(data)
    if version != VERSION:
      raise ValueError(f"version {version} of the format; this reads {VERSION}")
    start = _START.size + length
    if start > len(data):
      raise ValueError(f"a header of {length} bytes in a record of {len(data)}")
    header = json.loads(bytes(data[_START.size : start]))
    return _read({"dict": header}, memoryview(data)[start:])
  except (ValueError, TypeError, AttributeError, OverflowError, struct.error, RecursionError) as e:
    raise BadExample("corrupt record", f"{type(e).__name__}: {e}") from None


def _read(node: Any, payload: memoryview) -> Any:
  if isinstance(node, list):
    return [_read(n, payload) for n in node]
  if not isinstance(node, dict):
    return node
  [(kind, value)] = node.items()
  if kind == "dict":
    return {k: _read(v, payload) for k, v in value.items()}
  if kind == "bytes":
    offset, size = value
    return bytes(_part(payload, offset, size))
  if kind in ("array", "scalar"):
    name, shape, offset = value
    if not _DTYPE.fullmatch(name):
      raise ValueError(f"dtype {name!r}")
    dtype = np.dtype(name)
    if any(not isinstance(n, int) or n < 0 for n in shape):
      raise ValueError(f"shape {shape}")
    part = _part(payload, offset, math.prod(shape) * dtype.itemsize)
    array = np.ndarray(tuple(shape), dtype, part).copy()
    return array if kind == "array" else array[()]
  raise ValueError(f"kind {kind!r}")


def _part(payload: memoryview, offset: int, size: int) -> memoryview:
  if not (isinstance(offset, int) and isinstance(size, int) and 0 <= offset <= offset + size):
    raise ValueError(f"offset {offset}, size {size}")
  if offset + size > len(payload):
    raise ValueError(f"bytes {offset} to {offset + size} of a payload of {len(payload)}")
  return payload[offset : offset + size]
