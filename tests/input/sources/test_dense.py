"""Image, depth and segmentation of one scene, and the ops that keep them together."""

import io
import pathlib
import zipfile

import numpy as np
import pytest
from PIL import Image

from big_vision_like.config import UserError
from big_vision_like.input import ops, schema, sources
from big_vision_like.input.bad import BadExample
from big_vision_like.input.randomness import LazyGenerator, generator

REAL = pathlib.Path(__file__).parents[4] / "shared/data/rgbd/open3d_rgbd.zip"
H, W = 6, 9
DEPTH = (np.arange(H * W).reshape(H, W) * 1100).astype(np.uint16)
IDS = (np.arange(H * W).reshape(H, W) % 7).astype(np.uint8)


def encoded(picture, kind="PNG", **options):
  out = io.BytesIO()
  picture.save(out, kind, **options)
  return out.getvalue()


def palette(ids, bits=8):
  picture = Image.new("P", ids.shape[::-1])
  picture.putdata(ids.ravel().tolist())
  picture.putpalette([255 - i for i in range(256) for _ in range(3)])
  return encoded(picture, bits=bits)


@pytest.fixture
def folder(tmp_path):
  for name in ("image", "depth", "segmentation"):
    (tmp_path / name / "b").mkdir(parents=True)
  for stem in ("0", "b/1"):
    picture = Image.fromarray(np.full((H, W, 3), 99, np.uint8))
    (tmp_path / f"image/{stem}.jpg").write_bytes(encoded(picture, "JPEG"))
    (tmp_path / f"depth/{stem}.png").write_bytes(encoded(Image.fromarray(DEPTH)))
    (tmp_path / f"segmentation/{stem}.png").write_bytes(palette(IDS))
  return tmp_path


def opened(path, **options):
  spec = ", ".join([repr(str(path)), *(f"{k}={v!r}" for k, v in options.items())])
  return sources.open_source(f"triples({spec})")


DECODE = "decode|decode_depth|decode_segmentation"


def run(example, spec, index=0):
  return ops.build(spec)(example, generator(0, index))


def kind(example, spec):
  with pytest.raises(BadExample) as e:
    run(example, spec)
  return e.value.kind


def test_triples(folder):
  source = opened(folder)
  assert len(source) == 2 and source[0].keys() == {"image", "depth", "segmentation"}
  for i in range(2):
    schema.check(source[i])
    example = run(source[i], DECODE)
    schema.check(example)
    np.testing.assert_array_equal(example["depth"][..., 0], np.float32(DEPTH) / np.float32(1000))
    np.testing.assert_array_equal(example["segmentation"][..., 0], IDS)
  assert opened(folder, depth="", segmentation="segmentation")[0].keys() == {
    "image",
    "segmentation",
  }


def test_absent_folders(folder):
  (folder / "depth").rename(folder / "far")
  assert opened(folder)[0].keys() == {"image", "segmentation"}
  assert opened(folder, depth="far")[1].keys() == {"image", "depth", "segmentation"}
  with pytest.raises(UserError, match="depth = 'near'"):
    opened(folder, depth="near")
  with pytest.raises(UserError, match="image = 'rgb'"):
    opened(folder, image="rgb")


def test_partners(folder):
  (folder / "depth/b/1.png").rename(folder / "depth/b/2.png")
  with pytest.raises(UserError, match=r"1 files of .*image have no partner.*depth, first b/1\.jpg"):
    opened(folder)
  (folder / "depth/b/1.png").write_bytes(b"")
  with pytest.raises(UserError, match=r"depth have no partner in .*image, first b/2\.png"):
    opened(folder)
  (folder / "image/0.png").write_bytes(b"")
  with pytest.raises(UserError, match=r"has 0\.jpg and 0\.png"):
    opened(folder)


def test_empty(tmp_path):
  (tmp_path / "image").mkdir()
  with pytest.raises(UserError, match="has no images"):
    opened(tmp_path)


# -------------------------------------------------------------------------------------------- ops


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_ids_stay(bits):
  ids = IDS & (2**bits - 1)
  assert (
    run({"segmentation": palette(ids, bits)}, "decode_segmentation")["segmentation"][..., 0] == ids
  ).all()
  grey = _grey_png(ids, bits)
  out = run({"segmentation": grey}, "decode_segmentation")["segmentation"]
  assert out.dtype == np.int32 and (out[..., 0] == ids).all()


def _grey_png(values, bits):
  """A grey PNG of so many bits, which PIL cannot write."""
  import struct
  import zlib

  def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

  rows = b""
  for row in values:
    digits = "".join(format(v, f"0{bits}b") for v in row)
    digits += "0" * (-len(digits) % 8)
    rows += b"\0" + bytes(int(digits[i : i + 8], 2) for i in range(0, len(digits), 8))
  head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
  body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
  return b"\x89PNG\r\n\x1a\n" + body


def test_ids_of_16_bits():
  ids = DEPTH
  out = run({"segmentation": encoded(Image.fromarray(ids))}, "decode_segmentation")
  assert (out["segmentation"][..., 0] == ids).all()


