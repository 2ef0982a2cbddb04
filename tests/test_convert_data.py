"""tools.convert_data: what is read back is what was written; crashes, damage, other plans."""

import io
import json
import pathlib
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from big_vision_like.config import UserError
from big_vision_like.input import ops, sources
from big_vision_like.input.formats import records
from big_vision_like.input.sources import open_source
from tools.convert_data import __main__ as command
from tools.convert_data import formats, manifest, tfds

ROOT = pathlib.Path(__file__).parents[1]
FORMATS = ("arrayrecord", "webdataset", "tfds")
DECODE = ops.build("decode(channels=1)")


def run(to, out, *more, source="digits(split='test')", shards=3):
  args = ["--from", source, "--to", to, "--out", str(out), *more]
  assert command.main([*args, "--shards", str(shards)] if shards else args) == 0
  return manifest.read(out / "train.manifest.jsonl")


def encoded(kind, seed=0, mode="RGB"):
  pixels = np.random.default_rng(seed).integers(0, 255, (6, 5, 3), np.uint8)
  out = io.BytesIO()
  Image.fromarray(pixels).convert(mode).save(out, kind)
  return out.getvalue()


@pytest.fixture
def folder(tmp_path):
  """Two classes of three pictures each, as an image folder."""
  for name in ("cat", "dog"):
    (tmp_path / "in" / name).mkdir(parents=True)
    for i, kind in enumerate(("jpeg", "png", "webp")):
      (tmp_path / "in" / name / f"{i}.{kind}").write_bytes(encoded(kind, i))
  return tmp_path / "in"


# --------------------------------------------------------------------------------------- read back


def read_array_records(out):
  from array_record.python.array_record_data_source import ArrayRecordDataSource

  with ArrayRecordDataSource([str(f) for f in sorted(out.glob("*.array_record"))]) as source:
    return [records.decode(source[i]) for i in range(len(source))]


def read_tars(out):
  examples = {}
  for file in sorted(out.glob("*.tar")):
    with tarfile.open(file) as tar:
      for info in tar:
        assert info.mtime == 0
        key, ext = info.name.split(".", 1)
        examples.setdefault(key, {})[ext] = tar.extractfile(info).read()
  return examples


def test_array_records_hold_the_examples(tmp_path):
  _, shards, done = run("arrayrecord", tmp_path)
  source, found = open_source("digits(split='test')"), read_array_records(tmp_path)
  assert done and len(found) == len(source) == sum(s["examples"] for s in shards.values())
  for i, example in enumerate(found):
    np.testing.assert_array_equal(example["image"], source[i]["image"])
    assert (example["label"], example["text"]) == (source[i]["label"], source[i]["text"])


def test_tars_hold_the_examples(tmp_path):
  run("webdataset", tmp_path)
  source, found = open_source("digits(split='test')"), read_tars(tmp_path)
  assert list(found) == [f"{i:08d}" for i in range(len(source))]
  for i, example in enumerate(found.values()):
    image = DECODE({"image": example["png"]}, None)["image"]
    np.testing.assert_array_equal(image, source[i]["image"])
    assert int(example["cls"]) == source[i]["label"]
    assert example["txt"].decode() == source[i]["text"]


def test_tfds_opens_without_tensorflow(tmp_path):
  import tensorflow_datasets as library

  run("tfds", tmp_path)
  source = open_source("digits(split='test')")
  data = library.builder_from_directory(tmp_path).as_data_source("train")
  assert len(data) == len(source) and "tensorflow" not in sys.modules
  for i in range(len(data)):
    np.testing.assert_array_equal(data[i]["image"], source[i]["image"])
    assert data[i]["label"] == source[i]["label"] and data[i]["text"].decode() == source[i]["text"]


@pytest.mark.parametrize("to", FORMATS)
def test_encoded_images_stay_as_they_are(folder, tmp_path, to):
  run(to, tmp_path / to, source=f"image_folder('{folder}')", shards=2)
  source = open_source(f"image_folder('{folder}')")
  expected = [source[i]["image"] for i in range(6)]
  if to == "tfds":
    data = open_source(f"tfds('{tmp_path / to}')")
    found = [data[i]["image"] for i in range(6)]
  elif to == "webdataset":
    found = [
      e[next(k for k in e if k in ("jpg", "png", "webp"))]
      for e in read_tars(tmp_path / to).values()
    ]
  else:
    found = [e["image"] for e in read_array_records(tmp_path / to)]
  assert found == expected


