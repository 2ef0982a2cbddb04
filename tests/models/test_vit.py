import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_like import tree
from big_vision_like.config import UserError
from big_vision_like.layers.pos_embed import resample_pos_embed
from big_vision_like.models import vit

IMAGE = np.random.default_rng(0).normal(size=(2, 16, 24, 3)).astype(np.float32)


def tiny(**kwargs):
  return vit.make("mu/8", **{"image_size": (16, 24), **kwargs})


def init(model, image=IMAGE):
  return jax.jit(model.init)(jax.random.key(0), image)["params"]


def shapes(model, size=224):
  image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), image)["params"]


@pytest.mark.parametrize(
  "variant, published",
  [
    ("Ti/16", 5_717_416),  # DeiT
    ("S/16", 22_050_664),
    ("B/16", 86_567_656),  # Dosovitskiy et al. 2021, as torchvision counts them
    ("L/16", 304_326_632),
    ("H/14", 632_045_800),
  ],
)
def test_published_parameter_counts_of_classifiers(variant, published):
  """Class token, 1000 classes. There the class token has a position, which is D parameters more."""
  model = vit.make(variant, pool="cls", num_classes=1000)
  assert tree.num_params(shapes(model)) + model.width == published


@pytest.mark.parametrize(
  "variant, kwargs, count",
  [
    ("B/16", dict(pool="cls"), 85_797_888),  # 86M
    ("B/16", dict(pool="map"), 92_884_224),  # SigLIP's image towers, exactly
    ("So400m/14", dict(pool="map", image_size=378), 428_225_600),
    ("g/14", dict(pool="gap"), 1_011_199_616),  # Zhai et al. 2022, Table 2: 1011M
    ("G/14", dict(pool="gap"), 1_842_772_352),  # 1843M
  ],
)
def test_published_parameter_counts_of_backbones(variant, kwargs, count):
  size = kwargs.get("image_size", 224)
  assert tree.num_params(shapes(vit.make(variant, **kwargs), size)) == count


def test_scan_does_not_change_the_count():
  a, b = (tree.num_params(shapes(vit.make("mu/16", scan=s))) for s in (True, False))
  assert a == b


@pytest.mark.parametrize("pool", vit.POOLS)
def test_outputs_and_intermediates(pool):
  model = tiny(pool=pool, registers=3, num_classes=None if pool == "none" else 5)
  x = jax.ShapeDtypeStruct(IMAGE.shape, jnp.float32)
  params = jax.eval_shape(model.init, jax.random.key(0), x)
  y, out = jax.eval_shape(model.apply, params, x)
  assert out["tokens"].shape == (2, 6, 32)
  assert out["prefix"].shape == (2, 3 + pool.startswith("cls"), 32)
  if pool == "none":
    assert y.shape == (2, 6, 32) and "pooled" not in out
  else:
    assert y.shape == out["logits"].shape == (2, 5)
    assert out["pooled"].shape == (2, 64 if pool == "cls_gap" else 32)
  assert params["params"]["pos_embed"].shape == (6, 32)


def test_another_resolution_resamples_the_learned_table():
  """A model on 24 x 32 equals the model made for it, given the resampled table."""
  params = init(tiny())
  image = np.random.default_rng(1).normal(size=(2, 24, 32, 3)).astype(np.float32)
  other = params | {"pos_embed": resample_pos_embed(params["pos_embed"], (2, 3), (3, 4))}
  a, out = jax.jit(tiny().apply)({"params": params}, image)
  b, _ = jax.jit(tiny(image_size=(24, 32)).apply)({"params": other}, image)
  assert out["tokens"].shape == (2, 12, 32)
  np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(
  "pos_embed, moves",
  [
    ("learn", 1),
    ("sincos2d", 1),
    ("sincos2d_moco", 1),
    ("rope", 1),
    ("rope_centred", 1),
    ("none", 0),
  ],
)
def test_positions_are_seen(pos_embed, moves):
  """Swapping two patches changes the mean over patches, except without positions."""
  model = tiny(pos_embed=pos_embed, patch_size=(8, 12))  # a grid of 2 x 2, patches not square
  params = init(model)
  swapped = np.concatenate([IMAGE[:, :, 12:], IMAGE[:, :, :12]], axis=2)
  swapped[:, 8:] = IMAGE[:, 8:]
  apply = jax.jit(lambda x: model.apply({"params": params}, x)[0])
  change = np.abs(apply(swapped) - apply(IMAGE)).max()
  assert change > 1e-3 if moves else change < 1e-5
  assert ("pos_embed" in params) == (pos_embed == "learn")


