"""Decoding: pixels as PIL has them, 16 bits, CMYK, orientation, and every broken file by kind."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from big_vision_like.config import UserError
from big_vision_like.input import ops
from big_vision_like.input.bad import BadExample
from big_vision_like.input.formats import decoding

RNG = np.random.default_rng(0)


def picture(height=40, width=56, channels=3, seed=0):
  """Smooth with a little noise."""
  rng = np.random.default_rng(seed)
  coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8))
  smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
  out = np.clip(smooth + rng.integers(-9, 10, smooth.shape), 0, 255).astype(np.uint8)
  return out[..., :channels]


def encoded(array, kind="JPEG", mode=None, **options):
  out = io.BytesIO()
  image = Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array)
  (image.convert(mode) if mode else image).save(out, kind, **options)
  return out.getvalue()


def decode(data, spec="decode"):
  return ops.build(spec)({"image": data}, RNG)["image"]


def pil(data, mode="RGB"):
  return np.asarray(Image.open(io.BytesIO(data)).convert(mode))


def kind_of(data, spec="decode"):
  with pytest.raises(BadExample) as e:
    decode(data, spec)
  return e.value.kind


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("size", [(40, 56), (37, 53), (1, 1), (9, 200)])
@pytest.mark.parametrize("options", [dict(quality=90), dict(quality=30, progressive=True)])
def test_jpeg_is_pil_bit_for_bit(subsampling, size, options):
  data = encoded(picture(*size), subsampling=subsampling, **options)
  np.testing.assert_array_equal(decode(data), pil(data))
  np.testing.assert_array_equal(decode(data, "decode(1)")[..., 0], pil(data, "L"))
  np.testing.assert_array_equal(decode(bytearray(data)), pil(data))


@pytest.mark.parametrize(
  "draft, factor", [(40, 1), (21, 1), (20, 2), (11, 2), (10, 4), (5, 8), (1, 8)]
)
def test_draft_is_pils(draft, factor):
  data = encoded(picture(40, 57))
  with Image.open(io.BytesIO(data)) as want:
    want.draft("RGB", (57 // factor, 40 // factor))
    want = np.asarray(want)
  out = decode(data, f"decode(draft={draft})")
  assert out.shape == (-(-40 // factor), -(-57 // factor), 3)
  np.testing.assert_array_equal(out, want)
  assert decode(data, f"decode(1, draft={draft})").shape[:2] == out.shape[:2]


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF", "PPM", "WEBP"])
@pytest.mark.parametrize("mode", ["L", "RGB", "P", "RGBA", "LA"])
def test_other_formats_are_pils(kind, mode):
  try:
    data = encoded(picture(), kind, mode)
  except OSError:
    pytest.skip(f"no {mode} in {kind}")
  np.testing.assert_array_equal(decode(data), pil(data))
  np.testing.assert_array_equal(decode(data, "decode(1)")[..., 0], pil(data, "L"))


def test_gray_jpeg_has_three_equal_channels():
  data = encoded(picture(channels=1))
  np.testing.assert_array_equal(decode(data), pil(data))


def test_alpha_is_dropped_and_palettes_with_transparency_do_not_warn():
  rgba = np.dstack([picture(), np.tile(np.arange(56, dtype=np.uint8) * 4, (40, 1))])
  np.testing.assert_array_equal(decode(encoded(rgba, "PNG")), picture())
  levels = Image.fromarray(picture()).quantize(8)
  out = io.BytesIO()
  levels.save(out, "PNG", transparency=bytes(range(8)))
  np.testing.assert_array_equal(decode(out.getvalue()), np.asarray(levels.convert("RGB")))


def test_first_frame_of_an_animation():
  frames = [Image.fromarray(picture(seed=s)) for s in (1, 2)]
  for kind in ("GIF", "WEBP"):
    out = io.BytesIO()
    frames[0].save(out, kind, save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode(out.getvalue()), pil(out.getvalue()))


def test_cmyk_jpeg_is_rgb_as_pil_has_it():
  data = encoded(picture(), mode="CMYK", quality=95)
  np.testing.assert_array_equal(decode(data), pil(data))
  assert np.abs(decode(data).astype(int) - picture()).mean() < 12  # not inverted


def test_sixteen_bits_are_scaled():
  deep = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
  deep[-1, -1] = 65535
  data = encoded(deep, "PNG")
  want = np.rint(deep / 257).astype(np.uint8)
  np.testing.assert_array_equal(decode(data, "decode(1)")[..., 0], want)
  np.testing.assert_array_equal(decode(data), np.repeat(want[..., None], 3, -1))


def test_float_pixels_are_unreadable():
  assert kind_of(encoded(np.zeros((4, 4), np.float32), "TIFF")) == "unreadable image"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_exifs(orientation):
  from PIL import ImageOps

  exif = Image.Exif()
  exif[0x0112] = orientation
  for kind in ("JPEG", "PNG"):
    data = encoded(picture(24, 40), kind, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
      want = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(decode(data, "decode(orient=True)"), want)
    np.testing.assert_array_equal(decode(data), pil(data))


def test_the_content_decides():
  for kind in ("JPEG", "PNG", "GIF", "WEBP"):
    assert decode(encoded(picture(), kind)).shape == (40, 56, 3)
  assert kind_of(b"<!doctype html><html></html>") == "not an image"
  assert kind_of(b"\0" * 100) == "not an image"
  assert kind_of(b"x") == "not an image"
  assert kind_of(b"") == "empty file"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.9])
def test_truncated(kind, share):
  data = encoded(picture(), kind)
  cut = data[: max(16, int(len(data) * share))]
  assert kind_of(cut) == "truncated image"
  assert kind_of(cut, "decode(1)") == "truncated image"
  if kind == "JPEG":
    assert kind_of(cut, "decode_random_resized_crop(8)") == "truncated image"


def test_a_truncated_gif_is_bad():
  data = encoded(picture(), "GIF")
  assert kind_of(data[: len(data) // 2]) in ("truncated image", "unreadable image")


def test_damage_that_pil_tolerates_is_read_as_pil_reads_it():
  data = encoded(picture(64, 64), quality=95)
  middle = data.index(b"\xff\xda") + 200
  hurt = data[:middle] + b"\xff\xd0" + data[middle:]  # a stray marker: libjpeg warns
  try:
    want = pil(hurt)
  except OSError:
    assert kind_of(hurt) in ("truncated image", "unreadable image")
  else:
    np.testing.assert_array_equal(decode(hurt), want)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF"]), st.data())
def test_any_damage_is_an_image_or_a_bad_example(kind, draw):
  data = bytearray(encoded(picture(12, 16), kind))
  for _ in range(draw.draw(st.integers(1, 3))):
    data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
      assert decode(bytes(data)).dtype == np.uint8
    except BadExample as e:
      assert e.kind in ("not an image", "image too large", "truncated image", "unreadable image")


def png_header(width, height):
  head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
  return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


def bombs():
  side = 30_000
  line = zlib.compress(bytes(1000))
  data = b"IDAT" + line
  chunk = struct.pack(">I", len(line)) + data + struct.pack(">I", zlib.crc32(data))
  yield "png", png_header(side, side) + chunk + b"\0\0\0\0IEND\xaeB`\x82"
  jpeg = bytearray(encoded(picture()))
  frame = jpeg.index(b"\xff\xc0")
  jpeg[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
  yield "jpeg", bytes(jpeg)
  gif = bytearray(encoded(picture(), "GIF"))
  gif[6:10] = struct.pack("<HH", side, side)
  yield "gif", bytes(gif)
  bmp = bytearray(encoded(picture(), "BMP"))
  bmp[18:26] = struct.pack("<ii", side, side)
  yield "bmp", bytes(bmp)


@pytest.mark.parametrize("name, data", list(bombs()))
def test_bombs_are_never_decoded(name, data, monkeypatch):
  import simplejpeg
  from PIL import ImageFile

  def never(*args, **kwargs):
    raise AssertionError("decoded")

  monkeypatch.setattr(ImageFile.ImageFile, "load", never)
  monkeypatch.setattr(simplejpeg, "decode_jpeg", never)
  for spec in ("decode", "decode(1)", "decode_random_resized_crop(8)", "decode(draft=8)"):
    assert kind_of(data, spec) == "image too large"


def test_the_bound_on_pixels():
  for kind in ("JPEG", "PNG", "WEBP"):
    data = encoded(picture(40, 56), kind)
    assert decode(data, "decode(max_pixels=2240)").shape == (40, 56, 3)
    assert kind_of(data, "decode(max_pixels=2239)") == "image too large"


def test_large_pictures_below_the_bound_do_not_warn():
  flat = Image.new("L", (9600, 9600))  # above the size where PIL begins to warn
  out = io.BytesIO()
  flat.save(out, "PNG")
  with decoding.opened(out.getvalue()) as image:
    assert image.size == (9600, 9600)


def test_arrays_stay_and_arguments_are_checked():
  array = picture()
  assert decode(array) is array
  for spec in ("decode(2)", "decode(draft=0)", "decode(draft='a')", "decode(max_pixels=0)"):
    with pytest.raises(UserError, match="op decode"):
      ops.build(spec)
