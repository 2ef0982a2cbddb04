"""Colour ops and policies against PIL, colorsys and SciPy; what they draw, and from what."""

import colorsys

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from big_vision_like.config import UserError
from big_vision_like.input import ops, recolor
from big_vision_like.input.ops import policies


def image(height=37, width=41, channels=3, seed=0):
  """Smooth, with a little noise, not over the full range."""
  rng = np.random.default_rng(seed)
  coarse = Image.fromarray(rng.integers(20, 230, (5, 6, 3), np.uint8))
  smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
  out = np.clip(smooth + rng.integers(-6, 7, smooth.shape), 3, 240).astype(np.uint8)
  return out[..., :channels]


def run(spec, x, seed=0, key="image"):
  return ops.build(spec)({key: x}, np.random.default_rng(seed))[key]


def close(a, b, atol):
  np.testing.assert_allclose(a.astype(int), np.asarray(b).astype(int), atol=atol)


class Never:
  """A generator that must not be asked."""

  def __getattr__(self, name):
    raise AssertionError(f"drew {name}")


@pytest.mark.parametrize("factor", [0.0, 0.1, 0.6, 1.0, 1.4, 1.9])
def test_enhancements_are_pils(factor):
  x, photo = image(), Image.fromarray(image())
  close(recolor.brightness(x, factor), ImageEnhance.Brightness(photo).enhance(factor), 1)
  close(recolor.contrast(x, factor), ImageEnhance.Contrast(photo).enhance(factor), 1)
  close(recolor.saturation(x, factor), ImageEnhance.Color(photo).enhance(factor), 1)
  close(recolor.sharpness(x, factor), ImageEnhance.Sharpness(photo).enhance(factor), 2)


def test_tables_are_pils():
  x, photo = image(), Image.fromarray(image())
  close(recolor.gray(x)[..., 0], photo.convert("L"), 1)
  close(recolor.invert(x), ImageOps.invert(photo), 0)
  close(recolor.equalize(x), ImageOps.equalize(photo), 0)
  close(recolor.autocontrast(x), ImageOps.autocontrast(photo), 1)  # PIL cuts, here it is rounded
  for bits in range(1, 9):
    close(recolor.posterize(x, bits), ImageOps.posterize(photo, bits), 0)
  close(recolor.solarize(x, 0.5), ImageOps.solarize(photo, 128), 0)


@pytest.mark.parametrize("channels", [1, 3])
def test_degenerate_histograms(channels):
  for x in (np.full((8, 8, channels), 9, np.uint8), image(2, 3, channels)):
    for op in ("equalize", "autocontrast"):
      photo = Image.fromarray(x[..., 0])
      close(getattr(recolor, op)(x)[..., 0], getattr(ImageOps, op)(photo), 1)


def test_hue_is_colorsys():
  x = image(4, 5)
  for turns in (-0.5, -0.1, 0.25, 0.5):
    out = recolor.jitter(x, (None, None, None, turns))
    for at in np.ndindex(4, 5):
      h, s, v = colorsys.rgb_to_hsv(*(x[at] / 255))
      close(out[at], np.rint(np.array(colorsys.hsv_to_rgb((h + turns) % 1, s, v)) * 255), 1)


def test_jitter_is_its_parts_in_order():
  x = image()
  for order in ((0, 1, 2, 3), (2, 0, 3, 1)):
    steps = x
    for i in order[:2]:
      factors = [None] * 4
      factors[i] = (1.2, 0.8, 1.3, 0.05)[i]
      steps = recolor.jitter(steps, factors)
    both = [(1.2, 0.8, 1.3, 0.05)[i] if i in order[:2] else None for i in range(4)]
    close(recolor.jitter(x, both, order), steps, 2)  # rounded once instead of twice
  a, b = (recolor.jitter(x, (1.6, 0.5, 1.9, 0.2), o) for o in ((0, 1, 2, 3), (3, 2, 1, 0)))
  assert np.abs(a.astype(int) - b).max() > 5


def test_jitter_draws_strengths_and_orders():
  x = np.full((4, 4, 3), 100, np.uint8)
  seen = np.array([run("color_jitter(0.4, 0, 0, 0, p=1)", x, s)[0, 0, 0] for s in range(100)])
  assert 60 <= seen.min() < 66 and 134 < seen.max() <= 140
  assert run("color_jitter(2.0, 0, 0, 0, p=1)", x, 1).dtype == np.uint8
  changed = np.mean([(run("color_jitter", image(), s) != image()).any() for s in range(100)])
  assert 0.68 < changed < 0.92


@pytest.mark.parametrize("sigma, size", [(0.1, 5), (0.8, 7), (2.0, 23), (1.0, None)])
def test_blur_is_scipys(sigma, size):
  from scipy.ndimage import convolve1d

  x = image()
  radius = (size or 3) // 2
  taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
  taps /= taps.sum()
  want = convolve1d(convolve1d(x.astype(float), taps, 0, mode="mirror"), taps, 1, mode="mirror")
  spec = f"gaussian_blur(p=1, sigma=({sigma}, {sigma}), size={size})"
  np.testing.assert_allclose(run(spec, x), want, atol=0.51)


@pytest.mark.parametrize(
  "spec",
  [
    "color_jitter(p=0)",
    "grayscale(p=0)",
    "solarize(p=0)",
    "equalize",
    "posterize(3)",
    "autocontrast",
  ],
)
def test_nothing_is_drawn_where_nothing_is_random(spec):
  ops.build(spec)({"image": image()}, Never())


