"""mAP and mAP@k by hand, against scikit-learn, junk and protocols, on 8 devices."""

import json

import jax
import numpy as np
import pytest
from conftest import make_mesh
from sklearn.metrics import average_precision_score

from big_vision_like.config import UserError, wrap
from big_vision_like.evaluators import instance_retrieval as ir
from big_vision_like.state import State

STATE = State({}, {}, {}, 0)
MESHES = [dict(replica=1, fsdp=1), dict(replica=2, fsdp=2, tensor=2)]
PREDICT = {"image_embed": jax.jit(lambda params, aux, batch: batch["image"])}


def arrays(tmp_path, name, z, label=None):
  """A source whose images are the features themselves."""
  more = {} if label is None else {"label": np.asarray(label)}
  np.savez(tmp_path / f"{name}.npz", image=np.asarray(z, np.float32), **more)
  return f"arrays({str(tmp_path / f'{name}.npz')!r})"


def cfg(**kwargs):
  return wrap({"evals": {"x": dict(pp="", batch_size=4) | kwargs}}).evals.x


def unit(z):
  return z / np.linalg.norm(z, axis=-1, keepdims=True)


def test_by_hand():
  """Relevant at places 1, 3 and 6 of 6: precisions 1, 2/3 and 1/2."""
  ranked = np.array([[1, 0, 1, 0, 0, 1]], bool)
  assert ir.average_precision(ranked) == pytest.approx([(1 + 2 / 3 + 1 / 2) / 3])
  assert ir.average_precision(ranked, 3) == pytest.approx([(1 + 2 / 3) / 3])
  assert ir.average_precision(ranked, 2) == pytest.approx([1 / 2])  # of min(3, 2)
  assert ir.average_precision(ranked, 100) == pytest.approx([(1 + 2 / 3 + 1 / 2) / 3])
  # Oxford and Paris: (1 + 1) / 2, (1/2 + 2/3) / 2, (2/5 + 3/6) / 2.
  trapezoid = (1 + 7 / 12 + 9 / 20) / 3
  assert ir.average_precision(ranked, rule="trapezoid") == pytest.approx([trapezoid])


def test_junk_ties_and_nan_by_hand():
  """Junk leaves no gap; a tie and NaN put the relevant item behind."""
  scores = np.array([[0.9, 0.8, 0.7, 0.6], [0.5, 0.5, 0.5, 0.1], [np.nan, 0.3, np.nan, 0.2]])
  relevant = np.array([[0, 1, 0, 1], [1, 0, 0, 0], [1, 0, 0, 0]], bool)
  junk = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]], bool)
  found = ir.rank_items(scores, relevant, junk)
  expected = [[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]]
  np.testing.assert_array_equal(found, np.array(expected, bool))


@pytest.mark.parametrize("shape", MESHES)
@pytest.mark.parametrize("chunk", [1, 1 << 24])
def test_as_scikit_learn(tmp_path, monkeypatch, shape, chunk):
  """Queries and a gallery with junk; then every query among the others."""
  monkeypatch.setattr(ir, "SCORES", chunk)
  rng = np.random.default_rng(0)
  q, g = rng.normal(size=(10, 5)), rng.normal(size=(23, 5))
  q_label, g_label = rng.integers(4, size=10), rng.integers(-1, 5, size=23)
  mesh = make_mesh(**shape)
  config = cfg(
    source=arrays(tmp_path, "q", q, q_label), source_gallery=arrays(tmp_path, "g", g, g_label), k=50
  )
  found = ir.Evaluator(config, PREDICT, mesh).run(STATE)
  scores, kept = unit(q) @ unit(g).T, g_label >= 0
  expected = [
    average_precision_score(g_label[kept] == y, s[kept])
    for y, s in zip(q_label, scores)
    if y in g_label
  ]
  assert found == pytest.approx({"mAP": np.mean(expected), "mAP@50": np.mean(expected)}, rel=1e-5)

  config = cfg(source=arrays(tmp_path, "g", g, g_label % 5), k=(1, 3), bootstrap=100)
  found = ir.Evaluator(config, PREDICT, mesh).run(STATE)
  scores, label, others = unit(g) @ unit(g).T, g_label % 5, ~np.eye(23, dtype=bool)
  expected, first = [], []
  for i in range(23):
    rows = others[i]
    if not (label[rows] == label[i]).any():
      continue  # nothing to be found
    expected.append(average_precision_score(label[rows] == label[i], scores[i, rows]))
    first.append(label[rows][scores[i, rows].argmax()] == label[i])
  assert found["mAP"] == pytest.approx(np.mean(expected), rel=1e-5)
  assert found["mAP@1"] == pytest.approx(np.mean(first))
  assert found["mAP@3/low"] <= found["mAP@3"] <= found["mAP@3/high"] and len(found) == 9