class Mixed:
  """Values of all kinds."""

  def __len__(self):
    return 5

  def __getitem__(self, i):
    return {
      "image": np.full((4, 6, 3), 40 * i, np.uint8),
      "depth": np.full((4, 6), i / 7, np.float32),
      "label": i,
      "text": "größer " * i + "x",
      "name": "tab|" + chr(0x4E00 + i),
      "boxes": np.arange(4 * (i + 1), dtype=np.float32).reshape(-1, 4),
      "captions": ["one", "two"][: i % 2 + 1],
      "fps": 0.5 * i,
    }


def mixed():
  return Mixed()


READ = {
  "arrayrecord": "array_record('{}/*.array_record')",
  "webdataset": "webdataset('{}/*.tar')",
  "tfds": "tfds('{}')",
}


@pytest.mark.parametrize(
  "to",
  [to for to, spec in READ.items() if spec.split("(")[0] in sources.functions(sources.MODULES)],
)
def test_sources_of_training_read_the_same(to, tmp_path, monkeypatch):
  monkeypatch.setattr(sources, "MODULES", (*sources.MODULES, sys.modules[__name__]))
  run(to, tmp_path, source="mixed()", shards=2)
  source = open_source(READ[to].format(tmp_path))
  assert len(source) == 5
  for i in range(5):
    row = source[i]
    row = records.decode(row["record"]) if "record" in row else row
    if isinstance(row["image"], bytes):
      row = ops.build("decode")(row, None)
    text = lambda x: x.decode() if isinstance(x, bytes) else x
    for key, value in Mixed()[i].items():
      if isinstance(value, np.ndarray):
        assert row[key].dtype == value.dtype
        np.testing.assert_array_equal(row[key], value)
      elif isinstance(value, list):
        assert [text(x) for x in row[key]] == value
      else:
        assert text(row[key]) == value, key


def test_members_of_a_tar():
  example = {
    "audio": b"RIFF\0\0\0\0WAVEfmt ",
    "depth": np.ones((2, 2), np.float32),
    "segmentation": np.zeros((2, 2, 1), np.uint8),
    "label": np.int64(3),
    "text": ["a", "b"],
    "fps": 2.5,
    "boxes": np.float32(0.5),
    "blob": b"?",
  }
  members = dict(formats.WebDataset().encode(7, example))
  names = ["wav", "depth.npy", "segmentation.png", "cls", "text.json", "fps.json", "boxes.json"]
  names.append("blob")
  assert list(members) == [f"00000007.{n}" for n in names]
  np.testing.assert_array_equal(
    np.load(io.BytesIO(members["00000007.depth.npy"])), example["depth"]
  )
  assert json.loads(members["00000007.text.json"]) == ["a", "b"]
  assert json.loads(members["00000007.boxes.json"]) == 0.5
  for bad in ({"document": [{"image": b"\xff"}]}, {"a.b": 1}, {"A": 1}, {"x": np.array([{}])}):
    with pytest.raises(UserError, match="webdataset: "):
      formats.WebDataset().encode(0, bad)


def test_tfds_features_hold_what_differs(tmp_path):
  import tensorflow_datasets as library

  def example(i):
    return {
      "image": encoded("PNG", i, "L"),
      "crop": np.full((i + 1, 2 * i + 1, 3), i, np.uint8),
      "audio": np.full(4, i, np.float32),
      "text": ["x"] * i,
      "fps": 0.5,
      "ok": bool(i),
      "box": np.float16(i),
    }

  features = tfds.infer([example(0), example(1)])
  assert features["crop"] == {"type": "tensor", "dtype": "uint8", "shape": [None, None, 3]}
  assert features["image"] == {"type": "image", "channels": 1}
  form = tfds.Tfds(features)
  data = library.features.FeaturesDict(dict(form.features))
  for i in range(3):
    found = data.deserialize_example_np(form.encode(0, example(i)))
    np.testing.assert_array_equal(found["crop"], example(i)["crop"])
    np.testing.assert_array_equal(found["audio"], example(i)["audio"])
    assert [t.decode() for t in found["text"]] == ["x"] * i
    assert (found["fps"], found["ok"], found["box"]) == (0.5, bool(i), i)


