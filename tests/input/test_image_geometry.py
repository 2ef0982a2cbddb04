"""Resizing in both flavours, crops and padding; recorded scores depend on the older ops' bits."""

import hashlib
import io

import jax
import numpy as np
import pytest
from PIL import Image

from big_vision_like.config import UserError
from big_vision_like.input import ops, pixels
from big_vision_like.input.bad import BadExample
from big_vision_like.input.formats import decoding


def image(height=41, width=57, channels=3, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def run(spec, x, seed=0):
  return ops.build(spec)({"image": x}, np.random.default_rng(seed))["image"]


GOLDEN = [
  ("random_place(60, 70, value=3)", "78cda557358dee24"),
  ("random_resized_crop(24)", "61c6d376bb7145dd"),
  ("random_resized_crop(20, 28, method='bicubic')", "fbe48b1fbaf48ffd"),
  ("multi_crop(32, 16, num_local=3)", "462d3b88021d2cbf"),
  ("flip_lr", "e3601c7e36b592b1"),
  ("value_range(-1, 1)", "d2e0c7e58b10c4d0"),
  ("value_range(0, 1)", "5502d40b8a0d8755"),
  ("standardize", "11134425fa543975"),
  ("resize(24, 30)", "ce3c83995428867c"),
  ("resize(80, method='lanczos')", "b00f4a29a0f42544"),
  ("resize(24, method='nearest')", "267763c1a4d3a771"),
  ("resize_small(33, method='bicubic')", "ab3d068cebc7082e"),
  ("central_crop(20, 24)", "81222a15c3d3daeb"),
  ("random_crop(20)", "9f21084a57e132b3"),
  ("pad(64, 64, value=7)", "fea323f1d351417f"),
  ("resize(50)|random_crop(40)|flip_lr|value_range(-1, 1)", "0cbcc6f85b0ebc71"),
]


@pytest.mark.parametrize("spec, want", GOLDEN)
def test_outputs_and_draws_are_those_of_recorded_scores(spec, want):
  digest, op = hashlib.sha256(), ops.build(spec)
  for seed in range(4):
    for channels in (1, 3):
      if spec == "standardize" and channels == 1:
        continue
      rng = np.random.default_rng(100 + seed)
      out = op({"image": image(channels=channels, seed=seed)}, rng)
      for key in sorted(out):
        array = np.ascontiguousarray(out[key])
        digest.update(f"{key}{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
      digest.update(str(rng.integers(1 << 30)).encode())
  assert digest.hexdigest()[:16] == want


@pytest.mark.parametrize("method", pixels.METHODS)
@pytest.mark.parametrize("size", [(20, 24), (90, 70), (41, 20)])
def test_all_channels_at_once_are_the_planes(method, size):
  x = image()
  planes = [pixels.resized(x[..., c : c + 1], size, method) for c in range(3)]
  np.testing.assert_array_equal(pixels.resized(x, size, method), np.concatenate(planes, -1))


def test_alpha_does_not_weigh():
  x = image(channels=4)
  np.testing.assert_array_equal(run("resize(20)", x)[..., :3], run("resize(20)", x[..., :3]))


# ---------------------------------------------------------------------------------- TensorFlow's


@pytest.mark.parametrize(
  "method, antialias, outputs, want",
  [
    # Two pixels -> four: centres at 1/4, 3/4, 5/4, 7/4.
    ("bilinear", True, 4, [0, 25, 75, 100]),
    ("nearest", True, 4, [0, 0, 100, 100]),
    ("area", True, 4, [0, 0, 100, 100]),
    # Keys: k(1/4) = 0.8671875, k(3/4) = 0.2265625, k(5/4) = -0.0703125, renormalised at the edge.
    ("bicubic", True, 4, [-8.823529, 20.714286, 79.285714, 108.823529]),
  ],
)
def test_two_pixels_by_hand(method, antialias, outputs, want):
  x = np.array([0, 100], np.float32)[None, :, None].repeat(2, 0)
  out = pixels.tf_resized(x, (2, outputs), method, antialias)[0, :, 0]
  np.testing.assert_allclose(out, want, atol=1e-4)


def test_four_pixels_down_by_hand():
  x = np.array([0, 80, 160, 40], np.float32)[None, :, None].repeat(2, 0)
  to = lambda method, antialias: pixels.tf_resized(x, (2, 2), method, antialias)[0, :, 0]
  np.testing.assert_allclose(to("bilinear", False), [40, 100])  # the mean of the two in the middle
  # Weights 1/4, 3/4 (twice) and 1/4, at the centres 1 and 3; the outermost falls off the edge.
  np.testing.assert_allclose(to("bilinear", True), [400 / 7, 680 / 7], rtol=1e-6)
  np.testing.assert_allclose(to("area", True), [40, 100])
  np.testing.assert_allclose(to("nearest", True), [80, 40])
  assert pixels.weights(3, 2, "area", True).tolist() == [
    [np.float32(2 / 3), np.float32(1 / 3), 0],
    [0, np.float32(1 / 3), np.float32(2 / 3)],
  ]


@pytest.mark.parametrize(
  "method, name", [("bilinear", "linear"), ("bicubic", "cubic"), ("lanczos", "lanczos3")]
)
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [(20, 24), (90, 70), (41, 13)])
def test_tf_flavour_is_jax_image_resize(method, name, antialias, size):
  x = image()
  out = run(f"resize{(*size, method)}".replace(")", f", antialias={antialias}, flavour='tf')"), x)
  want = jax.image.resize(x.astype(np.float32), (*size, 3), name, antialias=antialias)
  assert out.dtype == np.uint8
  np.testing.assert_allclose(out, np.clip(want, 0, 255), atol=0.51)
  whole = pixels.tf_resized(x.astype(np.float32), size, method, antialias)
  np.testing.assert_allclose(whole, want, atol=2e-2)


def test_flavours_differ_little_where_both_antialias():
  x = pixels.resized(image() // 2 + 60, (164, 228), "bicubic")  # smooth, never clipped
  for method in ("bilinear", "bicubic", "lanczos"):
    a, b = (
      run(f"resize(60, method='{method}')", x),
      run(f"resize(60, method='{method}', flavour='tf')", x),
    )
    assert np.abs(a.astype(int) - b).max() <= 1


def test_sides():
  x = image(40, 60)
  assert run("resize_small(20)", x).shape == (20, 30, 3)
  assert run("resize_long(30)", x).shape == (20, 30, 3)
  assert run("resize_long(3, flavour='tf')", image(2, 60)).shape == (1, 3, 3)
  assert run("resize(8, flavour='tf', key='image')", x.astype(np.float32)).dtype == np.float32


# --------------------------------------------------------------------------- crops, mirrors, boxes


def jpeg(height, width, **options):
  smooth = pixels.resized(image(9, 12), (height, width), "bicubic")
  out = io.BytesIO()
  Image.fromarray(smooth).save(out, "JPEG", **{"quality": 95, **options})
  return out.getvalue()


@pytest.mark.parametrize("seed", range(8))
def test_fused_crop_is_the_two_ops_where_nothing_is_scaled(seed):
  data = jpeg(60, 80)
  for spec in ("(48, area=(0.3, 1.0))", "(64, 40, method='bicubic')"):
    a = run("decode_random_resized_crop" + spec, data, seed)
    np.testing.assert_array_equal(a, run("decode|random_resized_crop" + spec, data, seed))
    np.testing.assert_array_equal(
      a, run("decode_random_resized_crop" + spec, run("decode", data), seed)
    )


@pytest.mark.parametrize("seed", range(8))
def test_fused_crop_of_a_large_picture_shows_the_same(seed):
  data = jpeg(400, 600)
  a, b = (
    run(f"{op}(32, 40)", data, seed)
    for op in ("decode_random_resized_crop", "decode|random_resized_crop")
  )
  assert a.shape == b.shape
  assert np.abs(a.astype(int) - b).mean() < 4


def test_fused_crop_decodes_at_a_scale(monkeypatch):
  factors, original = [], decoding.decode_jpeg
  monkeypatch.setattr(
    decoding, "decode_jpeg", lambda d, s, f, bottom: factors.append(f) or original(d, s, f, bottom)
  )
  for size in (400, 399, 201, 200, 100, 50, 10):
    run(f"decode_random_resized_crop({size}, area=(1.0, 1.0), ratio=(1.0, 1.0))", jpeg(400, 400))
  assert factors == [1, 1, 1, 2, 4, 8, 8]


@pytest.mark.parametrize(
  "options",
  [
    {},
    dict(subsampling=0),
    dict(subsampling=1),
    dict(progressive=True),
    dict(restart_marker_rows=2),
  ],
)
@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_upper_rows_are_those_of_the_whole(options, factor):
  data = jpeg(200, 131, **options)
  whole = decoding.decode_jpeg(data, (200, 131), factor)
  for bottom in (1, 15, 16, 17, 100, 167, 168, 169, 200):
    part = decoding.decode_jpeg(data, (200, 131), factor, bottom)
    rows = -(-bottom // factor)
    np.testing.assert_array_equal(part[:rows], whole[:rows])
    if bottom < 168 and "progressive" not in options:
      assert len(part) < len(whole)


def test_fused_crop_of_a_png():
  out = io.BytesIO()
  Image.fromarray(image()).save(out, "PNG")
  a = run("decode_random_resized_crop(16)", out.getvalue())
  np.testing.assert_array_equal(a, run("random_resized_crop(16)", image()))


def test_flips():
  x = image()
  np.testing.assert_array_equal(run("flip_ud(1)", x), x[::-1])
  assert run("flip_ud(0)", x) is x
  seen = {tuple(run("flip_lr", x, seed)[0, 0]) for seed in range(20)}
  assert seen == {tuple(x[0, 0]), tuple(x[0, -1])}
  np.testing.assert_array_equal(pixels.mirrored(x), x[:, ::-1])


def test_pad_centered():
  x = image(3, 4)
  out = run("pad(6, 8, value=9, centered=True)", x)
  np.testing.assert_array_equal(out[1:4, 2:6], x)
  assert (out[0] == 9).all() and (out[4:] == 9).all() and (out[:, :2] == 9).all()


@pytest.mark.parametrize(
  "spec, kind",
  [
    ("central_crop(42)", "image too small"),
    ("random_crop(20, 60)", "image too small"),
    ("pad(40, 60)", "image too large for its canvas"),
    ("random_place(50, 50)", "image too large for its canvas"),
  ],
)
def test_images_that_do_not_fit_are_bad(spec, kind):
  with pytest.raises(BadExample) as e:
    run(spec, image())
  assert e.value.kind == kind


def test_normalize_is_standardize():
  np.testing.assert_array_equal(run("normalize", image()), run("standardize", image()))


def test_erased_boxes():
  x = np.full((40, 50, 3), 200, np.uint8)
  shares, shapes = [], []
  for seed in range(200):
    out = run("random_erasing(p=0.5, value=0)", x, seed)
    gone = (out == 0).all(-1)
    shares.append(gone.mean())
    if gone.any():
      rows, columns = np.where(gone.any(1))[0], np.where(gone.any(0))[0]
      h, w = np.ptp(rows) + 1, np.ptp(columns) + 1
      assert gone.sum() == h * w  # one box
      shapes.append(h / w)
  shares = np.array(shares)
  assert 0.35 < (shares > 0).mean() < 0.65
  assert shares[shares > 0].min() > 0.01 and shares.max() < 0.36
  assert 0.2 < min(shapes) < 0.6 and 1.7 < max(shapes) < 4.5
  assert (x == 200).all()
  noise = run("random_erasing(p=1.0)", x)
  assert len(np.unique(noise[(noise != 200).any(-1)])) > 50
  assert run("random_erasing(p=0)", x) is x


@pytest.mark.parametrize(
  "spec, message",
  [
    ("resize(8, method='cubic')", "bicubic"),
    ("resize(8, flavour='torch')", "pil, tf"),
    ("resize(8, antialias=False)", "flavour='tf'"),
    ("resize_long(0)", "positive"),
    ("flip_ud(2)", "0 to 1"),
    ("random_erasing(area=(0.5, 0.1))", "low, high"),
    ("random_erasing(value='noise')", "'random'"),
    ("decode_random_resized_crop(0)", "positive"),
  ],
)
def test_mistakes(spec, message):
  with pytest.raises(UserError, match=message):
    ops.build(spec)
