"""The confusion matrix against scikit-learn, the layer against logistic regression."""

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_mesh
from einops import rearrange

from big_vision_like.config import UserError, wrap
from big_vision_like.evaluators import linear_segmentation as seg
from big_vision_like.state import State

STATE = State({}, {}, {}, 0)
MESHES = [dict(replica=1, fsdp=1), dict(replica=2, fsdp=2, tensor=2)]


def patches(params, aux, batch, rng=None):
  """2 x 2 pixels a patch, as they are: [B, 8, 8, 3] -> [B, 4, 4, 12]."""
  return rearrange(batch["image"], "b (h p) (w q) c -> b h w (p q c)", p=2, q=2)


def data(folder, n, seed):
  """Images whose colour says which of 3 classes each patch is, with noise; a strip is ignored."""
  rng = np.random.default_rng(seed)
  label = rng.integers(0, 3, size=(n, 4, 4)).repeat(2, 1).repeat(2, 2)
  image = 40 * np.eye(3)[label] + rng.normal(90, 8, size=(n, 8, 8, 3))
  label[:, 7] = 255
  np.savez(folder / f"{seed}.npz", image=image.astype(np.uint8), segmentation=label[..., None])
  return f"arrays('{folder}/{seed}.npz')"


def evaluator(tmp_path, shape=MESHES[1], **kwargs):
  base = dict(source_train=data(tmp_path, 40, 0), source=data(tmp_path, 27, 1), classes=4)
  base |= dict(pp="value_range(-1, 1)", batch_size=8, epochs=6, lr=0.03)
  cfg = wrap({"evals": {"x": base | kwargs}}).evals.x
  return seg.Evaluator(cfg, {"image_tokens": patches}, make_mesh(**shape))


def rows(split):
  found = split.map(lambda b: {"x": b["image"], "y": b["segmentation"]})
  return found["x"], found["y"][..., 0]


@pytest.mark.parametrize("shape", MESHES)
def test_scores_are_scikit_learns(tmp_path, shape):
  """A poor layer, so that all classes are confused; class 3 is predicted but never occurs."""
  from sklearn import metrics

  found = evaluator(tmp_path, shape)
  rng = np.random.default_rng(0)
  head = {"kernel": rng.normal(size=(12, 4)), "bias": np.zeros(4)}
  head |= {"mean": np.full(12, -0.2), "std": np.ones(12)}
  head = {k: v.astype(np.float32) for k, v in head.items()}
  found.trained.fit = lambda *args: head
  x, y = rows(found.test)
  out = seg.apply(head, patches(0, 0, {"image": jnp.asarray(x)}), (8, 8))
  pred, y = np.asarray(out).argmax(-1)[:, :7].ravel(), y[:, :7].ravel()
  scores = found.run(STATE)
  assert set(pred) == {0, 1, 2, 3} and len(found.test) % 8
  assert scores["miou"] == pytest.approx(metrics.jaccard_score(y, pred, average="macro"))
  assert scores["accuracy"] == pytest.approx(metrics.accuracy_score(y, pred))
  expected = np.mean([(pred[y == c] == c).mean() for c in range(3)])
  assert scores["mean_accuracy"] == pytest.approx(expected)


def test_by_hand():
  table = np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]])  # the third class is nowhere
  assert seg.scores(table) == {
    "miou": (3 / 4 + 2 / 3) / 2,
    "accuracy": 5 / 6,
    "mean_accuracy": 7 / 8,
  }
  label, found = jnp.array([[0, 0, 0, 0, 1, 1, 9]]), jnp.array([[0, 0, 0, 1, 1, 1, 2]])
  counted = seg.confusion(label, found, label != 9, 3)
  np.testing.assert_array_equal(counted, table)
  assert seg.scores(np.zeros((2, 2), int))["miou"] == 0.0


def test_learns_the_same_on_any_mesh(tmp_path):
  one, eight = (evaluator(tmp_path, shape).run(STATE) for shape in MESHES)
  assert one == pytest.approx(eight, abs=5e-3)
  assert one["miou"] > 0.75 and one["accuracy"] > 0.85  # bilinear, so edges of patches are wrong
  assert evaluator(tmp_path, epochs=0.1, lr=1e-6).run(STATE)["miou"] < one["miou"]


def test_the_layer_goes_to_the_minimum(tmp_path):
  """At the grid's own resolution it is logistic regression on standardised features."""
  from sklearn.linear_model import LogisticRegression

  found = evaluator(tmp_path, classes=3, epochs=60, lr=0.3, weight_decay=0.0)
  pool = lambda p, a, b, rng=None: b["image"][..., :2]  # two colours of each pixel
  found.trained.predict = pool
  head = found.trained.fit(STATE, np.zeros(3, np.float32), found._loss)
  head = {k: np.asarray(v) for k, v in head.items()}
  x, y = rows(found.trained.split)
  np.testing.assert_allclose(head["mean"], x[..., :2].mean((0, 1, 2)), atol=1e-5)
  np.testing.assert_allclose(head["std"], x[..., :2].std((0, 1, 2)), rtol=1e-4)
  z = ((x[..., :2] - head["mean"]) / head["std"])[:, :7].reshape(-1, 2)
  exact = LogisticRegression(C=1e4).fit(z, y[:, :7].ravel()).predict(z)
  pred = np.asarray(z @ head["kernel"] + head["bias"]).argmax(1)
  assert (pred == exact).mean() > 0.98


def test_mistakes_are_one_line(tmp_path):
  with pytest.raises(UserError, match="has no predict 'image_tokens'; it has logits"):
    cfg = wrap({"evals": {"x": dict(source=data(tmp_path, 2, 1), pp="", classes=2)}}).evals.x
    cfg = wrap({"evals": {"x": {**cfg, "source_train": cfg.source}}}).evals.x
    seg.Evaluator(cfg, {"logits": patches}, make_mesh(**MESHES[0]))
  with pytest.raises(UserError, match="have an id that is none of the 2 classes and not ignore"):
    evaluator(tmp_path, classes=2, epochs=0.1).run(STATE)
  with pytest.raises(UserError, match="classes = 1; expected a whole number >= 2"):
    evaluator(tmp_path, classes=1)