@pytest.mark.parametrize("to", FORMATS)
def test_tfds_is_read_as_any_other_source(to, tmp_path):
  run("tfds", tmp_path / "first")
  source = f"tfds('{tmp_path / 'first'}')"
  run(to, tmp_path / "second", "--name", "digits", source=source)
  if to == "tfds":
    for file in (tmp_path / "first").glob("*array_record*"):
      assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes()
  if to == "webdataset":
    assert read_tars(tmp_path / "second")["00000000"].keys() == {"png", "cls", "txt"}


@pytest.mark.parametrize(
  "examples, message",
  [
    ([{"document": [{"text": "a"}]}], "document is a list of dict"),
    ([{"x": []}], "x is an empty list"),
    ([{"x": None}], "x is a NoneType"),
    ([{"x": np.zeros(2)}, {"x": np.zeros((2, 2))}], "x is float64 of 1 axes here"),
    ([{"x": np.array(["a"])}], "x is an array of <U1"),
    ([{"a": 1}, {"b": 1}], "keys a and of keys b"),
    ([{"images": [encoded("PNG")]}], "images is a list of bytes"),
  ],
)
def test_what_tfds_refuses(examples, message):
  with pytest.raises(UserError, match=message) as error:
    tfds.infer(examples)
  assert "\n" not in str(error.value)


def test_two_splits_of_one_tfds_data_set(tmp_path):
  import tensorflow_datasets as library

  run("tfds", tmp_path)
  run("tfds", tmp_path, "--split", "test", source="digits(split='train')")
  splits = library.builder_from_directory(tmp_path).info.splits
  counts = {name: split.num_examples for name, split in splits.items()}
  assert counts == {"train": 364, "test": 1433}
  with pytest.raises(UserError, match="has name = 'digits', not 'other'"):
    run("tfds", tmp_path, "--split", "val", "--name", "other")


# -------------------------------------------------------------------------- resume, damage, plans


def lines(out):
  return (out / "train.manifest.jsonl").read_text()


@pytest.mark.parametrize("to", FORMATS)
def test_resumed_after_a_crash_it_is_as_in_one_go(tmp_path, monkeypatch, to):
  run(to, tmp_path / "whole")
  real, calls = manifest.Manifest.add, []

  def dies(self, shard, *args):
    if calls:
      raise KeyboardInterrupt
    calls.append(shard)
    real(self, shard, *args)

  with monkeypatch.context() as patch:
    patch.setattr(manifest.Manifest, "add", dies)
    with pytest.raises(KeyboardInterrupt):
      run(to, tmp_path / "cut")
  with (tmp_path / "cut" / "train.manifest.jsonl").open("a") as f:
    f.write('{"shard": 1, "fi')  # as a crash in the middle of writing leaves it
  assert command.main(["--out", str(tmp_path / "cut"), "--verify"]) == 1

  written = []
  monkeypatch.setattr(
    manifest.Manifest, "add", lambda self, *args: (written.append(args[0]), real(self, *args))
  )
  run(to, tmp_path / "cut")
  assert written == [1, 2] and lines(tmp_path / "cut") == lines(tmp_path / "whole")
  assert not list((tmp_path / "cut").glob(".*"))


def test_no_half_shard_has_a_name(tmp_path, monkeypatch):
  def dies(self, index, example):
    if index == 200:
      raise KeyboardInterrupt
    return b"x"

  monkeypatch.setattr(formats.ArrayRecord, "encode", dies)
  with pytest.raises(KeyboardInterrupt):
    run("arrayrecord", tmp_path)
  assert [f.name for f in sorted(tmp_path.iterdir())] == [
    "digits-train-00000-of-00003.array_record",
    "train.manifest.jsonl",
  ]


def test_a_flipped_bit_is_found_and_its_shard_written_anew(tmp_path, capsys):
  run("webdataset", tmp_path)
  before, file = lines(tmp_path), tmp_path / "digits-train-000001.tar"
  assert command.main(["--out", str(tmp_path), "--verify"]) == 0
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 1
  file.write_bytes(data)
  (tmp_path / "digits-train-000002.tar").unlink()
  capsys.readouterr()
  assert command.main(["--out", str(tmp_path), "--verify"]) == 1
  said = capsys.readouterr().out
  assert f"{file}: another SHA-256" in said and "000002.tar: missing" in said
  assert "000000.tar" not in said
  run("webdataset", tmp_path)
  assert command.main(["--out", str(tmp_path), "--verify"]) == 0 and lines(tmp_path) == before


