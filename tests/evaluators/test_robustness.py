"""Masks of classes, ReaL labels and effective robustness, by hand and on 8 devices."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_mesh
from scipy.special import expit, logit

from big_vision_like.config import UserError, wrap
from big_vision_like.evaluators import robustness, testbed
from big_vision_like.state import State

STATE = State({}, {}, {}, 0)
MESHES = [dict(replica=1, fsdp=1), dict(replica=2, fsdp=2, tensor=2)]
PREDICT = {"logits": jax.jit(lambda params, aux, batch: batch["image"])}
TOKENS = "tokenize(4, model='train:digits', vocab_size=40)"


def arrays(tmp_path, name, logits, label=None):
  """A source whose images are the logits themselves."""
  more = {} if label is None else {"label": np.asarray(label)}
  np.savez(tmp_path / f"{name}.npz", image=np.asarray(logits, np.float32), **more)
  return f"arrays({str(tmp_path / f'{name}.npz')!r})"


def cfg(sets, **kwargs):
  return wrap({"evals": {"x": dict(sets=sets, pp="", batch_size=4) | kwargs}}).evals.x


@pytest.fixture
def logits():
  return np.random.default_rng(0).normal(size=(11, 8)).astype(np.float32)


@pytest.mark.parametrize("shape", MESHES)
def test_sets_and_masks(tmp_path, logits, shape):
  """Plain; a subset by its own labels and by the model's; members of several classes."""
  label = np.random.default_rng(1).integers(8, size=11)
  mask = [6, 1, 3]
  groups = [[0, 1, 2], [5], [7, 3]]
  (tmp_path / "mask.json").write_text(json.dumps(groups))
  source = arrays(tmp_path, "plain", logits, label)
  few = arrays(tmp_path, "few", logits, label % 3)
  sets = dict(
    plain=source,
    own=dict(source=few, mask=mask),
    all=dict(source=source, mask=mask, labels="all", batch_size=3),
    grouped=dict(source=few, mask=str(tmp_path / "mask.json")),
  )
  found = robustness.Evaluator(cfg(sets), PREDICT, make_mesh(**shape)).run(STATE)
  inside = np.isin(label, mask)
  best = np.stack([logits[:, g].max(1) for g in groups], 1)
  expected = {
    "plain/accuracy": (logits.argmax(1) == label).mean(),
    "plain/top5": np.mean([y in np.argsort(-z)[:5] for y, z in zip(label, logits)]),
    "own/accuracy": (logits[:, mask].argmax(1) == label % 3).mean(),
    "all/accuracy": (np.array(mask)[logits[:, mask].argmax(1)] == label)[inside].mean(),
    "grouped/accuracy": (best.argmax(1) == label % 3).mean(),
  }
  assert found == pytest.approx(expected) and 0 < inside.sum() < 11


@pytest.mark.parametrize("shape", MESHES)
def test_real_labels(tmp_path, logits, shape):
  """Any of the right labels counts; an image without one does not."""
  lists = [list(map(int, np.argsort(-z)[[0, 3]])) for z in logits]  # right by the first
  lists[2], lists[5] = [], []
  for i in (0, 7):
    lists[i] = [int(k) for k in np.argsort(-logits[i])[2:4]]  # wrong
  (tmp_path / "real.json").write_text(json.dumps(lists))
  sets = {"real": dict(source=arrays(tmp_path, "x", logits), real=str(tmp_path / "real.json"))}
  config = cfg(sets, bootstrap=100)
  found = robustness.Evaluator(config, PREDICT, make_mesh(**shape)).run(STATE)
  assert found["real/accuracy"] == pytest.approx(7 / 9) and found["real/top5"] == 1.0
  assert found["real/accuracy/low"] < 7 / 9 < found["real/accuracy/high"]


