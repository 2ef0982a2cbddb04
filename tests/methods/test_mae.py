"""MAE's loss against the paper's equation in NumPy, and what is special: only visible patches."""

import jax
import numpy as np
import pytest

from big_vision_like.config import UserError, wrap
from big_vision_like.layers.masking import Masking, by_noise
from big_vision_like.methods import mae
from big_vision_like.models import mae_decoder, vit

IMAGE = np.random.default_rng(0).normal(size=(6, 16, 24, 3)).astype(np.float32)  # 4 x 6 patches
BATCH = {"image": IMAGE, "index": np.arange(6)}
RNG = jax.random.key(3)
MODEL = dict(variant="mu/4", pool="cls", pos_embed="sincos2d_moco", gelu="exact", scan=False)
DECODER = dict(width=16, depth=1, num_heads=2, mlp_dim=32, scan=False)
CONFIG = dict(model=MODEL, decoder=DECODER, embed="cls")


def make(**kwargs):
  config = CONFIG | kwargs
  return mae.make(wrap(config | {"loss": dict(mask_ratio=0.75, norm_pix=True) | config["loss"]}))


@pytest.fixture(scope="module")
def params():
  """Moved away from the start, where biases are zero and norms one."""
  params, aux = jax.jit(make(loss={}).init)(jax.random.key(0), BATCH)
  assert aux == {} and params.keys() == {"encoder", "decoder"}
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), params)


def patches(image):
  """[B, 16, 24, c] -> [B, 24, 16 c], loop by loop."""
  cut = lambda x: [
    x[r : r + 4, c : c + 4].ravel() for r in range(0, 16, 4) for c in range(0, 24, 4)
  ]
  return np.stack([cut(x) for x in np.asarray(image, np.float64)])


@pytest.mark.parametrize("norm_pix", [True, False])
def test_loss_is_the_papers_equation(params, norm_pix):
  """Predictions are read off the reconstruction, and the error taken over its hidden patches."""
  method = make(loss=dict(norm_pix=norm_pix))
  value, (_, metrics) = jax.jit(method.loss)(params, {}, BATCH, RNG, 0)
  out = jax.jit(method.predict["reconstruct"])(params, {}, BATCH, RNG)
  x, pred, hidden = patches(IMAGE), patches(out["image"]), patches(out["mask"])
  np.testing.assert_array_equal(hidden, hidden[:, :, :1].repeat(16, 2))  # whole patches
  hidden = hidden[:, :, 0] > 0
  if norm_pix:
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True, ddof=1)
    x, pred = ((v - mean) / np.sqrt(var + 1e-6) for v in (x, pred))
  expected = np.mean([np.mean((pred[b, i] - x[b, i]) ** 2) for b, i in np.argwhere(hidden)])
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  each = jax.jit(method.predict["loss_per_example"])(params, {}, BATCH, RNG)
  assert each.shape == (6,) and metrics == {}
  np.testing.assert_allclose(np.mean(each), value, rtol=1e-6)


def test_hidden_patches_are_not_seen(params):
  """Nor by the decoder: new pixels under the mask change no prediction."""
  method = make(loss=dict(norm_pix=False))
  reconstruct = jax.jit(method.predict["reconstruct"])
  out = reconstruct(params, {}, BATCH, RNG)
  mask = np.asarray(out["mask"])
  other = reconstruct(params, {}, BATCH | {"image": np.where(mask > 0, 9.0, IMAGE)}, RNG)
  np.testing.assert_array_equal(other["image"], out["image"])
  np.testing.assert_array_equal(np.where(mask > 0, 0, out["image"]), np.where(mask > 0, 0, IMAGE))
  seen = reconstruct(params, {}, BATCH | {"image": np.where(mask > 0, IMAGE, 9.0)}, RNG)
  assert np.abs(np.asarray(seen["image"] - out["image"]) * mask).max() > 1e-2