def test_scale():
  out = run({"depth": encoded(Image.fromarray(DEPTH))}, "decode_depth(5000)")["depth"]
  assert out.dtype == np.float32 and out[0, 0, 0] == 0
  np.testing.assert_array_equal(out[..., 0], DEPTH.astype(np.float32) / np.float32(5000))
  np.testing.assert_array_equal(run({"depth": out}, "decode_depth")["depth"], out)  # arrays stay
  with pytest.raises(UserError, match="scale = 0"):
    ops.build("decode_depth(0)")


def test_bad_maps():
  colour = encoded(Image.new("RGB", (4, 4)))
  whole = encoded(Image.fromarray(DEPTH))
  assert kind({"depth": colour}, "decode_depth") == "not a depth map"
  assert kind({"segmentation": colour}, "decode_segmentation") == "not a segmentation"
  assert kind({"depth": b""}, "decode_depth") == "empty file"
  assert kind({"depth": b"text"}, "decode_depth") == "not an image"
  assert kind({"depth": whole[: len(whole) // 2]}, "decode_depth") == "truncated image"


def joint(spec, index=0, image=None):
  """An image whose pixels say where they are from, as do depth and segmentation."""
  place = np.arange(H * W).reshape(H, W, 1)
  example = {
    "image": np.repeat(place, 3, -1).astype(np.uint8) if image is None else image,
    "depth": place.astype(np.float32),
    "segmentation": place.astype(np.int32) + 1000,
    "label": 3,
  }
  return run(example, f"jointly({spec!r})", index)


@pytest.mark.parametrize(
  "spec", ["random_crop(3, 4)", "flip_lr", "random_place(9, 12)|random_crop(8)", "central_crop(3)"]
)
def test_same_geometry(spec):
  changed = 0
  for index in range(8):
    out = joint(spec, index)
    there = out["segmentation"] > 0  # where nothing was padded
    np.testing.assert_array_equal(out["image"][..., :1][there], out["depth"][there])
    np.testing.assert_array_equal(out["segmentation"][there] - 1000, out["depth"][there])
    assert out["label"] == 3
    changed += (
      out["depth"].shape != (H, W, 1) or not (out["depth"] == joint("pad(6, 9)")["depth"]).all()
    )
  assert changed >= 2


@pytest.mark.parametrize(
  "spec", ["random_resized_crop(11, 13)|flip_lr", "resize(4, 5, bicubic)", "resize_small(17)"]
)
def test_ids_and_depths_are_never_interpolated(spec):
  for index in range(6):
    out = joint(spec, index)
    assert out["image"].shape[:2] == out["depth"].shape[:2] == out["segmentation"].shape[:2]
    assert set(out["segmentation"].ravel().tolist()) <= set(range(1000, 1000 + H * W))
    np.testing.assert_array_equal(out["segmentation"] - 1000, out["depth"])
    assert out["segmentation"].dtype == np.int32 and out["depth"].dtype == np.float32
    # the image is from the same place: interpolated, within a row of it
    assert np.abs(out["image"][..., 0].astype(float) - out["depth"][..., 0]).max() <= W + 1


def test_image_is_as_the_op_alone_makes_it():
  image = np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8)
  out = joint("resize(4, 5, bicubic)", image=image)["image"]
  np.testing.assert_array_equal(out, run({"image": image}, "resize(4, 5, bicubic)")["image"])


def test_numbers_are_drawn_only_where_something_is_random():
  class Never:
    def __getattr__(self, name):
      raise AssertionError(f"{name} is drawn")

  example = {"image": np.zeros((H, W, 3), np.uint8)}
  ops.build("jointly('resize(4)|central_crop(2)')")(example, Never())
  op = ops.build("jointly('random_crop(3)')")
  image = np.arange(H * W * 3, dtype=np.uint8).reshape(H, W, 3)
  a, b = (op({"image": image}, LazyGenerator(1, 5))["image"] for _ in range(2))
  np.testing.assert_array_equal(a, b)


def test_jointly_errors():
  with pytest.raises(UserError, match="geometric op 'value_range' is unknown"):
    ops.build("jointly('value_range')")
  with pytest.raises(UserError, match=r"resize"):
    ops.build("jointly('resize(0)')")
  example = {"image": np.zeros((4, 4, 3), np.uint8), "depth": np.zeros((5, 4, 1), np.float32)}
  assert kind(example, "jointly('flip_lr')") == "sizes differ"


def test_real_depth(tmp_path):
  if not REAL.exists():
    pytest.skip("../shared/data/rgbd is absent")
  with zipfile.ZipFile(REAL) as data:
    data.extractall(tmp_path)
  source = opened(tmp_path / "RGBD", image="color")
  example = run(source[0], "decode|decode_depth|jointly('random_resized_crop(32)|flip_lr')")
  schema.check(example)
  assert len(source) == 5 and example["depth"].shape == (32, 32, 1)
  assert 0.3 < np.median(example["depth"][example["depth"] > 0]) < 5  # metres, of a room