def test_real_labels_of_folders_go_by_the_name_of_the_file(tmp_path):
  """Folders are in the order of classes, real.json in that of the validation files."""
  from PIL import Image

  for folder, number in (("n1", 3), ("n1", 2), ("n2", 1)):
    (tmp_path / folder).mkdir(exist_ok=True)
    file = tmp_path / folder / f"ILSVRC2012_val_{number:08d}.png"
    Image.fromarray(np.full((2, 2, 3), number, np.uint8)).save(file)
  lists = [[1], [2, 0], [3], []]  # of the pictures of brightness 1, 2, 3, and one that is not there
  file = tmp_path / "real.json"
  file.write_text(json.dumps(lists))
  by_brightness = lambda p, a, b: jax.nn.one_hot(b["image"][:, 0, 0, 0].astype(int), 4)
  sets = {"v": dict(source=f"image_folder({str(tmp_path)!r})", pp="decode", real=str(file))}
  mesh = make_mesh(replica=1, fsdp=1)
  run = lambda: robustness.Evaluator(cfg(sets), {"logits": by_brightness}, mesh).run(STATE)
  assert run() == {"v/accuracy": 1.0}
  file.write_text(json.dumps([[], [2], [0], [1]]))
  assert run() == {"v/accuracy": 0.5}  # picture 1 does not count, 2 is right, 3 is wrong
  file.write_text(json.dumps(lists[:2]))
  with pytest.raises(UserError, match="has labels of 2 images, the split 3"):
    run()


def test_folders_named_by_number(tmp_path):
  """ "10" sorts before "2": labels are 0, 1, 2, and the classes 1, 10 and 2."""
  from PIL import Image

  for number in (1, 2, 10):
    (tmp_path / str(number)).mkdir()
    Image.fromarray(np.full((2, 2, 3), number, np.uint8)).save(tmp_path / str(number) / "x.png")
  predict = {"logits": jax.jit(lambda p, a, b: jax.nn.one_hot(b["image"][:, 0, 0, 0], 12))}
  base = dict(source=f"image_folder({str(tmp_path)!r})", pp="decode")
  mesh = make_mesh(replica=1, fsdp=1)
  sets = dict(
    sorted=base, names=base | dict(labels="names"), few=base | dict(labels="names", mask=[10, 1, 3])
  )
  found = robustness.Evaluator(cfg(sets), predict, mesh).run(STATE)
  assert found["names/accuracy"] == found["few/accuracy"] == 1.0
  assert found["sorted/accuracy"] == pytest.approx(1 / 3)  # only "2" is where it belongs
  few = {"logits": jax.jit(lambda p, a, b: jnp.zeros((len(b["label"]), 10)))}
  with pytest.raises(UserError, match="class 10 of the source, 10 of the model"):
    robustness.Evaluator(cfg(dict(a=sets["names"])), few, mesh).run(STATE)


def test_effective_robustness_by_hand(tmp_path, logits):
  """A testbed on the line logit(y) = 0.5 logit(x) - 1: the residual is what lies above it."""
  x = np.array([0.3, 0.5, 0.8, 0.9])
  y = expit(0.5 * logit(x) - 1)
  assert testbed.fit(x, y) == pytest.approx((0.5, -1.0))
  # 0.6: logit 0.405; 0.5 * 0.405 - 1 = -0.797; its share is 0.3106; 0.4 lies 0.0894 above.
  assert testbed.effective_robustness(0.6, 0.4, x, y) == pytest.approx(0.0894, abs=1e-4)
  rows = [dict(model=f"m{i}", val=a, shifted=b) for i, (a, b) in enumerate(zip(x, y))]
  rows += [dict(model="perfect", val=1.0, shifted=0.5), dict(model="half", val=0.7)]
  (tmp_path / "bed.json").write_text(json.dumps(rows))
  lines = ["model,val,shifted", *(f"{r['model']},{r['val']},{r.get('shifted', '')}" for r in rows)]
  (tmp_path / "bed.csv").write_text("\n".join(lines))
  top = logits.argmax(1)
  label = lambda right: np.where(np.arange(11) < right, top, (top + 1) % 8)
  sets = dict(
    val=arrays(tmp_path, "val", logits, label(7)), shifted=arrays(tmp_path, "s", logits, label(4))
  )
  expected = 4 / 11 - expit(0.5 * logit(7 / 11) - 1)
  for file in ("bed.json", "bed.csv"):
    config = cfg(sets, reference="val", testbed=str(tmp_path / file))
    found = robustness.Evaluator(config, PREDICT, make_mesh(replica=1, fsdp=1)).run(STATE)
    assert found["shifted/effective_robustness"] == pytest.approx(expected, abs=1e-6)
    assert "val/effective_robustness" not in found
  # A model that is right or wrong everywhere has a finite residual too.
  assert testbed.effective_robustness(0.0, 0.2, x, y) == pytest.approx(0.2, abs=1e-3)
  assert testbed.effective_robustness(1.0, 0.2, x, y) == pytest.approx(-0.8, abs=1e-3)


