"""Hand-worked scores, exact on uneven batches and on 8 devices."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_mesh

from big_vision_like.config import UserError, wrap
from big_vision_like.evaluators import loss, retrieval, zeroshot
from big_vision_like.state import State

STATE = State({}, {}, {}, 0)
MESHES = [dict(replica=1, fsdp=1), dict(replica=2, fsdp=2, tensor=2)]
TOKENS = "tokenize(4, model='train:digits', vocab_size=40)"


def by_mean(params, aux, batch, rng=None):
  """Embeds an image by its mean brightness: two numbers of length 1."""
  angle = jnp.mean(batch["image"].astype(jnp.float32), axis=(1, 2, 3)) / 100
  return jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)


def by_token(params, aux, batch, rng=None):
  angle = batch["text"][:, 1].astype(jnp.float32) / 7
  return jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)


PREDICT = {
  "image_embed": jax.jit(by_mean),
  "text_embed": jax.jit(by_token),
  "loss_per_example": jax.jit(lambda p, a, b, rng: b["label"].astype(jnp.float32)),
}


def cfg(tmp_path, **kwargs):
  base = dict(source="digits(split='test')", batch_size=100)
  return wrap({"evals": {"x": base | kwargs}}).evals.x


@pytest.mark.parametrize("shape", MESHES)
def test_loss_is_the_mean_over_the_split(tmp_path, shape):
  evaluator = loss.Evaluator(cfg(tmp_path, pp="drop(text)"), PREDICT, make_mesh(**shape))
  labels = evaluator.split.map(lambda b: {})["label"]
  assert evaluator.run(STATE)["loss"] == pytest.approx(labels.mean(), rel=1e-12)
  assert len(labels) % evaluator.split.batch_size  # the last batch is not full


@pytest.mark.parametrize("shape", MESHES)
def test_zeroshot(tmp_path, shape):
  file = tmp_path / "classes.json"
  file.write_text(json.dumps({"classes": ["one", "two", "three"], "templates": ["{}", "a {}"]}))
  config = cfg(tmp_path, pp="drop(text)", pp_txt=TOKENS, classes=str(file))
  evaluator = zeroshot.Evaluator(config, PREDICT, make_mesh(**shape))
  # The same by hand, all at once.
  z = np.asarray(by_token(None, None, {"text": jnp.asarray(evaluator.tokens)}))
  z = z.reshape(3, 2, 2).mean(1)
  z /= np.linalg.norm(z, axis=-1, keepdims=True)
  images = evaluator.split.map(lambda b: {"image": b["image"]})
  scores = np.asarray(by_mean(None, None, {"image": jnp.asarray(images["image"])})) @ z.T
  images["label"] %= 3
  rows = evaluator.split.map
  evaluator.split.map = lambda fn: (r := rows(fn)) | {"label": r["label"] % 3}
  expected = (scores.argmax(1) == images["label"]).mean()
  assert evaluator.run(STATE) == {"accuracy": pytest.approx(expected)}
  assert evaluator.pictures(STATE)["similarity"].dtype == np.uint8
  examples = evaluator.examples(STATE, 4)
  assert len(examples) == 4 and examples[0]["image"].shape == (8, 8, 1)


def test_a_collapsed_model_scores_zero(tmp_path):
  same = lambda p, a, b, rng=None: jnp.ones((len(next(iter(b.values()))), 2)) / 2**0.5
  predict = {"image_embed": same, "text_embed": same}
  mesh = make_mesh(replica=1, fsdp=1)
  config = cfg(tmp_path, pp=TOKENS)
  found = retrieval.Evaluator(config, predict, mesh).run(STATE)
  assert found["img2txt/R@1"] == found["img2txt/R@5"] == found["txt2img/R@1"] == 0.0
  config = cfg(tmp_path, pp="drop(text)", pp_txt=TOKENS, classes="digit_pairs")
  assert zeroshot.Evaluator(config, predict, mesh).run(STATE)["accuracy"] == 0.0


def test_a_model_of_nan_scores_zero():
  nan = lambda p, a, b, rng=None: jnp.full((len(next(iter(b.values()))), 2), jnp.nan)
  predict = {"image_embed": nan, "text_embed": nan}
  mesh = make_mesh(replica=1, fsdp=1)
  found = retrieval.Evaluator(cfg(None, pp=TOKENS), predict, mesh).run(STATE)
  assert found["img2txt/R@1"] == found["txt2img/R@1"] == 0.0
  config = cfg(None, pp="drop(text)", pp_txt=TOKENS, classes="digit_pairs")
  assert zeroshot.Evaluator(config, predict, mesh).run(STATE) == {"accuracy": 0.0, "top5": 0.0}
  scores = np.array([[0.1, np.nan]])  # a single one ranks before the right item
  assert retrieval.recall(scores, np.eye(2), np.array([[True, False]]))[1] == 0.0


def test_half_precision_embeddings_and_strings_in_the_split():
  """Retrieval as in float32; a key of strings does not reach the devices."""
  half = lambda fn: lambda *args: fn(*args).astype(jnp.bfloat16)
  predict = {k: half(PREDICT[k]) for k in ("image_embed", "text_embed")}
  mesh = make_mesh(replica=2, fsdp=2)
  found = retrieval.Evaluator(cfg(None, pp=TOKENS), predict, mesh).run(STATE)
  assert all(0 <= v <= 1 for v in found.values()) and len(found) == 6
  config = cfg(None, pp="", pp_txt=TOKENS, classes="digit_pairs")
  kept = zeroshot.Evaluator(config, predict, mesh)
  assert kept.split.strings == ("text",)
  config = cfg(None, pp="drop(text)", pp_txt=TOKENS, classes="digit_pairs")
  assert kept.run(STATE) == zeroshot.Evaluator(config, predict, mesh).run(STATE)


def test_several_captions_of_one_image():
  """`image_id` joins examples: two images, three captions, scores set by hand."""

  class Split:
    def map(self, fn):
      z = np.eye(2)[[0, 0, 1]]
      text = np.array([[0.1, 0.8], [0.9, 0.3], [0.2, 0.5]])
      tokens, ids = np.array([[1], [2], [3]]), np.array([70, 70, 50])
      return dict(zimg=z, ztxt=text, tokens=tokens, image_id=ids, index=np.arange(3))

  evaluator = retrieval.Evaluator(cfg(None, pp=TOKENS), PREDICT, make_mesh(replica=1, fsdp=1))
  evaluator.split = Split()
  found = evaluator.run(STATE)
  # Image 70 finds its second caption first; image 50 finds a caption of 70, its own is second.
  assert found["img2txt/R@1"] == 0.5 and found["img2txt/R@5"] == 1.0
  assert found["txt2img/R@1"] == pytest.approx(2 / 3)  # the first caption prefers image 50


def test_recall_by_hand():
  """Two images; the first has two captions. Nearest texts: image 0 -> text 1, image 1 -> text 0."""
  scores = np.array([[0.1, 0.9, 0.2], [0.8, 0.3, 0.5]])
  pairs = np.array([[True, True, False], [False, False, True]])
  assert retrieval.recall(np.eye(2), scores.T, pairs) == {1: 0.5, 5: 1.0, 10: 1.0}
  # Texts: 0 -> image 1 (wrong), 1 -> image 0 (right), 2 -> image 1 (right).
  assert retrieval.recall(scores.T, np.eye(2), pairs.T)[1] == pytest.approx(2 / 3)


def test_mistakes(tmp_path):
  mesh = make_mesh(replica=1, fsdp=1)
  with pytest.raises(UserError, match="has no predict 'text_embed'; it has image_embed"):
    retrieval.Evaluator(cfg(tmp_path, pp="drop(text)"), {"image_embed": by_mean}, mesh)
  config = cfg(tmp_path, pp="drop(text)", pp_txt=TOKENS, classes="digit_pear")
  with pytest.raises(UserError, match=r"classes = 'digit_pear' is not a file.*digit_pairs"):
    zeroshot.Evaluator(config, PREDICT, mesh)


@pytest.mark.parametrize(
  "pp, pp_txt, classes, message",
  [
    ("drop(text, label)", TOKENS, ["a"], "yields image; .*type needs label"),
    ("", "", ["a"], r"pp_txt = '' leaves text of type str; add tokenize"),
    ("", TOKENS, [], "has 0 classes"),
    ("", TOKENS, [{"left": "a"}], "is not {classes, templates}"),
  ],
)
def test_mistakes_of_a_zeroshot_before_it_runs(tmp_path, pp, pp_txt, classes, message):
  file = tmp_path / "classes.json"
  file.write_text(json.dumps({"classes": classes, "templates": ["{}"]}))
  config = cfg(tmp_path, pp=pp, pp_txt=pp_txt, classes=str(file))
  with pytest.raises(UserError, match=message):
    zeroshot.Evaluator(config, PREDICT, make_mesh(replica=1, fsdp=1))


def test_labels_without_a_class(tmp_path):
  file = tmp_path / "classes.json"
  file.write_text(json.dumps({"classes": [0, 1], "templates": ["{}"]}))
  config = cfg(tmp_path, pp="", pp_txt=TOKENS, classes=str(file))
  evaluator = zeroshot.Evaluator(config, PREDICT, make_mesh(replica=1, fsdp=1))
  assert evaluator.classes == ["0", "1"]
  with pytest.raises(UserError, match="holds 2 classes, but labels of the split go from 0 to 9"):
    evaluator.run(STATE)


def test_retrieval_needs_tokens():
  with pytest.raises(UserError, match="leaves text of type str; add tokenize"):
    retrieval.Evaluator(cfg(None, pp=""), PREDICT, make_mesh(replica=1, fsdp=1))
