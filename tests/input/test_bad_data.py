"""The matrix of broken data: each kind is counted, logged with where it was, and replaced."""

import io
import itertools
import json
import struct
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image

from big_vision_like.config import UserError
from big_vision_like.input import pipeline

RNG = np.random.default_rng(0)
GOOD = 19
"""Good examples beside each bad one."""


def picture(form="JPEG", mode="RGB", size=(40, 30)):
  out = io.BytesIO()
  pixels = RNG.integers(0, 256, (*size[::-1], 3), np.uint8)
  Image.fromarray(pixels).convert(mode).save(out, form)
  return out.getvalue()


def png_16_bit():
  out = io.BytesIO()
  Image.fromarray(np.full((30, 40), 0x8000, np.uint16)).save(out, "PNG")
  return out.getvalue()


def bomb():
  """The head of a PNG of 30,000 x 30,000, whose pixels nobody should ask for."""
  chunk = lambda kind, data: (
    struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
  )
  head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
  body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
  return b"\x89PNG\r\n\x1a\n" + body


IMAGE_OPS = "decode|resize(8)|require_text|keep(image, text)"
USABLE = {  # odd, but not broken
  "JPEG that is called .png": ("png", picture()),
  "PNG that is called .jpg": ("jpg", picture("PNG")),
  "CMYK JPEG": ("jpg", picture(mode="CMYK")),
  "grey JPEG": ("jpg", picture(mode="L")),
  "16-bit PNG": ("png", png_16_bit()),
  "palette GIF": ("gif", picture("GIF")),
  "WebP": ("webp", picture("WEBP")),
}
BROKEN = {
  "truncated JPEG": ("truncated image", {"jpg": picture()[:-200]}),
  "truncated PNG": ("truncated image", {"png": picture("PNG")[:-200]}),
  "0-byte file": ("empty file", {"jpg": b""}),
  "text called .jpg": ("not an image", {"jpg": b"no picture"}),
  "30,000 x 30,000 bomb": ("image too large", {"png": bomb()}),
  "empty caption": ("empty text", {"txt": b" \n"}),
  "Latin-1 caption": ("not UTF-8", {"txt": b"caf\xe9"}),
  "no caption": ("missing key", {"txt": None}),
  "member with ../": ("unsafe path", {"name": "../../outside"}),
}


def shard(path, samples):
  """A tar of samples (name, {extension: bytes})."""
  with tarfile.open(path, "w") as tar:
    for name, files in samples:
      for extension, data in files.items():
        info = tarfile.TarInfo(f"{name}.{extension}")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))


def sample(i, **changes):
  name = changes.pop("name", f"{i:04d}")
  if changes.keys() & {"png", "gif", "webp"}:
    changes = {"jpg": None, **changes}
  files = {"jpg": picture(), "txt": b"a caption", **changes}
  return name, {k: v for k, v in files.items() if v is not None}


def batches(source, pp, steps=1, **settings):
  """The first batches of 20, and the stream with its counters."""
  cfg = {"source": source, "pp": pp, "max_bad_fraction": 0.06, "num_threads": 2, **settings}
  stream = pipeline.train_batches(cfg, batch_size=20, seed=0, start_step=0)
  found = list(itertools.islice(stream, steps))
  stream.close()
  return found, stream


def bad_once(source, pp, kind, caplog, **settings):
  """An epoch with one bad example: counted, logged, replaced, the same again."""
  [batch], stream = batches(source, pp, **settings)
  assert dict(stream.bad.kinds) == {kind: 1}
  assert stream.said() == f"bad 1 ({kind} 1)  "
  assert stream.counts() == {f"input/bad/{kind.replace(' ', '_')}": 1}
  assert f"of {source}: {kind} (" in caplog.text
  [again], _ = batches(source, pp, num_threads=0, **settings)
  for key in batch:
    np.testing.assert_array_equal(batch[key], again[key])
  with pytest.raises(UserError, match=rf"1 of \d+ examples are bad \({kind} 1\), more than input"):
    batches(source, pp, **{**settings, "max_bad_fraction": 0.0})
  return batch


@pytest.mark.parametrize("name", BROKEN)
def test_broken_samples(name, tmp_path, caplog):
  kind, changes = BROKEN[name]
  file = tmp_path / "a.tar"
  shard(file, [sample(i, **(changes if i == 7 else {})) for i in range(GOOD + 1)])
  batch = bad_once(f"webdataset(pattern='{file}')", IMAGE_OPS, kind, caplog)
  assert batch["image"].shape == (20, 8, 8, 3) and batch["image"].dtype == np.uint8


