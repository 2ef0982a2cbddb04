import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_mesh

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


# ------------------------------------------------------------------------------- attention, tokens


def unrolled(params):
  """The two blocks of a scanned encoder, by name."""
  block = lambda i: jax.tree.map(lambda x: x[i], params["encoder"]["blocks"])
  return {"block_0": block(0), "block_1": block(1)}


def by_hand(model, params, image):
  """softmax(q k^T / sqrt d) of the last of two blocks from its parameters: [B, heads, N, N]."""
  shorter = model.clone(depth=1, scan=False, pool="none", num_classes=None)
  blocks = unrolled(params)
  # The tokens before the last block: those after it without its final norm, one block less.
  one = {"norm": params["encoder"]["norm"], "block_0": blocks["block_0"]}
  tower = {k: v for k, v in params.items() if k not in ("encoder", "pool", "head")}
  if "cls" in params:
    shorter = shorter.clone(pool="cls")
  _, state = shorter.apply(
    {"params": {**tower, "encoder": one}}, image, capture_intermediates=True, mutable=True
  )
  x = state["intermediates"]["encoder"]["block_0"]["__call__"][0][0]
  last = blocks["block_1"]
  mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
  y = (x - mean) / jnp.sqrt(var + 1e-6) * last["ln1"]["scale"] + last["ln1"]["bias"]
  heads = lambda w: (y @ w["kernel"] + w["bias"]).reshape(*y.shape[:2], 2, 16).swapaxes(1, 2)
  q, k = heads(last["attn"]["query"]), heads(last["attn"]["key"])
  return jax.nn.softmax(q @ k.swapaxes(2, 3) / 4.0)


@pytest.mark.parametrize("pool, registers", [("cls", 0), ("cls", 2), ("gap", 0)])
def test_attention_of_the_last_block(pool, registers):
  model = tiny(pool=pool, registers=registers, pos_embed="sincos2d")
  params = jax.tree.map(lambda x: x * 1.5, init(model))
  count = registers + (pool == "cls")
  found = jax.jit(lambda p, x: vit.attention(model, p, x))(params, IMAGE)
  assert found.shape == (2, 2, 2, 3) and found.dtype == jnp.float32
  with jax.numpy_rank_promotion("allow"):
    weights = by_hand(model, params, IMAGE)
  expected = weights[:, :, 0] if pool == "cls" else weights.mean(2)
  np.testing.assert_allclose(found.reshape(2, 2, 6), expected[:, :, count:], atol=1e-5)
  assert float(np.ptp(expected)) > 0.02  # attention is no constant
  flat = {**params, "encoder": {"norm": params["encoder"]["norm"], **unrolled(params)}}
  same = vit.attention(model.clone(scan=False, remat="full"), flat, IMAGE)
  np.testing.assert_allclose(same, found, atol=1e-6)


@pytest.mark.parametrize("pool", ["cls", "map"])
def test_attention_where_tokens_are_split(pool):
  """7 or 6 tokens on 4 devices are padded: the padding is not seen."""
  model = tiny(pool=pool, pos_embed="sincos2d")
  params = init(model)
  fn = lambda p, x: vit.attention(model, p, x)
  one = jax.jit(fn)(params, IMAGE)
  with jax.set_mesh(make_mesh(fsdp=2, sequence=4)):
    split = jax.jit(fn)(params, IMAGE)
  np.testing.assert_allclose(split, one, atol=1e-6)


def test_attention_of_the_pooling_probe():
  model = tiny(pool="map")
  params = init(model)
  found = vit.attention(model, params, IMAGE)
  assert found.shape == (2, 2, 2, 3)
  np.testing.assert_allclose(found.sum((2, 3)), 1.0, atol=1e-6)
  pool, x = params["pool"], model.apply({"params": params}, IMAGE)[1]["tokens"]
  flat = lambda x, w: x @ w["kernel"] + w["bias"][(None,) * (x.ndim - 1)]
  q = flat(pool["probe"][0], pool["attn"]["query"]).reshape(2, 16)
  k = flat(x, pool["attn"]["key"]).reshape(2, 6, 2, 16)
  expected = jax.nn.softmax(jnp.einsum("Hd,BNHd->BHN", q, k) / 4.0)
  np.testing.assert_allclose(found.reshape(2, 2, 6), expected, atol=1e-5)


def test_what_is_seen_costs_nothing_and_is_no_parameter():
  model = tiny(pool="map")
  assert init(model).keys() == {"patch_embed", "pos_embed", "encoder", "pool"}
  params = init(model)
  _, out = model.apply({"params": params}, IMAGE, mutable=["intermediates"])
  text = str(jax.make_jaxpr(lambda p: model.apply({"params": p}, IMAGE, train=True))(params))
  assert "intermediates" in out and "2,2,6,2,16" not in text  # no stack of queries over depth


def test_tokens_lie_as_the_patches_do():
  model = tiny(pool="cls")
  params = init(model)
  tokens = vit.image_tokens(model, params, IMAGE)
  assert tokens.shape == (2, 2, 3, 32)
  flat = model.apply({"params": params}, IMAGE)[1]["tokens"]
  np.testing.assert_array_equal(tokens[:, 1, 2], flat[:, 5])


def test_predict_of_other_backbones_is_empty():
  assert vit.predict(jax, lambda p, a: p) == {}