KEEP = np.array([[4, 0, 3], [1, 5, 2]], np.int32)


@pytest.mark.parametrize("pos_embed", ["learn", "sincos2d_moco"])
def test_keep_of_every_patch_is_the_whole_image_in_another_order(pos_embed):
  model = tiny(pos_embed=pos_embed, pool="cls", registers=2)
  params = init(model)
  order = np.stack([np.random.default_rng(i).permutation(6) for i in range(2)]).astype(np.int32)
  pooled, out = jax.jit(model.apply)({"params": params}, IMAGE)
  kept_pooled, kept = jax.jit(model.apply)({"params": params}, IMAGE, keep=order)
  tokens = np.take_along_axis(np.asarray(out["tokens"]), order[:, :, None], axis=1)
  np.testing.assert_allclose(kept["tokens"], tokens, atol=1e-5)
  np.testing.assert_allclose(kept_pooled, pooled, atol=1e-5)
  np.testing.assert_allclose(kept["prefix"], out["prefix"], atol=1e-5)


def test_patches_that_are_not_kept_are_not_seen():
  model = tiny(pool="cls")
  apply = jax.jit(lambda x: model.apply({"params": params}, x, keep=KEEP)[1])
  params = init(model)
  out = apply(IMAGE)
  assert out["tokens"].shape == (2, 3, 32) and out["prefix"].shape == (2, 1, 32)
  other = IMAGE.copy()
  other[0, :8, 8:] = 7.0  # patches 1 and 2 of the first example
  jax.tree.map(np.testing.assert_array_equal, apply(other), out)
  other[1, 8:, 16:] = 7.0  # patch 5 of the second
  changed = np.abs(np.asarray(apply(other)["tokens"] - out["tokens"])).max(axis=(1, 2))
  assert changed[0] == 0 and changed[1] > 1e-3


@pytest.mark.parametrize("pos_embed", ["rope", "rope_centred"])
def test_keep_does_not_go_with_rope(pos_embed):
  with pytest.raises(UserError, match="'rope' cannot leave patches out; use sincos2d"):
    jax.eval_shape(tiny(pos_embed=pos_embed).init, jax.random.key(0), IMAGE, keep=KEEP)


def test_masked_patches_are_not_seen():
  model = tiny(pool="cls", mask_token=True)
  params, mask = init(model), np.zeros((2, 6), bool)
  mask[0, [1, 2]] = True
  apply = jax.jit(lambda x, mask: model.apply({"params": params}, x, mask=mask)[0])
  other = IMAGE.copy()
  other[0, :8, 8:] = 7.0  # patches 1 and 2 of the first example
  np.testing.assert_array_equal(apply(other, mask), apply(IMAGE, mask))
  assert np.abs(apply(IMAGE, ~mask) - apply(IMAGE, mask)).max() > 1e-3
  plain = apply(IMAGE, np.zeros((2, 6), bool))
  np.testing.assert_allclose(jax.jit(model.apply)({"params": params}, IMAGE)[0], plain, atol=1e-6)
  with pytest.raises(UserError, match="no mask token; write mask_token = True"):
    jax.eval_shape(tiny().init, jax.random.key(0), IMAGE, mask=mask)