@pytest.mark.parametrize("name", USABLE)
def test_odd_pictures_are_read(name, tmp_path):
  extension, data = USABLE[name]
  file = tmp_path / "a.tar"
  shard(file, [sample(i, **{extension: data}) for i in range(20)])
  [batch], stream = batches(f"webdataset(pattern='{file}')", IMAGE_OPS)
  assert not stream.bad.kinds and batch["image"].shape == (20, 8, 8, 3)
  if name == "16-bit PNG":
    assert set(np.unique(batch["image"])) == {128}


def test_a_tar_that_is_cut(tmp_path, caplog):
  file = tmp_path / "a.tar"
  shard(file, [sample(i) for i in range(GOOD + 2)])
  with tarfile.open(file) as tar:
    last = tar.getmembers()[2 * GOOD]  # the picture of the last sample but one
  file.write_bytes(file.read_bytes()[: last.offset_data + last.size // 2])
  bad_once(f"webdataset(pattern='{file}')", IMAGE_OPS, "truncated tar", caplog)


def test_a_missing_shard_is_an_error_at_the_start(tmp_path):
  for i in (0, 2):
    shard(tmp_path / f"{i}.tar", [sample(i) for i in range(20)])
  pattern = f"{tmp_path}/{{0..2}}.tar"
  with pytest.raises(UserError, match=r"1 of 3 files are missing, no file .*/1\.tar"):
    batches(f"webdataset(pattern='{pattern}')", IMAGE_OPS)
  found, stream = batches(
    f"webdataset(pattern='{pattern}', allow_missing_shards=True)", IMAGE_OPS, steps=2
  )
  assert len(found) == 2 and not stream.bad.kinds


def test_rows_that_are_broken(tmp_path, caplog):
  rows = [json.dumps({"image": "a.jpg", "text": "a caption"}) for _ in range(GOOD + 1)]
  (tmp_path / "a.jpg").write_bytes(picture())
  (tmp_path.parent / "secret.jpg").write_bytes(picture())
  file = tmp_path / "a.jsonl"
  for kind, line in (
    ("missing key", '{"image": "a.jpg"}'),
    ("broken line", '{"image": "a.jpg", '),
    ("unsafe path", '{"image": "../secret.jpg", "text": "x"}'),
    ("missing file", '{"image": "b.jpg", "text": "x"}'),
    ("bad base64", '{"image": "data:image/jpeg;base64,###", "text": "x"}'),
  ):
    file.write_text("\n".join([*rows[:7], line, *rows[8:]]))
    bad_once(f"jsonl(pattern='{file}')", IMAGE_OPS, kind, caplog)


def test_a_missing_column_is_an_error_at_the_start(tmp_path):
  (tmp_path / "a.csv").write_text("image,caption\na.jpg,x\n")
  with pytest.raises(UserError, match=r"column 'text' is unknown; .*known: caption, image"):
    batches(f"table(path='{tmp_path}/a.csv')", IMAGE_OPS)


def test_audio_that_is_broken(tmp_path, caplog):
  soundfile = pytest.importorskip("soundfile")
  good = np.sin(np.arange(1600) / 10).astype(np.float32)
  (tmp_path / "a").mkdir()
  for i in range(GOOD + 1):
    soundfile.write(tmp_path / "a" / f"{i:02d}.wav", good, 16_000, subtype="FLOAT")
  target = tmp_path / "a" / "07.wav"
  whole = target.read_bytes()
  soundfile.write(target, np.where(np.arange(1600) == 5, np.nan, good), 16_000, subtype="FLOAT")
  source, pp = f"audio(path='{tmp_path}')", "decode_audio(16000)|keep(audio)"
  for kind, data in (
    ("NaN audio", target.read_bytes()),
    ("truncated audio", whole[:-3000]),
    ("not audio", b"no sound at all"),
    ("empty file", b""),
  ):
    target.write_bytes(data)
    bad_once(source, pp, kind, caplog)


def test_all_bad_is_an_error_and_no_endless_search(tmp_path):
  shard(tmp_path / "a.tar", [sample(i, txt=b"") for i in range(20)])
  with pytest.raises(UserError, match=r"examples in a row are bad; the last: bad example .* empty"):
    batches(f"webdataset(pattern='{tmp_path}/a.tar')", IMAGE_OPS, max_bad_fraction=1.0)
