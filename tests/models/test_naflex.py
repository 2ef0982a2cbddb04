"""NaFlex: one grid is the plain ViT; padding, its content and its length change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_like.config import UserError, wrap
from big_vision_like.input import ops
from big_vision_like.layers import pos_embed
from big_vision_like.models import naflex, two_towers, vit

SIZE = dict(width=16, depth=2, mlp_dim=24, num_heads=2)


def batch_of(shapes, max_tokens, patch=4):
  """What op `patchify_native` makes of noise of these (height, width)."""
  rng = np.random.default_rng(0)
  op = ops.build(f"patchify_native(patch={patch}, max_tokens={max_tokens})")
  images = [rng.normal(size=(*s, 3)).astype(np.float32) for s in shapes]
  examples = [op({"image": x}, None) for x in images]
  return {k: np.stack([e[k] for e in examples]) for k in examples[0]}, images


@pytest.mark.parametrize("pool", ["map", "gap", "none"])
def test_the_grid_of_the_table_is_the_plain_vit(pool):
  batch, images = batch_of([(16, 16)] * 3, 16)
  flex = naflex.make(**SIZE, pos_side=4, pool=pool, num_classes=5)
  plain = vit.make(**SIZE, patch_size=4, image_size=16, pool=pool, num_classes=5)
  variables = flex.init(jax.random.key(0), naflex.inputs(batch))
  want, _ = plain.apply(variables, np.stack(images))
  got, _ = jax.jit(flex.apply)(variables, naflex.inputs(batch))
  np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("pool", ["map", "gap"])
def test_padding_is_not_seen(pool):
  batch, _ = batch_of([(40, 12), (9, 30), (20, 20)], 12)
  mask = batch["patch_mask"]
  assert not mask.all()
  model = naflex.make(**SIZE, pos_side=3, pool=pool)
  inputs = naflex.inputs(batch)
  variables = model.init(jax.random.key(0), inputs)
  want, _ = model.apply(variables, inputs)
  noise = np.where(mask[..., None], batch["patches"], 1e3).astype(np.float32)
  longer = {k: np.pad(v, [(0, 0), (0, 5)] + [(0, 0)] * (v.ndim - 2)) for k, v in inputs.items()}
  longer["patch_grid"] = batch["patch_grid"]
  for changed in (inputs | {"patches": noise}, longer):
    np.testing.assert_allclose(model.apply(variables, changed)[0], want, atol=1e-5)


@pytest.mark.parametrize("grid", [(5, 7), (2, 9), (1, 1), (4, 4)])
def test_positions_are_the_resized_table(grid):
  table = np.random.default_rng(1).normal(size=(16, 6)).astype(np.float32)
  positions = np.indices(grid).reshape(1, 2, -1).transpose(0, 2, 1)
  got = pos_embed.native_pos_embed(jnp.asarray(table), 4, positions, np.array([grid]))
  want = jax.image.resize(table.reshape(4, 4, 6), (*grid, 6), "bilinear", antialias=True)
  np.testing.assert_allclose(got[0], np.reshape(want, (-1, 6)), atol=1e-5)


def test_two_towers_take_patches():
  batch, _ = batch_of([(8, 16), (16, 8)], 6)
  batch["text"] = np.ones((2, 5), np.int32)
  image = dict(SIZE, name="naflex", pos_side=4)
  text = dict(SIZE, vocab_size=9, max_len=5)
  towers = two_towers.functions(two_towers.make(wrap(dict(image=image, text=text))))
  params, aux = towers.init(jax.random.key(0), batch)
  z = towers.predict["image_embed"](params, aux, {k: v for k, v in batch.items() if k != "text"})
  np.testing.assert_allclose(z, towers.embed(params, aux, batch)[0], atol=1e-6)
  with pytest.raises(UserError, match="no patch_grid; op patchify_native"):
    towers.embed(params, aux, {k: v for k, v in batch.items() if k != "patch_grid"})


def test_mistakes_are_named():
  for kwargs, message in (
    (dict(variant="XX"), "'XX' is unknown"),
    (dict(SIZE, pool="cls"), "pool"),
    (dict(SIZE, num_heads=3), "not a multiple of 3"),
  ):
    with pytest.raises(UserError, match=message):
      naflex.make(**kwargs)