@pytest.mark.parametrize("shape", MESHES)
def test_zero_shot(tmp_path, logits, shape):
  """The classifier is a list of classes: labels by number, within a mask, the scores by hand."""
  file = tmp_path / "classes.json"
  names = ["zero", "one", "two", "three", "four", "five"]
  file.write_text(json.dumps({"classes": names, "templates": ["{}"]}))
  table = np.random.default_rng(3).normal(size=(6, 8)).astype(np.float32)
  table /= np.linalg.norm(table, axis=-1, keepdims=True)
  predict = {
    "image_embed": jax.jit(lambda p, a, b: b["image"]),
    "text_embed": jax.jit(lambda p, a, b: jnp.asarray(table)[b["text"][:, 0]]),
  }
  label = np.random.default_rng(1).integers(6, size=11)
  sets = dict(
    plain=arrays(tmp_path, "plain", logits, label),
    few=dict(source=arrays(tmp_path, "few", logits, label % 2), mask=[4, 2]),
  )
  config = cfg(sets, classes=str(file), pp_txt=TOKENS)
  evaluator = robustness.Evaluator(config, predict, make_mesh(**shape))
  evaluator.prompts.tokens = np.arange(6, dtype=np.int32)[:, None]
  found = evaluator.run(STATE)
  scores = logits @ table.T
  assert found["plain/accuracy"] == pytest.approx((scores.argmax(1) == label).mean())
  assert found["few/accuracy"] == pytest.approx((scores[:, [4, 2]].argmax(1) == label % 2).mean())


def test_a_collapsed_model_scores_zero(tmp_path, logits):
  for value in (0.0, np.nan):
    sets = {"x": dict(source=arrays(tmp_path, "x", logits * 0 + value, [0] * 11), mask=[2, 5])}
    found = robustness.Evaluator(cfg(sets), PREDICT, make_mesh(replica=1, fsdp=1)).run(STATE)
    assert found == {"x/accuracy": 0.0}


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(sets={}), r"sets = .*; expected {name: source}"),
    (dict(sets={"a": dict(sauce="x")}), "sets.a: key 'sauce' is unknown; did you mean source"),
    (dict(mask=[9]), "mask has class 9 of the model's 8"),
    (dict(mask="imagenet_q"), "mask = 'imagenet_q' is not a file"),
    (dict(mask=[1], labels="al"), "labels 'al' is unknown"),
    (dict(labels="names"), "labels = 'names', but the source's classes are none"),
    (dict(mask=[1, 2]), "has label 4, but classes go from 0 to 1"),
    (dict(mask=[6, 7], labels="all"), "no image of the split counts"),
    (dict(real="real.json"), "real = 'real.json' is not a file"),
    (dict(real="real.json", mask=[1]), "has both mask and real"),
    (dict(reference="b"), "reference of a 'b' is unknown"),
  ],
)
def test_mistakes(tmp_path, logits, changes, message):
  source = arrays(tmp_path, "x", logits, [4] * 11)
  config = cfg(changes["sets"] if "sets" in changes else {"a": dict(source=source) | changes})
  with pytest.raises(UserError, match=message):
    robustness.Evaluator(config, PREDICT, make_mesh(replica=1, fsdp=1)).run(STATE)


def test_mistakes_of_the_testbed(tmp_path):
  file = tmp_path / "bed.json"
  for rows, message in (
    ([dict(a=50.0)], "a has 50; accuracies are shares"),
    ([1, 2], "is not a list of {set: accuracy}"),
  ):
    file.write_text(json.dumps(rows))
    with pytest.raises(UserError, match=message):
      testbed.load_testbed(str(file), "x.testbed")
  with pytest.raises(UserError, match="fewer than 2 models"):
    testbed.effective_robustness(0.5, 0.5, np.array([0.5, 1.0]), np.array([0.5, 0.5]))
