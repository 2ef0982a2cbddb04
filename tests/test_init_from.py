"""What a fresh state takes from other runs and from foreign checkpoints."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from big_vision_like import init_from, tree
from big_vision_like.config import UserError
from big_vision_like.interop import build, files, foreign, huggingface
from big_vision_like.layers.patch_embed import patchify, resample_patch_kernel
from big_vision_like.layers.pos_embed import resample_pos_embed
from big_vision_like.models import vit
from tests.interop import tiny_models
from tests.parity import weights


def arrays(**found):
  return lambda path, prefix: {k.replace("__", "/"): np.asarray(v) for k, v in found.items()}


def test_init_from_names_what_was_renamed_and_resampled():
  fresh = {"params": {"pos": jnp.zeros((1, 4, 2)), "pos2": jnp.ones(3)}}
  table = np.arange(2.0).reshape(1, 1, 2)
  spec = {"params/pos": {"path": "DIR::old", "rename": [(".*", "")]}}
  found, told = init_from.init_from(
    fresh, spec, arrays(table=table), lambda name, x, shape: np.broadcast_to(x, shape)
  )
  assert told == "taken  params/pos (renamed from table) (resampled from (1, 1, 2))"
  np.testing.assert_array_equal(found["params"]["pos"], np.broadcast_to(table, (1, 4, 2)))
  np.testing.assert_array_equal(found["params"]["pos2"], np.ones(3))  # no component of its path
  assert found["params"]["pos"].dtype == jnp.float32


@pytest.mark.parametrize(
  "value, message",
  [
    ({"path": "D", "rename": [(".*", "w")]}, "gives 'a' and 'w' the one name 'w'"),
    ({"path": "D", "rename": [("(", "w")]}, "is not a regular expression"),
    ({"path": "D", "renam": []}, "did you mean rename"),
    ({"path": "D", "reinit": ["params/.*"]}, "nothing of D::params fits"),
    (7, "= 7; expected"),
  ],
)
def test_mistakes_in_init_from(value, message):
  with pytest.raises(UserError, match=message):
    init_from.init_from(
      {"params": {"w": jnp.zeros(2)}}, {"params": value}, arrays(a=[0, 0], w=[1, 1])
    )


# ------------------------------------------------------------------------------------------ foreign


VIT = dict(
  width=32, depth=2, mlp_dim=48, num_heads=4, pool="cls", cls_pos=True, gelu="exact", eps=1e-12
)


def model_of(**kwargs):
  return vit.make(**{**VIT, "patch_size": 8, "image_size": (16, 24), "num_classes": 5, **kwargs})


def fresh(model):
  """All ones: what is taken differs from it."""
  zeros = jax.eval_shape(lambda: build.kind("vit").init(model, 3))["params"]
  return {"params": jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), zeros)}


def config_of(model):
  keys = ("patch_size", "image_size")
  return {"model": {k: list(getattr(model, k)) for k in keys}}


@pytest.fixture
def folder(tmp_path):
  model = model_of()
  hf, tensors = build.export("vit", model, tiny_models.random(model))
  huggingface.write(tmp_path / "hf", hf, tensors)
  return tmp_path / "hf"


def start(model, spec):
  found, table = init_from.init_from(
    fresh(model), spec, foreign=foreign.read, config=config_of(model)
  )
  return tree.flatten(found["params"]), table


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("prefix", ["", "hf:"])
def test_a_hugging_face_folder(folder, scan, prefix):
  """Stacked or not, the same model; `params` is the whole of it."""
  model = model_of(scan=scan)
  found, table = start(model, {"params": f"{prefix}{folder}"})
  want = tree.flatten(tiny_models.random(model_of()))
  assert "left" not in table and "unused" not in table
  for name, x in found.items():
    if "/block_" in name:
      i = int(name.split("block_")[1][0])
      np.testing.assert_array_equal(x, want[name.replace(f"block_{i}", "blocks")][i])
    else:
      np.testing.assert_array_equal(x, want[name])
  assert init_from.told(table) == f"init_from: {len(found)} parameters taken as they are"


def test_blocks_apart_are_stacked():
  apart = {f"encoder/block_{i}/w": np.full(3, i) for i in range(4)}
  state = {"params": {"encoder": {"blocks": {"w": jnp.zeros((4, 3))}}}}
  found, table = init_from.init_from(state, {"params": "D"}, lambda path, prefix: apart)
  np.testing.assert_array_equal(found["params"]["encoder"]["blocks"]["w"][:, 0], range(4))
  assert "stack of 4 blocks" in table and "unused" not in table


def test_one_tower_of_two(tmp_path):
  towers = tiny_models.siglip()
  params = tiny_models.random(towers)
  _, tensors = build.export("big_vision_two_towers", towers, params)
  files.save_npz(tmp_path / "x.npz", tensors)
  state = {"params": {"image": fresh(towers.image)["params"], "scale": jnp.ones(())}}
  spec = {"params/image": str(tmp_path / "x.npz")}
  found, table = init_from.init_from(state, spec, foreign=foreign.read)
  for name, x in tree.flatten(found["params"]["image"]).items():
    np.testing.assert_array_equal(x, tree.flatten(params["image"])[name])
  assert "text/" not in table  # only what lies below `image` is looked at
  spec = {"params/image": f"{tmp_path / 'x.npz'}::imag"}
  with pytest.raises(UserError, match="has nothing below 'imag'"):
    init_from.init_from(state, spec, foreign=foreign.read)


def test_another_resolution_patch_and_head(folder):
  """16 x 24 in patches of 8 -> 24 x 24 in patches of 4 x 12: a grid of 2 x 3 -> 6 x 2."""
  model = model_of(patch_size=(4, 12), image_size=(24, 24), num_classes=7)
  spec = {"params": dict(path=str(folder), reinit=["head/.*"])}
  found, table = start(model, spec)
  saved = tree.flatten(tiny_models.random(model_of()))
  pos = resample_pos_embed(saved["pos_embed"], (2, 3), (6, 2))
  np.testing.assert_allclose(found["pos_embed"], pos, atol=1e-6)
  np.testing.assert_array_equal(found["cls_pos"], saved["cls_pos"])
  kernel = resample_patch_kernel(saved["patch_embed/proj/kernel"], (8, 8), (4, 12))
  np.testing.assert_allclose(found["patch_embed/proj/kernel"], kernel, atol=1e-6)
  assert (found["head/kernel"] == 1).all()
  said = init_from.told(table)
  assert "left   params/head/bias (reinit)" in said
  assert "taken  params/pos_embed (resampled from (6, 32))" in said and "encoder" not in said
  with pytest.raises(UserError, match=r"params/head/bias has shape \(7,\).* has \(5,\)"):
    start(model, {"params": str(folder)})


def test_a_larger_patch_sees_a_larger_image_alike():
  """Resizing image and patch together changes no token (bilinear, twice as large)."""
  kernel = weights.tensor("kernel", (4 * 4 * 3, 6))
  image = weights.image(2, 8, 8, 3)
  new = resample_patch_kernel(kernel, (4, 4), (8, 8))
  patches = np.asarray(patchify(image, (4, 4))).reshape(2, 4, 4, 4, 3)
  grown = jax.image.resize(patches, (2, 4, 8, 8, 3), "bilinear", antialias=False)
  np.testing.assert_allclose(
    np.asarray(grown).reshape(2, 4, -1) @ new, patches.reshape(2, 4, -1) @ kernel, atol=1e-4
  )
  assert resample_patch_kernel(kernel, (4, 4), (4, 4)) is kernel
  with pytest.raises(UserError, match="48 rows is not of 5 x 5"):
    resample_patch_kernel(kernel, (5, 5), (4, 4))


def test_relative_positions_and_grids_given_by_hand():
  """A 2 x 4 grid in neither config: `grid` says it."""
  state = {
    "rel_pos_bias": {"table": jnp.zeros((2, 5 * 7 + 3, 2))},
    "pos_embed": jnp.zeros((3 * 4, 2)),
  }
  saved = {
    "rel_pos_bias/table": np.ones((2, 3 * 7 + 3, 2), np.float32),
    "pos_embed": np.ones((8, 2), np.float32),
  }
  config = {"model": {"patch_size": 2, "image_size": (6, 8)}}
  loader = lambda path, prefix: {k.removeprefix(f"{prefix}/"): v for k, v in saved.items()}
  spec = {"rel_pos_bias": {"path": "D", "grid": (2, 4)}}
  found, table = init_from.init_from(state, spec, loader, config=config)
  np.testing.assert_allclose(found["rel_pos_bias"]["table"], 1, atol=1e-5)
  assert "(resampled from (2, 24, 2))" in table
  with pytest.raises(UserError, match="has shape"):
    init_from.init_from(state, {"rel_pos_bias": "D"}, loader, config=config)


def test_vocabulary_extended_only_when_asked():
  mesh = make_mesh(fsdp=8)
  sharding = NamedSharding(mesh, P("fsdp"))
  table = jax.device_put(jnp.full((16, 2), 7.0), sharding)
  state = {"text": {"embed": {"embedding": table}, "pos_embed": jnp.zeros((3, 2))}}
  saved = {
    "embed/embedding": np.arange(20.0).reshape(10, 2),
    "pos_embed": np.arange(8.0).reshape(4, 2),
  }
  loader = lambda path, prefix: saved
  with pytest.raises(UserError, match="embedding has shape"):
    init_from.init_from(state, {"text": "D"}, loader)
  spec = {"text": dict(path="D", extend=("embedding",))}
  found, told = init_from.init_from(state, spec, loader)
  rows = found["text"]["embed"]["embedding"]
  assert rows.sharding == sharding and "(extended from (10, 2))" in told
  np.testing.assert_array_equal(rows[:10], saved["embed/embedding"])
  assert (rows[10:] == 7).all()
  # A shorter text has the first positions; they are no grid, though 4 is a square.
  np.testing.assert_array_equal(found["text"]["pos_embed"], saved["pos_embed"][:3])


def test_a_run_says_its_own_grid(tmp_path):
  (tmp_path / "config.json").write_text(
    json.dumps({"model": {"variant": "B/8", "image_size": [8, 48]}})
  )
  state = {"params": {"pos_embed": jnp.zeros((4, 2))}}
  x = np.arange(12, dtype=np.float32).reshape(6, 2)
  found, _ = init_from.init_from(
    state, {"params": str(tmp_path)}, lambda path, prefix: {"pos_embed": x}
  )
  want = resample_pos_embed(x, (1, 6), (2, 2))
  np.testing.assert_allclose(found["params"]["pos_embed"], want, atol=1e-6)
