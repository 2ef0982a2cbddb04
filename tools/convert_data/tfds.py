"""TFDS data sets, as ArrayRecord, without TensorFlow: features from a few examples.

Features are kept as plain JSON, `{key: {"type": ..., ...}}`, in the manifest: a data set's second
split has those of its first.
"""

import io
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from big_vision_like.config import UserError
from tools.convert_data import manifest
from tools.convert_data.formats import BARE, Example, media, not_an_image

SUFFIX = "array_record"


def infer(examples: Sequence[Example]) -> dict[str, Any]:
  """The features that hold all of these examples.

  Encoded images -> Image, str and bytes -> Text, bool, int and float -> Scalar, arrays -> Tensor
  (axes that differ are open), lists of str, int or float -> Sequence. TFDS keeps float64 only in
  arrays: a Python float has the precision of float32.

  Raises:
    UserError: values that TFDS has no feature for, keys that not all examples have.
  """
  for example in examples:
    if example.keys() != examples[0].keys():
      a, b = (", ".join(sorted(e)) or "none" for e in (examples[0], example))
      raise UserError(f"tfds: examples of keys {a} and of keys {b}; end --pp with keep")
  if not examples[0]:
    raise UserError("tfds: examples without keys")
  return {key: _feature(key, [e[key] for e in examples]) for key in examples[0]}


def _feature(key: str, values: list[Any]) -> dict[str, Any]:
  first = next((v for v in values if not (isinstance(v, list) and not v)), values[0])
  if _is_image(first):
    return {"type": "image", "channels": _channels(first)}
  if isinstance(first, (str, bytes, bytearray)):
    return {"type": "text"}
  if isinstance(first, list):
    plain = [v.item() if isinstance(v, np.generic) else v for value in values for v in value]
    kinds = {str: "text", bytes: "text", int: "int64", float: "float32"}
    found = {kinds.get(type(v)) for v in plain}
    inner = found.pop() if len(found) == 1 else None
    if inner and not any(_is_image(v) for v in plain):
      return {"type": "sequence", "of": inner}
    raise _refused(key, f"a list of {type(first[0]).__name__}" if first else "an empty list")
  if isinstance(first, (bool, int, float)):
    names = {bool: "bool", int: "int64", float: "float32"}
    return {"type": "scalar", "dtype": names[type(first)]}
  if isinstance(first, (np.ndarray, np.generic)):
    return _tensor(key, [np.asarray(v) for v in values])
  raise _refused(key, f"a {type(first).__name__}")


def _is_image(value: Any) -> bool:
  return isinstance(value, (bytes, bytearray)) and media(value) in BARE["image"]


def _tensor(key: str, arrays: list[np.ndarray]) -> dict[str, Any]:
  dtype, rank = arrays[0].dtype, arrays[0].ndim
  if dtype.kind not in "biuf":
    raise _refused(key, f"an array of {dtype}")
  for a in arrays:
    if a.dtype != dtype or a.ndim != rank:
      raise _refused(key, f"{dtype} of {rank} axes here and {a.dtype} of {a.ndim} there")
  if not rank:
    return {"type": "scalar", "dtype": dtype.name}
  shape = [sizes.pop() if len(sizes := set(axis)) == 1 else None for axis in zip(*_shapes(arrays))]
  return {"type": "tensor", "dtype": dtype.name, "shape": shape}


def _shapes(arrays: list[np.ndarray]) -> list[tuple[int, ...]]:
  return [a.shape for a in arrays]


def _refused(key: str, what: str) -> UserError:
  return UserError(f"tfds: {key} is {what}, which it has no feature for; drop it, or --to another")


def _channels(data: bytes) -> int:
  from PIL import Image

  try:
    with Image.open(io.BytesIO(data)) as picture:
      return {"1": 1, "L": 1, "RGBA": 4, "LA": 4}.get(picture.mode, 3)
  except OSError:
    return 3


class Tfds:
  """An example -> what TFDS stores of it."""

  def __init__(self, features: dict[str, Any]):
    import tensorflow_datasets as library

    self.spec, self.features = features, _built(features)
    info = self.features.get_serialized_info()
    self.serializer = library.core.example_serializer.ExampleSerializer(info)

  def encode(self, index: int, example: Example) -> bytes:
    values = dict(example)
    for key, feature in self.spec.items():
      if feature["type"] == "image":
        if media(values[key]) not in BARE["image"]:
          raise not_an_image(values[key])
        values[key] = io.BytesIO(values[key])
    return self.serializer.serialize_example(self.features.encode_example(values))

  def file(self, plan: manifest.Plan, shard: int) -> str:
    template = _template(pathlib.Path(), plan.name, plan.split)
    return template.sharded_filepath(shard_index=shard, num_shards=plan.shards).name

  def open(self, path: pathlib.Path) -> Any:
    from array_record.python.array_record_module import ArrayRecordWriter

    return ArrayRecordWriter(str(path), "group_size:1")  # TFDS reads one record at a time

  def finish(self, out: pathlib.Path) -> None:
    """`dataset_info.json` and `features.json` of all splits that are whole."""
    import tensorflow_datasets as library

    splits = []
    for path in sorted(out.glob(f"*{manifest.SUFFIX}")):
      plan, shards, done = manifest.read(path)
      if done:
        rows = [shards[k] for k in sorted(shards)]
        template = _template(out, plan["name"], plan["split"])
        info = library.core.SplitInfo(
          name=plan["split"],
          shard_lengths=[row["examples"] for row in rows],
          num_bytes=sum(row["bytes"] for row in rows),
          filename_template=template,
        )
        splits.append(info)
    library.folder_dataset.write_metadata(
      data_dir=out, features=self.features, split_infos=splits, check_data=False
    )


def _template(folder: pathlib.Path, name: str, split: str) -> Any:
  import tensorflow_datasets as library

  return library.core.ShardedFileTemplate(
    data_dir=folder, dataset_name=name, split=split, filetype_suffix=SUFFIX
  )


def _built(spec: dict[str, Any]) -> Any:
  import tensorflow_datasets as library

  f = library.features

  def one(feature: dict[str, Any]) -> Any:
    match feature["type"]:
      case "image":
        return f.Image(shape=(None, None, feature["channels"]))
      case "text":
        return f.Text()
      case "scalar":
        return f.Scalar(np.dtype(feature["dtype"]))
      case "sequence":
        of = feature["of"]
        return f.Sequence(f.Text() if of == "text" else f.Scalar(np.dtype(of)))
      case "tensor":
        shape, dtype = tuple(feature["shape"]), np.dtype(feature["dtype"])
        # Only encoded tensors can leave two axes open, and they are kept as they are to the bit.
        return f.Tensor(shape=shape, dtype=dtype, encoding="zlib")
    raise AssertionError(feature)

  return f.FeaturesDict({key: one(feature) for key, feature in spec.items()})


def of_other_splits(out: pathlib.Path, plan: dict[str, Any]) -> dict[str, Any] | None:
  """The features of a split that is there already.

  Raises:
    UserError: it belongs to another data set.
  """
  for path in sorted(out.glob(f"*{manifest.SUFFIX}")):
    other, _, _ = manifest.read(path)
    if other["split"] == plan["split"]:
      continue
    for key in ("to", "name"):
      if other[key] != plan[key]:
        raise UserError(f"{path} has {key} = {other[key]!r}, not {plan[key]!r}; give another --out")
    return other["features"]
  return None
