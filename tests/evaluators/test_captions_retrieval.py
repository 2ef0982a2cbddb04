"""Retrieval with several captions an image (Karpathy's protocol), by hand and without chunks."""

import base64
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_mesh

from big_vision_like.config import UserError, wrap
from big_vision_like.evaluators import intervals, ranks, retrieval
from big_vision_like.input import tokenizers
from big_vision_like.state import State

STATE = State({}, {}, {}, 0)
MESHES = [dict(replica=1, fsdp=1), dict(replica=2, fsdp=2, tensor=2)]
TOKENS = "tokenize(6, model='train:digits', vocab_size=40)"
CAPTIONS = [
  ["zero", "one"],
  ["two", "three", "four", "five"],
  ["six"],
  ["seven", "one", "nine"],  # "one" also describes the first picture
  ["eight"],
]
WORDS = list(dict.fromkeys(w for words in CAPTIONS for w in words))
IMAGES = np.random.default_rng(0).normal(size=(len(CAPTIONS), 4)).astype(np.float32)
TEXTS = np.random.default_rng(1).normal(size=(len(WORDS), 4)).astype(np.float32)


def picture(value):
  from PIL import Image

  file = io.BytesIO()
  Image.fromarray(np.full((2, 2, 3), value, np.uint8)).save(file, "PNG")
  return base64.b64encode(file.getvalue()).decode()


def predict():
  """Embeds by table: pictures by their brightness, texts by their tokens."""
  encode = tokenizers.sentencepiece("train:digits", 40).encode
  tokens = np.zeros((len(WORDS), 6), np.int32)
  for row, word in zip(tokens, WORDS):
    ids = [*encode(word), 1]
    row[: len(ids)] = ids

  def text(params, aux, batch):
    same = (batch["text"][:, None] == jnp.asarray(tokens)[None]).all(-1)
    return jnp.asarray(TEXTS)[same.argmax(axis=1)]

  image = lambda params, aux, batch: jnp.asarray(IMAGES)[batch["image"][:, 0, 0, 0].astype(int)]
  return {"image_embed": jax.jit(image), "text_embed": jax.jit(text)}


def cfg(tmp_path, **kwargs):
  file = tmp_path / "captions.jsonl"
  rows = [dict(image=picture(i), text=text, image_id=i) for i, text in enumerate(CAPTIONS)]
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))
  base = dict(source=f"jsonl({str(file)!r})", pp="decode", pp_txt=TOKENS, batch_size=4)
  return wrap({"evals": {"x": base | kwargs}}).evals.x


def by_hand(captions, unique):
  """Ranks from 0, counted one by one."""
  owners, words = zip(*((i, w) for i, several in enumerate(captions) for w in several))
  if unique:
    words = list(dict.fromkeys(words))
    right = [[w in several for w in words] for several in captions]
  else:
    right = [[i == owner for owner in owners] for i in range(len(captions))]
  right, z = np.array(right), TEXTS[[WORDS.index(w) for w in words]]
  found = []
  for scores, ok in ((IMAGES @ z.T, right), (z @ IMAGES.T, right.T)):
    best = [max(s[k] for k in np.flatnonzero(o)) for s, o in zip(scores, ok)]
    found.append(
      [sum(s[k] >= b and not o[k] for k in range(len(s))) for s, o, b in zip(scores, ok, best)]
    )
  return found


@pytest.mark.parametrize("shape", MESHES)
@pytest.mark.parametrize("most, unique", [(9, True), (2, True), (9, False)])
def test_all_captions(tmp_path, shape, most, unique):
  config = cfg(tmp_path, captions=most, unique=unique, mean_rank=True)
  found = retrieval.Evaluator(config, predict(), make_mesh(**shape)).run(STATE)
  image, text = by_hand([several[:most] for several in CAPTIONS], unique)
  expected = {}
  for way, rank in (("img2txt", image), ("txt2img", text)):
    expected |= {f"{way}/R@{k}": np.mean(np.array(rank) < k) for k in (1, 5, 10)}
    expected[f"{way}/mean_rank"] = np.mean(rank) + 1
    expected[f"{way}/median_rank"] = np.median(rank) + 1
  assert found == pytest.approx(expected)
  assert found["txt2img/mean_rank"] > 1  # the table is no oracle


def test_published_protocol_counts_every_caption(tmp_path):
  """Eleven captions are eleven queries with `unique=False`; intervals are over them."""
  config = cfg(tmp_path, unique=False, bootstrap=300)
  found = retrieval.Evaluator(config, predict(), make_mesh(replica=1, fsdp=1)).run(STATE)
  _, text = by_hand(CAPTIONS, unique=False)
  assert len(text) == 11 and len(found) == 18
  ends = found["txt2img/R@1/low"], found["txt2img/R@1/high"]
  assert ends == intervals.interval(np.array(text) < 1, 300)


@pytest.mark.parametrize("scores", [1, 40, 1 << 20])
def test_ranks_do_not_depend_on_the_chunk(monkeypatch, scores):
  rng = np.random.default_rng(0)
  queries, items = rng.normal(size=(13, 3)), rng.normal(size=(9, 3))
  pairs = rng.random((13, 9)) < 0.2
  pairs[np.arange(13), rng.integers(9, size=13)] = True
  edges = np.nonzero(pairs)
  shuffled = rng.permutation(len(edges[0]))
  monkeypatch.setattr(retrieval, "SCORES", scores)
  found = retrieval.first_ranks(queries, items, (edges[0][shuffled], edges[1][shuffled]))
  np.testing.assert_array_equal(found, ranks(queries @ items.T, pairs))


@pytest.mark.parametrize("unique", [True, False])
def test_hardest_mistakes_name_the_captions(tmp_path, unique):
  config = cfg(tmp_path, unique=unique)
  found = retrieval.Evaluator(config, predict(), make_mesh(**MESHES[1])).mistakes(STATE, 9)
  expected = []
  for i, several in enumerate(CAPTIONS):
    score = dict(zip(WORDS, IMAGES[i] @ TEXTS.T))
    right = max(several, key=score.get)
    # With `unique=False` another image's caption of the same words is a wrong one.
    others = [w for j, ws in enumerate(CAPTIONS) if j != i for w in ws]
    wrong = max((w for w in others if not unique or w not in several), key=score.get)
    if score[wrong] >= score[right]:
      expected.append((float(score[wrong] - score[right]), i, wrong, right))
  expected.sort(reverse=True)
  assert [(m.index, m.predicted, m.right) for m in found] == [x[1:] for x in expected]
  assert [m.score for m in found] == pytest.approx([x[0] for x in expected], abs=1e-5)
  assert 0 < len(found) < 5


def test_mistakes(tmp_path):
  mesh = make_mesh(replica=1, fsdp=1)
  for changes, message in (
    (dict(pp="decode | drop(text)"), "with pp_txt it has to leave text as is"),
    (dict(pp_txt=""), "pp_txt = '' leaves text of type str; add tokenize"),
    (dict(captions=0), "captions = 0; expected a positive whole number"),
  ):
    with pytest.raises(UserError, match=message):
      retrieval.Evaluator(cfg(tmp_path, **changes), predict(), mesh)
  config = wrap(dict(source="digits()", pp=TOKENS, captions=5))
  with pytest.raises(UserError, match="captions needs pp_txt"):
    retrieval.Evaluator(config, predict(), mesh)