def test_distillation_token():
  """Logits are the mean of the two heads; the one of the distillation token sees its own token."""
  model = tiny(pool="cls", cls_pos=True, dist_token=True, dist_head=True, num_classes=5)
  params = init(model)
  assert {"cls", "cls_pos", "dist", "dist_pos", "head", "head_dist"} <= params.keys()
  logits, out = jax.jit(model.apply)({"params": params}, IMAGE)
  heads = [
    out["prefix"][:, i] @ params[name]["kernel"] + params[name]["bias"][None]
    for i, name in enumerate(("head", "head_dist"))
  ]
  np.testing.assert_allclose(out["logits_dist"], heads[1], atol=1e-6)
  np.testing.assert_allclose(logits, (heads[0] + heads[1]) / 2, atol=1e-6)


def test_bfloat16_computes_near_float32_with_float32_parameters():
  kwargs = dict(pool="map", registers=1, num_classes=4, pos_embed="rope")
  params = init(tiny(**kwargs, dtype="bfloat16"))
  assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype("float32")}
  y, out = jax.jit(tiny(**kwargs, dtype="bfloat16").apply)({"params": params}, IMAGE)
  want, _ = jax.jit(tiny(**kwargs).apply)({"params": params}, IMAGE)
  assert y.dtype == out["tokens"].dtype == jnp.bfloat16
  assert np.isfinite(np.asarray(y, np.float32)).all()
  np.testing.assert_allclose(np.asarray(y, np.float32), want, atol=0.05 * np.abs(want).max())


def test_initial_values():
  model = tiny(pool="cls", pos_embed="learn", image_size=256)
  params = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 256, 256, 3), np.float32))["params"]
  assert abs(params["pos_embed"].std() * 32**0.5 - 1) < 0.05  # normal(1 / sqrt(D))
  assert not params["cls"].any()
  bias = params["encoder"]["blocks"]["mlp"]["up"]["bias"]
  assert 0 < np.abs(bias).max() < 1e-5


def test_cuts_of_images():
  x = jax.ShapeDtypeStruct((1, 20, 24, 3), jnp.float32)
  with pytest.raises(
    UserError, match=r"image 20 x 24 is not a multiple of the patch 8 x 8.*16 x 24"
  ):
    jax.eval_shape(tiny().init, jax.random.key(0), x)


@pytest.mark.parametrize(
  "args, kwargs, message",
  [
    (["X/16"], {}, "variant 'X' is unknown; known: B, G"),
    (["So40m/14"], {}, "did you mean So400m"),
    (["B/x"], {}, "patch is not a number; write 'B/16'"),
    (["mu"], dict(pool="mapp"), "pool 'mapp' is unknown; did you mean map"),
    (["mu"], dict(pos_embed="sincos"), "did you mean sincos2d"),
    (["mu"], dict(pos_resample="cubic"), "pos_resample 'cubic' is unknown; did you mean bicubic"),
    (["mu"], dict(dist_token=True), "dist_token needs a class token; pool = 'gap'"),
    (["mu"], dict(pool="cls", dist_head=True), "dist_head needs dist_token = True"),
    (["mu"], dict(remat="ful"), "remat 'ful' is unknown; did you mean full"),
    (["mu"], dict(gelu="erf"), "gelu 'erf' is unknown; known: exact, quick, silu, tanh"),
    (["mu"], dict(dtype="bf16"), "dtype 'bf16' is unknown; did you mean"),
    (["mu"], dict(num_heads=3), "width 32 is not a multiple of 3 heads"),
    (["mu/16"], dict(image_size=100), "image 100 x 100 is not a multiple of the patch 16 x 16"),
    (["mu"], dict(depht=3), "key 'depht' is unknown; did you mean depth"),
    ([], dict(width=32), "missing a required argument: 'depth'"),
  ],
)
def test_mistakes_are_named_before_any_trace(args, kwargs, message):
  with pytest.raises(UserError, match=message):
    vit.make(*args, **kwargs)


def test_variants_and_patches():
  assert vit.make("B/16").patch_size == (16, 16)
  assert vit.make("So400m/14").width == 1152
  assert vit.make("B", patch_size=(8, 16)).patch_size == (8, 16)
  assert vit.make("B/16", patch_size=32, depth=3).patch_size == (32, 32)
  assert vit.make("B/16", depth=3).depth == 3
