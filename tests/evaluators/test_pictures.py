"""Pictures of what a model sees: hand-made cases land where they should, and twice the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_mesh

from big_vision_like import metrics, train
from big_vision_like import state as state_lib
from big_vision_like.config import UserError, wrap
from big_vision_like.evaluators import pictures
from big_vision_like.input.sources.digits import digits
from big_vision_like.state import State
from tests import tiny
from tools import report

STATE = State({}, {}, {}, 0)
MESHES = [dict(replica=1, fsdp=1), dict(replica=2, fsdp=2, tensor=2)]
BASE = dict(source="digits(split='test')", pp="drop(text)|value_range(-1, 1)", batch_size=100)


def attention(params, aux, batch, rng=None):
  """[B, 2, 2, 4]: head 0 looks at the top left cell, head 1 at the bottom right one."""
  maps = jnp.zeros((2, 2, 4)).at[0, 0, 0].set(1.0).at[1, 1, 3].set(0.5)
  return jnp.broadcast_to(maps[None], (batch["image"].shape[0], 2, 2, 4))


def tokens(params, aux, batch, rng=None):
  """[B, 2, 2, 5]: the patch's mean brightness along one direction, its place along another."""
  x = batch["image"][..., 0].reshape(-1, 2, 4, 2, 4).mean((2, 4))
  place = jnp.broadcast_to(jnp.array([[0.0, 0.1], [0.2, 0.3]])[None], x.shape)
  zero = jnp.zeros_like(x)
  return jnp.stack([zero, 10 * place, zero, zero, x], -1)


def embed(params, aux, batch, rng=None):
  return batch["image"].reshape(batch["image"].shape[0], -1)


def reconstruct(params, aux, batch, rng):
  image = batch["image"]
  return {"image": image, "target": image, "mask": jnp.zeros((*image.shape[:3], 1))}


PREDICT = dict(attention=attention, image_tokens=tokens, image_embed=embed, reconstruct=reconstruct)


def evaluator(shape=MESHES[0], predict=PREDICT, **kwargs):
  cfg = wrap({"evals": {"x": BASE | kwargs}}).evals.x
  return pictures.Evaluator(cfg, {k: jax.jit(f) for k, f in predict.items()}, make_mesh(**shape))


def test_same_on_eight_devices_twice_and_of_the_right_shape(tmp_path):
  found = [evaluator(shape, rows=3, k=4) for shape in (*MESHES, MESHES[0])]
  assert found[0].run(STATE) == {}
  one, eight, again = (e.pictures(STATE) for e in found)
  assert one.keys() == {"attention", "pca", "neighbours", "reconstruction"}
  tile = 96 + 2 * pictures.GAP
  assert one["attention"].shape == (3 * tile, 4 * tile, 3)
  assert one["pca"].shape == (3 * tile, 2 * tile, 3)
  assert one["neighbours"].shape == (3 * (tile + 6), 5 * (tile + 6), 3)
  for kind, image in one.items():
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, eight[kind])
    np.testing.assert_array_equal(image, again[kind])
    metrics.write_picture(tmp_path, kind, image)
  assert len(list((tmp_path / "report").glob("*.png"))) == 4


def test_attention_lands_where_it_is():
  image = evaluator(kinds="attention", rows=2).pictures(STATE)["attention"]
  tiles = image.reshape(2, 100, 4, 100, 3)[:, 2:-2, :, 2:-2].astype(int)
  red = tiles[..., 0].reshape(2, 2, 48, 4, 4, 24).mean((2, 5))  # [images, h, picture, w]
  mean, first, second = (red[:, :, i] for i in (1, 2, 3))
  for x, at in ((first, (0, 0)), (second, (1, 3))):
    others = np.delete(x.reshape(2, 8), at[0] * 4 + at[1], axis=1)
    assert (x[:, at[0], at[1]] > others.max(1) + 60).all()
  assert (mean[:, 0, 0] > mean[:, 1, 3]).all()  # 0.5 and 0.25 of all weight
  assert (mean[:, 1, 3] > mean[:, 1, 1] + 40).all()
  x = np.stack([e["image"] for e in digits("test")])[:2, ..., 0].repeat(12, 1).repeat(12, 2)
  np.testing.assert_allclose(tiles[:, :, 0, :, 0], x, atol=1)


def test_principal_colours_by_hand():
  rng = np.random.default_rng(0)
  z = rng.normal(size=(2, 3, 4, 2)) * [5.0, 1.0]
  axes = np.linalg.qr(rng.normal(size=(6, 6)))[0][:, :2]
  axes *= np.sign(axes[np.abs(axes).argmax(0), [0, 1]])
  found = pictures.principal_colours((z @ axes.T + 3.0).astype(np.float32))
  # Components of a finite sample: those of the two-dimensional numbers themselves.
  flat = z.reshape(-1, 2) - z.reshape(-1, 2).mean(0)
  vectors = np.linalg.svd(flat, full_matrices=False)[2].T
  loading = axes @ vectors
  p = flat @ (vectors * np.sign(loading[np.abs(loading).argmax(0), [0, 1]]))
  expected = np.round((p - p.min(0)) / np.ptp(p, axis=0) * 255).reshape(2, 3, 4, 2)
  np.testing.assert_allclose(found[..., :2], expected, atol=1)
  assert (found[..., 2] == 0).all()  # no third direction, no noise in its place
  assert pictures.principal_colours(np.ones((1, 2, 2, 2))).shape == (1, 2, 2, 3)


