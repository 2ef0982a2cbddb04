"""Data on disk, made here: image folders, ArrayRecord, a TFDS data set without TensorFlow."""

import io

import numpy as np
from PIL import Image

from big_vision_like.input import ops, pipeline, sources

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


def test_tfds(tmp_path):
  import tensorflow_datasets as tfds
  from array_record.python.array_record_module import ArrayRecordWriter

  features = tfds.features.FeaturesDict(
    {"image": tfds.features.Image(shape=(None, None, 3)), "label": tfds.features.Scalar(np.int64)}
  )
  example = features.encode_example
  serializer = tfds.core.example_serializer.ExampleSerializer(features.get_serialized_info())
  name = tfds.core.ShardedFileTemplate(
    data_dir=tmp_path, dataset_name="tiny", split="train", filetype_suffix="array_record"
  )
  path = name.sharded_filepath(shard_index=0, num_shards=1)
  writer = ArrayRecordWriter(str(path), "group_size:1")
  for i in range(6):
    writer.write(serializer.serialize_example(example({"image": io.BytesIO(jpeg()), "label": i})))
  writer.close()
  info = tfds.core.SplitInfo(name="train", shard_lengths=[6], num_bytes=0, filename_template=name)
  tfds.folder_dataset.write_metadata(
    data_dir=tmp_path, features=features, split_infos=[info], check_data=False
  )
  source = sources.open_source(f"tfds(name='{tmp_path}', split='train[50%:]')")
  assert [int(source[i]["label"]) for i in range(len(source))] == [3, 4, 5]
  op = ops.build("decode|resize_small(24)|central_crop(20)|standardize")
  image = op(source[0], np.random.default_rng(0))["image"]
  assert image.shape == (20, 20, 3) and image.dtype == np.float32
