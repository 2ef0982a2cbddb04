"""Class names and prompts as published, label lists of any form, and zero-shot scores of them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_mesh

from big_vision_like.config import UserError, wrap
from big_vision_like.evaluators import prompts, zeroshot
from big_vision_like.state import State

STATE = State({}, {}, {}, 0)
MESHES = [dict(replica=1, fsdp=1), dict(replica=2, fsdp=2, tensor=2)]
TOKENS = "tokenize(4, model='train:digits', vocab_size=40)"

# List -> classes and templates (Radford et al. 2021, Table 9, for the classes).
PUBLISHED = dict(
  imagenet=(1000, 80),
  imagenet_7=(1000, 7),
  imagenet_a=(200, 80),
  imagenet_r=(200, 80),
  cifar10=(10, 18),
  cifar100=(100, 18),
  food101=(101, 1),
  pets=(37, 1),
  birdsnap=(500, 1),
  sun397=(397, 2),
  cars=(196, 8),
  aircraft=(100, 2),
  voc2007=(20, 1),
  dtd=(47, 8),
  caltech101=(102, 34),
  flowers102=(102, 1),
  mnist=(10, 1),
  stl10=(10, 2),
  eurosat=(10, 3),
  resisc45=(45, 18),
  gtsrb=(43, 3),
  kitti=(4, 1),
  country211=(211, 5),
  pcam=(2, 1),
  ucf101=(101, 48),
  kinetics700=(700, 28),
  clevr_counts=(8, 1),
  hateful_memes=(2, 1),
  sst2=(2, 1),
)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_lists(name):
  names, texts, _ = prompts.load_classes(name, "classes")
  classes, templates = PUBLISHED[name]
  assert len(names) == classes and {len(t) for t in texts} == {templates}
  assert all(n.strip() == n and n for n in names)
  assert all("{" not in t for row in texts for t in row)
  assert len({t for row in texts for t in row}) >= 0.99 * classes * templates


def test_every_list_says_where_it_is_from():
  files = list(prompts._data(prompts.PACKAGES[0]))
  assert len(files) == len(PUBLISHED) + 1  # fer2013, below
  assert all("github.com" in json.loads(f.read_text())["notice"] for f in files)


def test_known_entries():
  """Landmarks of the order of the labels, from the lists' own documentation."""
  names, texts, ids = prompts.load_classes("imagenet", "classes")
  assert (names[0], names[1], names[134], names[517]) == (
    "tench",
    "goldfish",
    "crane bird",
    "construction crane",
  )
  assert names[-1] == "toilet paper" and names[21] == "kite (bird of prey)"
  assert ids[0] == "n01440764" and ids[-1] == "n15075141" and ids == sorted(set(ids))
  assert texts[0][0] == "a bad photo of a tench." and texts[0][-1] == "a tattoo of the tench."
  a, _, a_ids = prompts.load_classes("imagenet_a", "classes")
  assert a_ids[0] == "n01498041" and a[0] == names[6] == "stingray"
  r, _, r_ids = prompts.load_classes("imagenet_r", "classes")
  assert r[0] == "goldfish" and r_ids[-1] == ids[988] and r_ids == sorted(r_ids)
  # The file of ImageNet-R: its first classes as the repository's comment lists them.
  assert [m[0] for m in prompts.load_indices("imagenet_r", "mask")][:6] == [1, 2, 4, 6, 8, 9]
  assert prompts.load_classes("cifar10", "")[0] == (
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
  )
  seven = prompts.load_classes("imagenet_7", "classes").texts[0]
  assert seven[0] == "itap of a tench." and len(seven) == 7


def test_synonyms_share_a_class():
  names, texts, _ = prompts.load_classes("fer2013", "classes")
  assert names[3] == "happy" and len(names) == 7
  assert [len(t) for t in texts] == [6, 6, 6, 12, 12, 18, 12]
  assert "they look smiling." in texts[3]


def test_lists_of_any_form(tmp_path):
  (tmp_path / "c.txt").write_text("ein Hund\n\neine Katze\n")
  (tmp_path / "c.json").write_text(json.dumps(["ein Hund", "eine Katze"]))
  (tmp_path / "t.txt").write_text("Bild: {}\n{}!\n")
  for file in ("c.txt", "c.json"):
    names, texts, _ = prompts.load_classes(str(tmp_path / file), "x.classes")
    assert names == ["ein Hund", "eine Katze"] and texts[0] == ["a photo of a ein Hund."]
  load = lambda t: prompts.load_classes(str(tmp_path / "c.txt"), "x.classes", t).texts[1]
  assert load(str(tmp_path / "t.txt")) == ["Bild: eine Katze", "eine Katze!"]
  assert load(("{}",)) == ["eine Katze"] and len(load("cifar10")) == 18
  own = prompts.load_classes("source", "x.classes", own=["a", "b"])
  assert own.names == ["a", "b"] and own.texts == [["a photo of a a."], ["a photo of a b."]]


@pytest.mark.parametrize(
  "classes, templates, message",
  [
    ("source", None, "classes = 'source', but the source has no names"),
    ("cifar11", None, "classes = 'cifar11' is not a file, nor one of .*cifar10"),
    ("cifar10", (), r"x.templates = \(\); expected"),
    ("cifar10", "cifar11", "x.templates = 'cifar11' is not a file"),
    ("cifar10", ("{a}",), "is not {classes, templates}: KeyError"),
  ],
)
def test_mistakes(classes, templates, message):
  with pytest.raises(UserError, match=message):
    prompts.load_classes(classes, "x.classes", templates)