def test_pca_shows_what_varies_most():
  image = evaluator(kinds=("pca",), rows=4).pictures(STATE)["pca"]
  tiles = image.reshape(4, 100, 2, 100, 3)[:, 2:-2, 1, 2:-2]
  cells = tiles.reshape(4, 2, 48, 2, 48, 3)
  assert (cells == cells[:, :, :1, :, :1]).all()
  first = cells[:, :, 0, :, 0, 0]
  np.testing.assert_array_equal(first, first[:1].repeat(4, 0))  # the place, of every image
  assert first[0, 0, 0] == 0 and first[0, 1, 1] == 255


def test_neighbours_are_those_of_scikit_learn():
  from sklearn.neighbors import NearestNeighbors

  z = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
  queries = np.array([0, 7, 49])
  expected = NearestNeighbors(n_neighbors=6, metric="cosine").fit(z).kneighbors(z[queries])[1]
  np.testing.assert_array_equal(pictures.most_similar(z, queries, 5), expected[:, 1:])
  ties = np.ones((4, 2), np.float32)
  np.testing.assert_array_equal(pictures.most_similar(ties, np.array([1]), 3), [[0, 2, 3]])


def test_frames_say_whether_the_class_is_right():
  found = evaluator(kinds="neighbours", rows=2, k=5)
  image = found.pictures(STATE)["neighbours"].reshape(2, 106, 6, 106, 3)
  x = found.split.map(lambda b: {"z": embed(None, None, b)})
  queries = np.array([0, len(found.split) - 1])
  near = pictures.most_similar(x["z"], queries, 5)
  right = x["label"][near] == x["label"][queries][:, None]
  np.testing.assert_array_equal((image[:, 3, 1:, 50] == pictures.RIGHT).all(-1), right)
  assert (image[:, 3, 0, 50] == pictures.GREY).all() and right.any()
  bare = evaluator(kinds="neighbours", rows=1, k=2, pp="keep(image)|value_range(-1, 1)")
  assert (bare.pictures(STATE)["neighbours"][3, 50::106] == pictures.GREY).all()


def test_similarity_is_brightest_where_it_is_largest():
  values = np.full((3, 3), -0.5)
  values[0, 2], values[1, 1] = 1.0, 0.5
  image = pictures.similarity_map(values, cell=8)
  centre = image[4::8, 4::8].astype(int)
  assert image.shape == (24, 24, 3)
  assert (centre[0, 2] == [253, 231, 37]).all() and (centre[0, 0] == [68, 1, 84]).all()
  corner = (image[::8, ::8] == pictures.WRONG).all(-1)
  np.testing.assert_array_equal(corner, np.eye(3, dtype=bool))


def test_similarity_of_a_batch():
  text = lambda params, aux, batch, rng=None: jax.nn.one_hot(batch["text"], 3)
  image = lambda params, aux, batch, rng=None: jax.nn.one_hot(batch["index"] % 3, 3)
  predict = dict(image_embed=image, text_embed=text)
  tokens = "copy('label', 'text')|drop(label)|value_range(-1, 1)"
  kwargs = dict(kinds="similarity", pairs=5)
  with pytest.raises(UserError, match="similarity needs text"):
    evaluator(predict=predict, **kwargs)
  assert evaluator(predict=predict).kinds == ("neighbours",)
  found = evaluator(predict=predict, pp=tokens, **kwargs).pictures(STATE)["similarity"]
  label = np.array([e["label"] for e in digits("test")])[:5]
  bright = found[7::14, 7::14, 0] > 200
  np.testing.assert_array_equal(bright, (np.arange(5) % 3)[:, None] == label[None])


def test_mistakes_are_one_line():
  with pytest.raises(UserError, match=r"kinds.*'atention' is unknown; did you mean attention"):
    evaluator(kinds=("atention",))
  with pytest.raises(UserError, match="has no predict 'text_embed'"):
    evaluator(kinds=("similarity",))
  with pytest.raises(UserError, match=r"evals\.x\.rows = 0"):
    evaluator(rows=0)


def test_of_a_real_model_in_tensorboard_and_the_report(tmp_path):
  tokens = "tokenize(12, model='train:digit_pairs', vocab_size=96)"
  pp = f"value_range(-1, 1)|{tokens}|keep(image, text, label)"
  cfg = dict(type="pictures", source="digit_pairs(split='val', size=40)", pp=pp, batch_size=16)
  config = tiny.wrapped(evals={"seen": cfg | dict(rows=2, pairs=4)})
  built = train.build(config, num_examples=100)
  [seen] = train.make_evaluators(config, built.method, built.mesh).values()
  with jax.set_mesh(built.mesh):
    state = state_lib.init(built.method, built.tx, jax.random.key(0), built.batch, built.shardings)
  assert seen.kinds == ("attention", "pca", "neighbours", "similarity")
  with jax.set_mesh(built.mesh), metrics.Writer(tmp_path) as writer:
    train.write_pictures({"seen": seen}, state, tmp_path, writer, 3)
  (tmp_path / "config.json").write_text("{}")
  names = [name for name, _ in report.read_run(tmp_path)["pictures"]]
  assert names == [f"seen_{kind}" for kind in sorted(seen.kinds)]
  events = next(tmp_path.rglob("*tfevents*")).read_bytes()
  assert all(f"seen/{kind}".encode() in events for kind in seen.kinds)
