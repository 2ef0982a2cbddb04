"""Batched augmentation against PIL, colorsys and NumPy; labels follow pixels."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_like import augment, photometric
from big_vision_like.config import UserError
from big_vision_like.input import ops, recolor

RNG = jax.random.key(0)


def images(*shape, seed=0):
  return np.random.default_rng(seed).random(shape, np.float32)


def run(spec, **batch):
  return augment.build(spec, "config.augment")(RNG, {k: jnp.asarray(v) for k, v in batch.items()})


def test_hue_turns_as_colorsys_does():
  x = images(4, 3, 3, 3)
  turns = np.array([0.1, -0.3, 0.5, 0.0], np.float32)
  out = np.asarray(photometric.hue(jnp.asarray(x), turns[:, None, None, None]))
  for i, row in enumerate(x):
    for at in np.ndindex(3, 3):
      h, s, v = colorsys.rgb_to_hsv(*row[at].astype(float))
      want = colorsys.hsv_to_rgb((h + turns[i]) % 1, s, v)
      np.testing.assert_allclose(out[i][at], want, atol=1e-5)


def test_blur_is_the_gaussian_of_scipy():
  from scipy.ndimage import convolve1d

  x = images(2, 12, 9, 1)
  out = run("gaussian_blur(p=1.0, sigma=(1.5, 1.5), size=5)", image=x)["image"]
  taps = np.exp(-0.5 * (np.arange(-2, 3) / 1.5) ** 2)
  taps /= taps.sum()
  want = convolve1d(convolve1d(x, taps, axis=1, mode="mirror"), taps, axis=2, mode="mirror")
  np.testing.assert_allclose(out, want, atol=1e-6)


def test_every_image_draws_its_own_numbers_and_stays_in_range():
  x = np.repeat(images(1, 8, 8, 3), 64, 0)
  spec = "color_jitter(p=1.0)|grayscale(p=0.5)|solarize(p=0.5)"
  out = np.asarray(run(spec, image=x)["image"])
  assert len(np.unique(out.reshape(64, -1).round(4), axis=0)) == 64
  assert out.min() >= 0 and out.max() <= 1
  gray = np.ptp(out, axis=-1).max(axis=(1, 2)) < 1e-6
  assert 0.25 < gray.mean() < 0.75


def test_one_probability_for_each_view():
  x = images(5, 2, 4, 4, 3)
  out = np.asarray(run("solarize(p=(1.0, 0.0), key='global')", **{"global": x})["global"])
  np.testing.assert_array_equal(out[:, 1], x[:, 1])
  np.testing.assert_allclose(out[:, 0], np.where(x[:, 0] >= 0.5, 1 - x[:, 0], x[:, 0]))


def pictures(n=4, height=24, width=20, seed=0):
  """Half of them smooth, one constant."""
  out = np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), np.uint8)
  out[1] = np.clip(out[1] // 4 + np.arange(width)[None, :, None] * 6, 0, 255)
  out[2] = out[1] // 3 + 40
  out[-1] = 77
  return out


SHARED = [
  ("gray", ()),
  ("brightness", (0.3,)),
  ("brightness", (1.7,)),
  ("contrast", (0.2,)),
  ("contrast", (1.9,)),
  ("saturation", (0.0,)),
  ("saturation", (1.6,)),
  ("jitter", ((1.3, 0.6, 1.5, 0.1),)),
  ("jitter", ((0.7, 1.6, None, -0.4), (3, 1, 0, 2))),
  ("invert", ()),
  ("solarize", (0.5,)),
  ("solarize", (0.3,)),
  *[("posterize", (bits,)) for bits in (1, 3, 8)],
  ("autocontrast", ()),
  ("sharpness", (0.0,)),
  ("sharpness", (1.9,)),
  ("blur", (0.1, 2)),
  ("blur", (1.1, 3)),
  ("blur", (2.0, 12)),
  ("blur", (4.0, 30)),
]


@pytest.mark.parametrize("name, args", SHARED, ids=[f"{n}{a}" for n, a in SHARED])
def test_accelerator_and_host_agree(name, args):
  x = pictures()
  host = np.stack([getattr(recolor, name)(image, *args) for image in x])
  given = (np.full((4, 1), args[0], np.float32), args[1]) if name == "blur" else args
  device = getattr(photometric, name)(jnp.asarray(x / np.float32(255)), *given)
  np.testing.assert_allclose(host / 255, device, atol=1 / 255)


@pytest.mark.parametrize(
  "spec", ["grayscale", "solarize", "posterize(3)", "invert", "equalize", "autocontrast"]
)
def test_specs_without_draws_mean_the_same_on_both_sides(spec):
  spec = spec.replace(")", ", p=1.0)") if ")" in spec else f"{spec}(p=1.0)"
  x = pictures()
  host = ops.build(spec)
  want = np.stack([host({"image": image}, None)["image"] for image in x])
  np.testing.assert_allclose(run(spec, image=x)["image"] * 255, want, atol=1)


@pytest.mark.parametrize("spec", ["sharpness((1.6, 1.6))", "gaussian_blur(1.0, (1.5, 1.5))"])
def test_specs_with_one_strength_mean_the_same_on_both_sides(spec):
  x = pictures()
  want = np.stack([ops.build(spec)({"image": i}, np.random.default_rng(0))["image"] for i in x])
  np.testing.assert_allclose(run(spec, image=x)["image"] * 255, want, atol=1)


def test_every_op_under_jit_on_views():
  x = np.stack([pictures(), pictures(seed=1)], 1)
  names = [name for name in augment.OPS if name not in ("mixup", "cutmix")]
  out = jax.jit(augment.build("|".join(names), "config.augment"))(RNG, {"image": jnp.asarray(x)})
  assert out["image"].shape == x.shape and np.isfinite(out["image"]).all()


def test_uint8_is_scaled_once():
  x = (images(2, 4, 4, 3) * 255).astype(np.uint8)
  out = run("solarize(p=0.0)|normalize(0.5, 0.5)", image=x)["image"]
  np.testing.assert_allclose(out, x / 127.5 - 1, atol=1e-6)


def test_mixup_mixes_labels_as_pixels():
  x, label = images(4, 2, 2, 1), np.arange(4)
  out = run("mixup(0.8, classes=4)", image=x, label=label)
  lam = float(out["label"][0, 0])
  assert 0 < lam < 1
  np.testing.assert_allclose(out["image"], lam * x + (1 - lam) * np.roll(x, 1, 0), atol=1e-6)
  np.testing.assert_allclose(out["label"].sum(1), 1, atol=1e-6)
  np.testing.assert_allclose(out["label"][0, 3], 1 - lam, atol=1e-6)


def test_cutmix_labels_are_areas():
  x = np.broadcast_to(np.arange(4, dtype=np.float32)[:, None, None, None], (4, 16, 16, 1))
  out = run("cutmix(1.0, classes=4)", image=x, label=np.arange(4))
  for i in range(4):
    own = (np.asarray(out["image"][i]) == i).mean()
    np.testing.assert_allclose(out["label"][i, i], own, atol=1e-6)
  assert 0 < float(out["label"][0, 0]) < 1


@pytest.mark.parametrize(
  "spec, message",
  [
    ("solarise()", "solarize"),
    ("grayscale(q=1)", "'q'"),
    ("grayscale(p=2)", "0 to 1"),
    ("grayscale(key='views')", "not in the batch"),
    ("mixup(0.2)", "how many classes"),
    ("posterize(9)", "1 to 8"),
    ("sharpness((2, 1))", "low <= high"),
  ],
)
def test_mistakes(spec, message):
  with pytest.raises(UserError, match=message):
    run(spec, image=images(2, 4, 4, 3), label=np.arange(2))
