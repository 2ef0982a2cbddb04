"""The suite `step`: its formulas against the table of limits, its peer against our model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_like import flops, tree
from big_vision_like.models import mae_decoder, vit
from tools.bench import analytic, big_vision, harness
from tools.bench import step as suite

LIMITS = {  # GF: image and text forward, a step of a pair
  "S/16": (9.3, 2.8, 36.2),
  "B/16": (35.4, 11.0, 139.3),
  "L/16": (123.3, 39.1, 487),
  "So400m/14": (220.4, 53.1, 820),
}


@pytest.mark.parametrize("variant", LIMITS)
def test_formulas_give_the_table_of_limits(variant):
  name, patch = variant.split("/")
  size = analytic.Size.of(name)
  found = (
    analytic.image_tower(size, patch=int(patch)),
    analytic.text_tower(size),
    analytic.siglip(variant),
  )
  for value, want in zip(found, LIMITS[variant]):
    assert abs(value / 1e9 - want) < (0.06 if want < 400 else 0.6)


def test_formulas_of_mae_and_flip():
  for variant, encoder, step in (("B/16", 8.6, 58.2), ("L/16", 30.5, 123.8)):
    assert abs(analytic.mae_encoder(variant) / 1e9 - encoder) < 0.06
    assert abs(analytic.mae_decoder(variant) / 1e9 - 10.8) < 0.06
    assert abs(analytic.mae(variant) / 1e9 - step) < 0.06
  for variant, saving in (("B/16", 1.80), ("L/16", 2.97), ("H/14", 3.44)):
    assert abs(analytic.mae_saving(variant) - saving) < 0.006
  image = lambda visible: analytic.image_tower(analytic.Size.of("B"), patch=16, visible=visible)
  for visible, vision, pair in ((0.5, 2.04, 1.64), (0.25, 4.12, 2.37)):
    assert abs(image(1.0) / image(visible) - vision) < 0.006
    assert abs(analytic.siglip("B/16") / analytic.siglip("B/16", visible=visible) - pair) < 0.006


def test_programs_have_the_flops_of_the_formulas():
  """Every product of MAE's two models, by their jaxprs; hidden patches are not projected."""
  assert suite.mae_saving("B/16") == pytest.approx(analytic.mae_saving("B/16"), rel=3e-3)
  vision, pair = suite.flip_saving("B/16", 0.25)
  assert vision == pytest.approx(4.12, rel=3e-3) and pair == pytest.approx(2.36, rel=3e-3)
  tokens, prefix = jnp.zeros((1, 49, 768)), jnp.zeros((1, 1, 768))
  args = (tokens, prefix, jnp.zeros((1, 196), jnp.int32))
  decoder = mae_decoder.make()
  run = lambda *a: decoder.init_with_output(jax.random.key(0), *a, grid=(14, 14), out_dim=768)[0]
  # Both are one forward pass; `init` draws numbers, which are no products.
  assert flops.count(run, *args) == pytest.approx(analytic.mae_decoder("B/16"), rel=1e-3)


@pytest.mark.slow  # two more compiles of a step
def test_the_peer_is_the_same_model():
  """As many parameters of the same shapes, heads and stacks flattened; its loss falls."""
  size = suite.TINY["siglip_mu16_32"]
  width, depth, mlp_dim, heads = vit.SIZES["mu"]
  numbers = lambda state: sum(x.size for x in jax.tree.leaves(state))
  ours = suite._ours(size, scan=False).state.params
  peer = suite._big_vision(size, scan=False).state[0]
  assert numbers(peer) == numbers(ours)
  kernels = lambda p: sorted(
    x.size for name, x in tree.flatten(p).items() if name.endswith("kernel")
  )
  assert kernels(peer) == kernels(ours)

  model = big_vision.SigLip(width, depth, mlp_dim, heads, vocab_size=64)
  rng = np.random.default_rng(0)
  batch = {
    "image": jnp.asarray(rng.standard_normal((4, 32, 32, 3), np.float32)),
    "text": jnp.asarray(rng.integers(0, 64, (4, 8), np.int32)),
  }
  params = model.init(jax.random.key(0), batch["image"], batch["text"])["params"]
  tx = big_vision.optimizer(lambda _: 1e-3, 0.1, 1.0)
  state, train_step, losses = (params, tx.init(params)), big_vision.train_step(model, tx), []
  for _ in range(4):
    state, measured = train_step(state, batch)
    losses.append(float(measured["loss"]))
  assert losses[-1] < losses[0]
  assert np.isfinite([float(x) for x in measured.values()]).all()


@pytest.mark.slow  # a compile of each row
def test_rows_of_memory_and_the_names_of_all():
  options = harness.Options(only="memory", repeats=1, smoke=True)
  (row,) = suite.rows(options)
  assert row.name == "memory/siglip_mu16_32"
  assert row.value == row.values["temp_bytes"] / row.values["peer_temp_bytes"] > 0
  kinds = {name.split("/")[0] for name in options.names}
  assert kinds == {"flops", "mae", "flip", "memory", "compile", "step", "peak"}


def test_configs_are_unrolled_where_a_transformer_scans():
  tower, unet = dict(variant="B/16", remat="full"), dict(name="unet", remat="full")
  out = suite._unrolled(dict(image=tower, prior=unet, model=dict(name="vit"), other=dict(lr=1)))
  assert out["image"] == dict(variant="B/16", remat="none", scan=False)
  assert out["prior"] == dict(name="unet", remat="none")
  assert out["model"] == dict(name="vit", scan=False) and out["other"] == dict(lr=1)