def test_views_have_their_own_chances_and_draws():
  x = np.stack([image()] * 3)
  out = run("solarize(p=(1.0, 0.0, 1.0), threshold=0.4, key='global')", x, key="global")
  np.testing.assert_array_equal(out[1], x[1])
  assert (out[0] != x[0]).any()
  out = run("color_jitter(p=1.0, key='global')", x, key="global")
  assert (out[0] != out[1]).any()
  spec = "multi_crop(16, 8, num_local=2)|gaussian_blur((1.0, 0.1), key='global')"
  spec += "|grayscale(1.0, key='local')"
  views = ops.build(spec)({"image": image()}, np.random.default_rng(0))
  assert views["global"].shape == (2, 16, 16, 3)
  assert (np.ptp(views["local"], axis=-1) == 0).all()


def test_one_channel():
  for spec in (
    "color_jitter(p=1)",
    "grayscale(p=1.0)",
    "equalize",
    "sharpness",
    "gaussian_blur(p=1)",
  ):
    assert run(spec, image(channels=1)).shape == (37, 41, 1)
  for seed in range(30):
    assert run("randaugment(3)|trivial_augment|autoaugment", image(channels=1), seed).shape[-1] == 1


# ---------------------------------------------------------------------------------------- policies


def test_moves_are_pils():
  x, photo = image(40, 40), Image.fromarray(image(40, 40))
  gray = (128, 128, 128)
  close(policies._apply(x, "rotate", 20, 128), photo.rotate(20, fillcolor=gray), 0)
  out = policies._apply(x, "translate_x", 0.25, 128)
  np.testing.assert_array_equal(out[:, :30], x[:, 10:])
  assert (out[:, 30:] == 128).all()
  out = policies._apply(x, "translate_y", -0.25, 7)
  np.testing.assert_array_equal(out[10:], x[:-10])
  assert (out[:10] == 7).all()
  out = policies._apply(x, "shear_x", 0.5, 128)  # row y moves left by y / 2
  np.testing.assert_array_equal(out[20, :30], x[20, 10:])
  out = policies._apply(x, "shear_y", -0.5, 128)  # column x moves down by x / 2
  np.testing.assert_array_equal(out[10:, 20], x[:30, 20])


@pytest.mark.parametrize("kind", policies.KINDS)
def test_levels_reach_from_nothing_to_the_end_of_the_range(kind):
  x = image()
  low, high = policies.RANGES.get(kind, (0, 0))
  strength = lambda level: abs(
    policies._strength(kind, level, policies.RANGES, np.random.default_rng(0))
  )
  assert strength(0) == low and strength(1) == high
  weak = policies._apply(x, kind, low, 128)
  if kind in policies.SIGNED or kind in ("identity", "solarize", "posterize"):
    np.testing.assert_array_equal(weak, x)
  if kind != "identity":
    assert (policies._apply(x, kind, high, 128) != x).any()


def test_both_directions():
  signs = [
    policies._strength("rotate", 1, policies.RANGES, np.random.default_rng(s)) for s in range(20)
  ]
  assert set(signs) == {-30.0, 30.0}


def test_the_policy_of_imagenet():
  rows = policies._parsed(policies.IMAGENET)
  assert len(rows) == 25 and all(len(row) == 2 for row in rows)
  assert {kind for row in rows for kind, _, _ in row} <= {*policies.KINDS, "invert"}
  assert all(0 <= p <= 1 and 0 <= level <= 1 for row in rows for _, p, level in row)
  assert rows[0] == [("posterize", 0.4, 8 / 9), ("rotate", 0.6, 1.0)]


@pytest.mark.parametrize(
  "spec", ["randaugment", "randaugment(3, 20, 30)", "autoaugment", "trivial_augment"]
)
def test_policies_are_random_and_repeatable(spec):
  x = image()
  before = x.copy()
  outs = [run(spec, x, seed) for seed in range(60)]
  assert all(o.dtype == np.uint8 and o.shape == x.shape for o in outs)
  assert len({o.tobytes() for o in outs}) > 15
  np.testing.assert_array_equal(outs[7], run(spec, x, 7))
  np.testing.assert_array_equal(x, before)


def test_randaugment_draws_every_op(monkeypatch):
  seen = []
  monkeypatch.setattr(policies, "_apply", lambda x, kind, *_: seen.append(kind) or x)
  for seed in range(100):
    run("randaugment(2)", image(), seed)
  assert set(seen) == set(policies.KINDS) and len(seen) == 200
  assert len(policies.KINDS) == 14
  assert run("randaugment(0)", image()).shape == (37, 41, 3)


@pytest.mark.parametrize(
  "spec, message",
  [
    ("color_jitter(-1)", ">= 0"),
    ("color_jitter(hue=0.7)", "0.5"),
    ("grayscale(2)", "0 to 1"),
    ("gaussian_blur(sigma=(2, 1))", "low, high"),
    ("gaussian_blur(size=0)", "positive"),
    ("posterize(9)", "1 to 8"),
    ("sharpness((2, 1))", "low, high"),
    ("randaugment(2, 11)", "0 to max_level"),
    ("randaugment(fill=300)", "0 to 255"),
    ("value_range|solarize(1.0)", "before value_range"),
    ("solarize((1.0, 0.0))", "each view"),
    ("value_range|randaugment", "before value_range"),
  ],
)
def test_mistakes(spec, message):
  with pytest.raises(UserError, match=message):
    run(spec, image())