@pytest.mark.parametrize("ratio, hidden", [(0.75, 18), (0.5, 12)])
def test_every_example_hides_its_own_patches_equally_many(params, ratio, hidden):
  reconstruct = jax.jit(make(loss=dict(mask_ratio=ratio)).predict["reconstruct"])
  masks = [np.asarray(reconstruct(params, {}, BATCH, jax.random.key(i))["mask"]) for i in range(2)]
  for mask in masks:
    np.testing.assert_array_equal(mask.sum(axis=(1, 2, 3)), hidden * 16)
    assert len(np.unique(mask, axis=0)) == 6
  assert (masks[0] != masks[1]).any()


def test_every_token_returns_to_its_place(params):
  """The order in which the encoder gets the visible patches changes no prediction."""
  encoder, decoder = vit.make(**MODEL), mae_decoder.make(**DECODER)

  @jax.jit
  def predict(masking):
    out = encoder.apply({"params": params["encoder"]}, IMAGE, keep=masking.keep)[1]
    tokens = (out["tokens"], out["prefix"], masking.restore)
    variables = {"params": params["decoder"]}
    return decoder.apply(variables, *tokens, grid=(4, 6), out_dim=48)[0]

  a = by_noise(jax.random.uniform(RNG, (6, 24)), 0.75)
  keep = np.asarray(a.keep)[:, ::-1]
  restore = np.where(np.asarray(a.restore) < 6, 5 - np.asarray(a.restore), a.restore)
  b = Masking(keep, restore, a.mask)
  np.testing.assert_allclose(predict(b), predict(a), atol=1e-5)
  assert np.abs(predict(Masking(keep, a.restore, a.mask)) - predict(a)).max() > 1e-2


def test_embeddings_are_of_the_whole_image(params):
  for embed in mae.EMBED:
    predict = make(loss={}, embed=embed).predict
    found = jax.jit(predict["image_embed"])(params, {}, BATCH)
    out = jax.jit(predict["features"])(params, {}, BATCH)
    assert found.shape == (6, 32) and out["tokens"].shape == (6, 24, 32)
    want = out["prefix"][:, 0] if embed == "cls" else np.mean(out["tokens"], axis=1)
    np.testing.assert_allclose(found, want, atol=1e-6)


def test_baseline_of_normalised_targets(params):
  """What the patches' own means alone give, since the reconstruction is told them."""
  out = jax.jit(make(loss={}).predict["reconstruct"])(params, {}, BATCH, RNG)
  mean = patches(IMAGE).reshape(6, 24, 16, 3).mean((2, 3))
  hidden = patches(out["mask"])[:, :, 0] > 0
  got = patches(out["baseline"])
  np.testing.assert_allclose(got[hidden], mean[hidden][:, None].repeat(48, 1), atol=1e-6)
  np.testing.assert_array_equal(got[~hidden], patches(IMAGE)[~hidden])
  plain = make(loss=dict(norm_pix=False)).predict["reconstruct"]
  assert "baseline" not in jax.eval_shape(plain, params, {}, BATCH, RNG)


@pytest.mark.parametrize(
  "kwargs, message",
  [
    (dict(embed="map"), "config.embed 'map' is unknown"),
    (dict(model=MODEL | {"pool": "gap"}), "embed = 'cls', but config.model.pool = 'gap'"),
    (dict(model=MODEL | {"num_classes": 3}), "num_classes = 3; MAE's encoder has no head"),
    (dict(decoder=DECODER | {"widht": 3}), "config.decoder: key 'widht' is unknown"),
    (dict(decoder=DECODER | {"num_heads": 3}), "width 16 is not a multiple of 3 heads"),
    (dict(loss=dict(mask_ratio=0.99)), "mask_ratio = 0.99 of 24 patches"),
    (dict(loss=dict(mask_ratio=0.0)), "mask_ratio = 0.0 of 24 patches"),
    (dict(loss=dict(mask_ratio=-1)), "mask_ratio = -1; expected a number >= 0"),
  ],
)
def test_mistakes(kwargs, message):
  with pytest.raises(UserError, match=message):
    jax.eval_shape(make(**{"loss": {}} | kwargs).init, RNG, BATCH)