def test_another_plan_is_refused(tmp_path):
  run("webdataset", tmp_path)
  for more in (
    dict(source="digits(split='train')"),
    dict(shards=4),
  ):
    with pytest.raises(UserError, match=r"was begun with (source|shards) = .*another --out"):
      run("webdataset", tmp_path, **more)
  with pytest.raises(UserError, match="was begun with to = 'webdataset', not 'arrayrecord'"):
    run("arrayrecord", tmp_path)
  with pytest.raises(UserError, match="was begun with pp = '', not 'drop"):
    run("webdataset", tmp_path, "--pp", "drop(text)")


def test_shards_by_size_and_processes(tmp_path):
  sizes = ["--shard-mb", "0.3"]
  _, shards, _ = run("webdataset", tmp_path / "a", *sizes, shards=None)
  assert 3 <= len(shards) <= 5
  assert all(s["bytes"] < 0.4 * 2**20 for s in shards.values())
  run("webdataset", tmp_path / "b", *sizes, "--workers", "2", shards=None)
  assert lines(tmp_path / "a") == lines(tmp_path / "b")


# ------------------------------------------------------------------------------------ bad examples


@pytest.mark.parametrize("to", FORMATS)
def test_bad_examples_are_left_out_and_counted(folder, tmp_path, to):
  (folder / "cat" / "1.png").write_bytes(b"")
  (folder / "dog" / "0.jpeg").write_bytes(encoded("JPEG")[:100])
  args = ["--pp", "decode|keep(image, label)"]
  source = f"image_folder('{folder}')"
  _, shards, _ = run(
    to, tmp_path / to, *args, "--max-bad-fraction", "0.02", source=source, shards=2
  )
  assert [s["examples"] for _, s in sorted(shards.items())] == [2, 2]
  assert sum(sum(s["bad"].values()) for s in shards.values()) == 2
  before = lines(tmp_path / to)
  run(to, tmp_path / to, *args, "--max-bad-fraction", "0.02", source=source, shards=2)
  assert lines(tmp_path / to) == before
  with pytest.raises(UserError, match=r"2 of 6 examples are bad .* --max-bad-fraction = 0.01"):
    run(to, tmp_path / "strict", *args, source=source, shards=2)


def test_bytes_that_are_no_image_are_bad(folder, tmp_path):
  (folder / "dog" / "2.webp").write_bytes(b"<html>")
  (folder / "dog" / "1.png").write_bytes(b"")
  more = ["--max-bad-fraction", "0.02"]
  for to in ("webdataset", "tfds"):
    _, shards, _ = run(to, tmp_path / to, *more, source=f"image_folder('{folder}')", shards=1)
    assert shards[0]["bad"] == {"not an image": 1, "empty file": 1}


# ------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize(
  "args, message",
  [
    (["--to", "tfds"], "--from is missing"),
    (["--from", "digits"], "--to is missing"),
    (["--from", "digit", "--to", "tfds"], "did you mean digits"),
    (["--from", "digits", "--to", "tfds", "--pp", "dropp(text)"], "did you mean drop"),
    (["--from", "digits", "--to", "tfds", "--shards", "0"], "--shards = 0"),
    (["--from", "digits", "--to", "tfds", "--shards", "2000"], "has only 1433 examples"),
    (["--from", "digits", "--to", "tfds", "--shard-mb", "-1"], "--shard-mb = -1"),
    (["--from", "digits", "--to", "tfds", "--max-bad-fraction", "2"], "expected 0 to 1"),
    (["--from", "digits", "--to", "tfds", "--name", "A b"], "--name = 'A b'"),
    (["--from", "digits", "--to", "tfds", "--workers", "-1"], "--workers = -1"),
    (["--verify"], "no \\*.manifest.jsonl there"),
    (["--from", "digits", "--to", "webdataset", "--pp", "drop('label')|nothing"], "nothing"),
  ],
)
def test_mistakes(tmp_path, args, message):
  with pytest.raises(UserError, match=message) as error:
    command.main(["--out", str(tmp_path), *args])
  assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_exit_code_and_one_line(tmp_path):
  (tmp_path / "train.manifest.jsonl").write_text("no plan")
  result = subprocess.run(
    [sys.executable, "-m", "tools.convert_data", "--verify", "--out", str(tmp_path)],
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  assert result.returncode == 2, result.stderr
  assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