def test_protocols_by_hand(tmp_path):
  """One query along the first axis; five items in the order of their cosine."""
  angle = np.radians([5, 20, 40, 60, 80])
  gallery = np.stack([np.cos(angle), np.sin(angle)], -1)
  queries = [[1.0, 0.0], [0.0, 1.0]]
  lists = [{"easy": [1], "hard": [3], "junk": [0]}, {"easy": [4]}]
  file = tmp_path / "truth.json"
  file.write_text(json.dumps(lists))
  config = cfg(
    source=arrays(tmp_path, "q", queries),
    source_gallery=arrays(tmp_path, "g", gallery),
    ground_truth=str(file),
    rule="step",
    k=1,
  )
  found = ir.Evaluator(config, PREDICT, make_mesh(replica=1, fsdp=1)).run(STATE)
  assert found == pytest.approx(
    {
      # Easy ignores the hard and the junk: 1 first of 1, 2, 4; the second query's 4 is first.
      "easy/mAP": 1.0,
      "easy/mAP@1": 1.0,
      # Medium: 1 and 3 of 1, 2, 3, 4: (1 + 2/3) / 2.
      "medium/mAP": (5 / 6 + 1) / 2,
      "medium/mAP@1": 1.0,
      # Hard: 3 of 2, 3, 4; the second query has none and does not count.
      "hard/mAP": 0.5,
      "hard/mAP@1": 0.0,
    }
  )
  config = cfg(
    source=arrays(tmp_path, "q", queries),
    source_gallery=arrays(tmp_path, "g", gallery),
    ground_truth=str(file),
  )
  found = ir.Evaluator(config, PREDICT, make_mesh(replica=1, fsdp=1)).run(STATE)
  assert found["hard/mAP"] == pytest.approx((0 + 1 / 2) / 2)  # trapezoid: the benchmark's own


@pytest.mark.parametrize(
  "truth, message",
  [
    ([{}], "has 1 queries, the source 2"),
    ([{"easy": [5]}, {}], "easy has a row outside of the gallery's 5"),
    ([{"ok": [1]}, {}], "list 'ok' is unknown"),
    (["a", "b"], "is not a JSON list of {easy, hard, junk}"),
    (None, "is not a file"),
  ],
)
def test_mistakes_of_the_lists(tmp_path, truth, message):
  file = tmp_path / "truth.json"
  if truth is not None:
    file.write_text(json.dumps(truth))
  with pytest.raises(UserError, match=message):
    ir.load_lists(str(file), "x.ground_truth", 2, 5)


def test_mistakes(tmp_path):
  mesh = make_mesh(replica=1, fsdp=1)
  source = arrays(tmp_path, "q", np.eye(3), [0, 1, 2])
  for changes, message in (
    (dict(k=0), "k = 0; expected a positive whole number"),
    (dict(rule="square"), "rule 'square' is unknown"),
    (dict(source=arrays(tmp_path, "g", np.eye(3))), "needs label"),
  ):
    with pytest.raises(UserError, match=message):
      ir.Evaluator(cfg(**(dict(source=source) | changes)), PREDICT, mesh)
  with pytest.raises(UserError, match="no query has a relevant item"):
    ir.Evaluator(cfg(source=source), PREDICT, mesh).run(STATE)