def test_broken_files(tmp_path):
  file = tmp_path / "x.json"
  for text, message in (("{", "is no JSON"), ("3", "is not {classes"), ("{}", "KeyError")):
    file.write_text(text)
    with pytest.raises(UserError, match=message):
      prompts.load_classes(str(file), "x.classes")
  for mask in ([], [-1], ["a"], [[]], 3, {}):
    with pytest.raises(UserError, match="expected a list of classes' numbers"):
      prompts.load_indices(mask, "x.mask")
  assert prompts.load_indices([3, (4, 5)], "x.mask") == [[3], [4, 5]]


def test_labels_by_name():
  classes = prompts.load_classes("pets", "classes")
  own = sorted(n.replace(" ", "_").lower() for n in classes.names)  # the data set's order
  found = prompts.label_map(own, classes)
  assert classes.names[found[1]] == "american bulldog" and sorted(found) == list(range(37))
  assert (
    prompts.label_map([*own, "dodo"], classes) is None and prompts.label_map([], classes) is None
  )
  imagenet = prompts.load_classes("imagenet", "classes")
  assert prompts.label_map(["0", "1", "10", "999"], imagenet).tolist() == [0, 1, 10, 999]
  assert prompts.label_map(["0", "1000"], imagenet) is None
  assert prompts.label_map(["n01443537", "n15075141"], imagenet).tolist() == [1, 999]


def write_folders(tmp_path, counts):
  """Pictures of one brightness a class, named by the class."""
  from PIL import Image

  for i, (name, count) in enumerate(counts.items()):
    (tmp_path / name).mkdir()
    for k in range(count):
      Image.fromarray(np.full((4, 4, 3), 80 * i + k, np.uint8)).save(tmp_path / name / f"{k}.png")


@pytest.mark.parametrize("shape", MESHES)
def test_zeroshot_with_names_synonyms_and_the_mean_of_classes(tmp_path, shape):
  """Three folders of 1, 2 and 6 pictures, on 8 devices a batch that is not full; all by hand."""
  counts = {"a_cat": 1, "b_dog": 2, "c_owl": 6}
  write_folders(tmp_path, counts)
  file = tmp_path / "list.json"
  classes = [["c-owl", "bird"], "A cat", "b dog"]  # another order than the folders
  file.write_text(json.dumps({"classes": classes, "templates": ["{}", "a {}"]}))

  config = wrap(
    dict(
      source=f"image_folder({str(tmp_path)!r})",
      pp="decode | keep(image, label)",
      pp_txt=TOKENS,
      classes=str(file),
      batch_size=4,
      mean_per_class=True,
      bootstrap=200,
    )
  )
  picture = lambda b: jnp.eye(3)[(b["image"][:, 0, 0, 0] // 80).astype(int)]
  # A cat (brightness 0..) looks like axis 1; b_dog like axis 2, c_owl like axis 0, but for three of
  # the owls, which look like cats.
  shown = lambda b: jnp.where(
    b["image"][:, :1, 0, 0] > 162,
    jnp.eye(3)[1][None],
    picture(b) @ jnp.eye(3)[jnp.array([1, 2, 0])],
  )
  predict = {
    "image_embed": jax.jit(lambda p, a, b: shown(b)),
    "text_embed": jax.jit(lambda p, a, b: b["text"][:, :3].astype(jnp.float32)),
  }
  evaluator = zeroshot.Evaluator(config, predict, make_mesh(**shape))
  assert evaluator.classes == ["c-owl", "A cat", "b dog"] and len(evaluator.tokens) == 8
  np.testing.assert_array_equal(evaluator.class_of, [1, 2, 0])
  basis = [0, 0, 0, 0, 1, 1, 2, 2]  # four texts of the first class, two of the others
  evaluator.prompts.tokens = np.eye(3, dtype=np.int32)[basis]
  found = evaluator.run(STATE)
  assert found["accuracy"] == pytest.approx(6 / 9)
  assert found["mean_per_class"] == pytest.approx((1 + 1 + 0.5) / 3)
  assert found.keys() == {"accuracy", "accuracy/low", "accuracy/high", "mean_per_class"}
  assert found["accuracy/low"] < found["accuracy"] < found["accuracy/high"]


def test_the_ensemble_by_hand():
  """Mean of unit embeddings, of length 1 again: e0, e0, e1 -> (2, 1) / sqrt(5)."""
  model = prompts.Prompts.__new__(prompts.Prompts)
  model.mesh, model.text = make_mesh(replica=2, fsdp=2), lambda p, a, b: jnp.eye(2)[b["text"][:, 0]]
  model.tokens = np.array([[0], [0], [1], [1]], np.int32)
  model.classes = prompts.ClassList(["a", "b"], [["x", "y", "z"], ["w"]], [])
  found = model.embed(STATE, 4)
  np.testing.assert_allclose(found, [np.array([2, 1]) / 5**0.5, [0, 1]], rtol=1e-12)


def test_names_of_the_data_set(tmp_path):
  write_folders(tmp_path, {"cat": 2, "dog": 1})
  config = wrap(
    dict(
      source=f"image_folder({str(tmp_path)!r})",
      pp="decode | keep(image, label)",
      pp_txt=TOKENS,
      classes="source",
      templates=("{}", "a {}"),
    )
  )
  predict = {"image_embed": jax.jit(lambda p, a, b: b["label"]), "text_embed": None}
  evaluator = zeroshot.Evaluator(config, predict, make_mesh(replica=1, fsdp=1))
  assert evaluator.classes == ["cat", "dog"] and len(evaluator.tokens) == 4
