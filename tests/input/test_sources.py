"""Data on disk, made here: image folders, ArrayRecord, a TFDS data set without TensorFlow."""

import io

import numpy as np
import pytest
from PIL import Image

from big_vision_like.config import UserError
from big_vision_like.input import ops, pipeline, sources
from big_vision_like.input.bad import BadExample

RNG = np.random.default_rng(0)


def jpeg(size=(40, 30)):
  out = io.BytesIO()
  Image.fromarray(RNG.integers(0, 255, (*size[::-1], 3), np.uint8)).save(out, "JPEG")
  return out.getvalue()


def test_image_folder(tmp_path):
  for name in ("cat", "dog"):
    (tmp_path / name).mkdir()
    for i in range(2):
      (tmp_path / name / f"{i}.jpg").write_bytes(jpeg())
  cfg = {
    "source": f"image_folder(path='{tmp_path}')",
    "pp": "decode|random_resized_crop(16)|flip_lr|value_range(0, 1)|drop(text)",
  }
  batch = next(pipeline.train_batches(cfg, batch_size=4, seed=0, start_step=0))
  assert batch["image"].shape == (4, 16, 16, 3) and batch["image"].dtype == np.float32
  assert 0 <= batch["image"].min() <= batch["image"].max() <= 1
  assert sorted(batch["label"]) == [0, 0, 1, 1]


def test_array_record(tmp_path):
  from array_record.python.array_record_module import ArrayRecordWriter

  writer = ArrayRecordWriter(str(tmp_path / "a.array_record"), "group_size:1")
  for i in range(5):
    writer.write(b"record %d" % i)
  writer.close()
  source = sources.open_source(f"array_record(pattern='{tmp_path}/*.array_record')")
  assert [source[i]["record"] for i in range(len(source))] == [b"record %d" % i for i in range(5)]


def prepare(folder, name, first):
  """Six examples with labels from `first` on, as a prepared TFDS data set."""
  import tensorflow_datasets as tfds
  from array_record.python.array_record_module import ArrayRecordWriter

  folder.mkdir(parents=True, exist_ok=True)
  features = tfds.features.FeaturesDict(
    {"image": tfds.features.Image(shape=(None, None, 3)), "label": tfds.features.Scalar(np.int64)}
  )
  example = features.encode_example
  serializer = tfds.core.example_serializer.ExampleSerializer(features.get_serialized_info())
  template = tfds.core.ShardedFileTemplate(
    data_dir=folder, dataset_name=name, split="train", filetype_suffix="array_record"
  )
  path = template.sharded_filepath(shard_index=0, num_shards=1)
  writer = ArrayRecordWriter(str(path), "group_size:1")
  for i in range(first, first + 6):
    writer.write(serializer.serialize_example(example({"image": io.BytesIO(jpeg()), "label": i})))
  writer.close()
  info = tfds.core.SplitInfo(
    name="train", shard_lengths=[6], num_bytes=0, filename_template=template
  )
  tfds.folder_dataset.write_metadata(
    data_dir=folder, features=features, split_infos=[info], check_data=False
  )


def labels(spec):
  source = sources.open_source(spec)
  return [int(source[i]["label"]) for i in range(len(source))]


def test_tfds_finds_the_version_without_the_builder_code(tmp_path):
  # The library's code of coco_captions imports TensorFlow.
  prepare(tmp_path / "coco_captions" / "2014" / "1.9.0", "coco_captions", 0)
  prepare(tmp_path / "coco_captions" / "2014" / "1.10.0", "coco_captions", 10)
  newest, old = list(range(10, 16)), list(range(6))
  assert labels(f"tfds(name='coco_captions', data_dir='{tmp_path}')") == newest
  assert labels(f"tfds(name='coco_captions/2014', data_dir='{tmp_path}')") == newest
  assert labels(f"tfds(name='coco_captions/2014:1.9.0', data_dir='{tmp_path}')") == old

  for name, split, message in (
    ("coco_caption", "train", "did you mean coco_captions"),
    ("coco_captions:7.*.*", "train", f"{tmp_path}/coco_captions has no prepared version 7"),
    ("coco_captions", "valid", "Unknown split 'valid'"),
  ):
    with pytest.raises(UserError) as error:
      sources.open_source(f"tfds(name='{name}', split='{split}', data_dir='{tmp_path}')")
    assert message in str(error.value) and str(tmp_path) in str(error.value)

  prepare(tmp_path / "coco_captions" / "2017" / "1.0.0", "coco_captions", 20)
  with pytest.raises(UserError, match="'coco_captions/2014' or 'coco_captions/2017'"):
    sources.open_source(f"tfds(name='coco_captions', data_dir='{tmp_path}')")


def test_files_of_another_kind(tmp_path):
  (tmp_path / "x.array_record").write_bytes(b"not a record" * 10)
  with pytest.raises(UserError, match="not made of ArrayRecords"):
    sources.open_source(f"array_record(pattern='{tmp_path}/*')")
  with pytest.raises(UserError, match="no class folder"):
    sources.open_source(f"image_folder(path='{tmp_path}')")


def test_tfds(tmp_path):
  prepare(tmp_path, "tiny", 0)
  source = sources.open_source(f"tfds(name='{tmp_path}', split='train[50%:]')")
  assert [int(source[i]["label"]) for i in range(len(source))] == [3, 4, 5]
  together = source.__getitems__([2, 0])
  assert [int(example["label"]) for example in together] == [5, 3]
  op = ops.build("decode|resize_small(24)|central_crop(20)|standardize")
  image = op(source[0], np.random.default_rng(0))["image"]
  assert image.shape == (20, 20, 3) and image.dtype == np.float32


def test_tfds_lacks_files(tmp_path):
  prepare(tmp_path, "tiny", 0)
  [file] = tmp_path.glob("*.array_record*")
  source = sources.open_source(f"tfds(name='{tmp_path}')")
  file.unlink()
  with pytest.raises(BadExample) as error:
    source[0]
  assert error.value.kind == "missing file"
  for missing in (False, True):  # not even then: there is nothing else
    with pytest.raises(UserError, match="1 of 1 files are missing"):
      sources.open_source(f"tfds(name='{tmp_path}', allow_missing_shards={missing})")
