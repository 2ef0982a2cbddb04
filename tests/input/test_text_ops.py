"""Texts to tokens and masks."""

import gzip
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from big_vision_like.config import UserError
from big_vision_like.input import ops, tokenizers
from big_vision_like.input.bad import BadExample, kind_of
from big_vision_like.input.ops import text_masks

SHARED = pathlib.Path(__file__).parents[3] / "shared/data/text"
CLIP = SHARED / "clip_bpe_simple_vocab_16e6.txt.gz"
TRAINED = "model='train:digit_pairs', vocab_size=64"
some = settings(max_examples=100, deadline=None, derandomize=True)


def rng(seed=0):
  return np.random.default_rng(seed)


# ------------------------------------------------------------------------------------------- CLIP


@pytest.fixture
def tiny(tmp_path):
  """Merges that make "hello", "he" within words, "lo" at their end, and "!!"."""
  file = tmp_path / "merges.txt.gz"
  merges = ["#version", "h e", "l l", "l o</w>", "he ll", "hell o</w>", "! !</w>"]
  file.write_bytes(gzip.compress("\n".join(merges).encode()))
  return file


def names(tokenizer, text):
  return [tokenizer.names[i] for i in tokenizer.encode(text)]


def test_merges_are_applied_in_their_order(tiny):
  clip = tokenizers.clip(str(tiny))
  assert clip.vocab_size == 2 * 256 + 6 + 2
  assert (clip.bos, clip.eos, clip.pad) == (518, 519, 0)
  assert names(clip, "HELLO") == ["hello</w>"]
  assert names(clip, "hell") == ["he", "l", "l</w>"]  # "l l" joins within words only
  assert names(clip, "lo  hello!!") == ["lo</w>", "hello</w>", "!!</w>"]
  assert names(clip, "he12 a_b it's") == [
    *("h", "e</w>", "1</w>", "2</w>", "a</w>", "_</w>", "b</w>"),
    *("i", "t</w>", "'", "s</w>"),
  ]
  assert names(clip, "a &amp;lt; “b”") == ["a</w>", "<</w>", '"</w>', "b</w>", '"</w>']
  assert names(clip, "½²x") == ["Â", "½</w>", "Â", "²</w>", "x</w>"]  # UTF-8, byte by byte
  assert clip.decode([clip.bos, *clip.encode("hello naïve 中 😀"), clip.eos, 3]) == (
    "hello naïve 中 😀"
  )


@some
@given(st.text(max_size=30))
def test_any_text_round_trips(text):
  clip = tokenizers.ClipBytePairs([("a", "b</w>")])
  clean = " ".join(text.split()).lower()
  if clean.isascii() and "&" not in clean and "<|" not in clean:
    assert clip.decode(clip.encode(text)).replace(" ", "") == clean.replace(" ", "")
  assert all(0 <= i < clip.vocab_size for i in clip.encode(text))


def test_clip_tokens_of_a_batch(tiny):
  op = ops.build(f"tokenize(6, 'clip:{tiny}')")
  hello, a = 256 * 2 + 4, 256 + ord("a") - ord("!")
  assert op({"text": "hello a"}, None)["text"].tolist() == [518, hello, a, 519, 0, 0]
  assert op({"text": "a " * 9}, None)["text"].tolist() == [518, a, a, a, a, 519]
  assert op({"text": ""}, None)["text"].tolist() == [518, 519, 0, 0, 0, 0]
  plain = ops.build(f"tokenize(3, 'clip:{tiny}', eos=no)")
  assert plain({"text": "a a a a"}, None)["text"].tolist() == [518, a, a]


@pytest.mark.skipif(not CLIP.exists(), reason="needs CLIP's file of merges in ../shared/data/text")
def test_known_ids_of_clip():
  op = ops.build(f"tokenize(77, 'clip:{CLIP}')")

  def ids(text):
    return op({"text": text}, None)["text"]

  def start(text):
    out = ids(text).tolist()
    return out[: out.index(49407) + 1]

  assert ids("a diagram").shape == (77,) and ids("a diagram").dtype == np.int32
  # As published in CLIP's and Hugging Face's examples.
  assert start("a diagram") == [49406, 320, 22697, 49407]
  assert start("a photo of a cat") == [49406, 320, 1125, 539, 320, 2368, 49407]
  assert start("a photo of a dog") == [49406, 320, 1125, 539, 320, 1929, 49407]
  assert start("Hello, World!") == [49406, 3306, 267, 1002, 256, 49407]
  assert not ids("a dog")[4:].any()


@pytest.mark.parametrize(
  "content, message",
  [
    (None, "No such file"),
    (b"\x1f\x8b broken", "not a file of merges"),
    (b"#\nh e\nhe\n", "line 3 = 'he'"),
    (b"#\nh e\nhel lo\n", "line 3 = 'hel lo'"),
    (b"#\n\xff\xfe\n", "not a file of merges"),
  ],
)
def test_files_that_are_no_merges(tmp_path, content, message):
  file = tmp_path / "merges"
  if content is not None:
    file.write_bytes(content)
  with pytest.raises(UserError) as error:
    ops.build(f"tokenize(8, 'clip:{file}')")
  assert message in str(error.value) and str(file) in str(error.value)


def test_lengths_and_sizes_that_clip_does_not_take(tiny):
  with pytest.raises(UserError, match="length = 1"):
    ops.build(f"tokenize(1, 'clip:{tiny}')")
  with pytest.raises(UserError, match="vocab_size = 9"):
    ops.build(f"tokenize(8, 'clip:{tiny}', 9)")


# ------------------------------------------------------------------------------------------ texts


def test_broken_texts_are_bad_by_kind():
  tokenize = ops.build(f"tokenize(8, {TRAINED})")
  for spec, text, kind in (
    (tokenize, b"\xff\xfe", "not UTF-8"),
    (tokenize, [], "empty text"),
    (tokenize, 3, "not a text"),
    (ops.build("require_text"), "", "empty text"),
    (ops.build("require_text"), " \n", "empty text"),
    (ops.build("require_text"), b"", "empty text"),
    (ops.build("require_text"), ["", " "], "empty text"),
    (ops.build("require_text"), [], "empty text"),
    (ops.build("require_text"), None, "not a text"),
  ):
    with pytest.raises(Exception) as error:
      spec({"text": text}, rng())
    assert kind_of(error.value) == kind
  with pytest.raises(KeyError):
    ops.build("require_text")({}, None)
  assert ops.build("require_text")({"text": ["", "a"]}, None) == {"text": ["a"]}
  assert ops.build("require_text(caption)")({"caption": "a"}, None) == {"caption": "a"}


def test_prompts_are_filled_in():
  one = ops.build("prompt('a {text}, {count} times {text}')")
  assert one({"text": "cat", "count": np.int64(2)}, None)["text"] == "a cat, 2 times cat"
  assert ops.build("prompt")({"text": "{dog}"}, None)["text"] == "a photo of a {dog}"
  two = ops.build("prompts(('a {text}', 'the {text}'), key='prompt')")
  drawn = [two({"text": "cat"}, rng(s))["prompt"] for s in range(200)]
  assert set(drawn) == {"a cat", "the cat"} and 60 < drawn.count("a cat") < 140
  of_list = {one({"text": ["x", "y"], "count": 1}, rng(s))["text"] for s in range(50)}
  assert of_list == {f"a {a}, 1 times {b}" for a in "xy" for b in "xy"}
  for spec in ("prompt('a cat')", "prompts(())", "prompts(('a {text}', 3))"):
    with pytest.raises(UserError, match=r"expected one such as 'a \{text\}'"):
      ops.build(spec)


def test_prefix_and_suffix_have_their_masks():
  op = ops.build(f"tokenize_prefix_suffix(16, {TRAINED})")
  encode = tokenizers.sentencepiece("train:digit_pairs", 64).encode
  out = op({"prefix": "seven on", "suffix": "three", "label": 1}, None)
  given, learnt = encode("seven on") + encode("\n"), encode("three") + [1]
  assert out.keys() == {"label", "text", "prefix_mask", "loss_mask"}
  n, m = len(given), len(given) + len(learnt)
  assert out["text"].tolist() == given + learnt + [0] * (16 - m)
  at = np.arange(16)
  np.testing.assert_array_equal(out["prefix_mask"], at < n)
  np.testing.assert_array_equal(out["loss_mask"], (at >= n) & (at < m))
  assert out["text"].dtype == np.int32 and out["loss_mask"].dtype == bool


def test_a_long_suffix_is_cut_and_a_long_prefix_is_bad():
  op = ops.build(f"tokenize_prefix_suffix(8, {TRAINED})")
  out = op({"prefix": "on", "suffix": "three " * 20}, None)
  assert out["text"][-1] == 1 and (out["prefix_mask"] | out["loss_mask"]).all()
  with pytest.raises(BadExample, match="prefix has") as error:
    op({"prefix": "three " * 20, "suffix": "on"}, None)
  assert error.value.kind == "text too long"


def test_start_of_text_where_the_model_has_one(tiny):
  op = ops.build(f"tokenize_prefix_suffix(8, 'clip:{tiny}', bos=yes)")
  out = op({"prefix": "hello", "suffix": "lo"}, None)
  assert out["text"].tolist() == [518, 516, 514, 519, 0, 0, 0, 0]
  assert out["prefix_mask"].tolist() == [True] * 2 + [False] * 6
  with pytest.raises(UserError, match="no start-of-text"):
    ops.build(f"tokenize_prefix_suffix(8, {TRAINED}, bos=yes)")


# ------------------------------------------------------------------------------------------ masks


@some
@given(st.lists(st.integers(0, 49), max_size=60), st.floats(0.01, 0.99), st.integers(0, 2**32))
def test_bert_mask_chooses_exactly_so_many(tokens, ratio, seed):
  ids = np.array(tokens, np.int32)
  op = text_masks.bert_mask(50, mask_id=3, ratio=ratio)
  out = op({"text": ids}, rng(seed))
  chosen = out["labels"] >= 0
  ordinary = ~np.isin(ids, (0, 1, 3))
  n = ordinary.sum()
  assert chosen.sum() == (max(1, round(ratio * n)) if n else 0)
  assert not (chosen & ~ordinary).any()
  np.testing.assert_array_equal(out["labels"][chosen], ids[chosen])
  np.testing.assert_array_equal(out["text"][~chosen], ids[~chosen])
  assert not np.isin(out["text"][chosen], (0, 1)).any()
  assert out["text"].dtype == out["labels"].dtype == np.int32


def test_bert_masks_eighty_ten_ten():
  ids = np.full(20_000, 7, np.int32)
  out = text_masks.bert_mask(1000, mask_id=999, ratio=0.5)({"text": ids}, rng())
  hidden = out["text"][out["labels"] >= 0]
  share = [(hidden == 999).mean(), (hidden == 7).mean()]
  np.testing.assert_allclose(share, (0.8, 0.1), atol=0.02)
  assert len(set(hidden)) > 500 and (ids == 7).all()


@some
@given(
  st.integers(2, 80), st.integers(0, 5), st.floats(0.01, 0.99), st.floats(1, 9), st.booleans(),
  st.integers(0, 2**32),
)  # fmt: skip
def test_spans_and_what_stays_make_the_text(n, padding, ratio, mean, eos, seed):
  ids = np.concatenate([np.arange(2, n + 2), [1] * eos, [0] * padding]).astype(np.int32)
  out = text_masks.span_mask(170, 170, 999, ratio, mean)({"text": ids}, rng(seed))
  for key in ("inputs", "targets"):
    assert out[key].shape == (170,) and out[key].dtype == np.int32
  source, target = (out[k][: list(out[k]).index(1)].tolist() for k in ("inputs", "targets"))
  hidden = min(max(round(ratio * n), 1), n - 1)
  spans = [t for t in target if t > 500]
  assert spans == [999 - i for i in range(len(spans))] == [t for t in source if t > 500]
  assert len(target) == hidden + len(spans) and len(source) == n - hidden + len(spans)
  assert len(spans) == min(max(round(hidden / mean), 1), hidden, n - hidden)
  assert source[0] < 500 and target[0] == 999 and source[-1] > 500
  pieces = {}
  for t in target:
    if t > 500:
      pieces[t] = []
    else:
      pieces[999 - len(pieces) + 1].append(t)
  assert all(pieces.values())
  whole = [x for t in source for x in (pieces[t] if t > 500 else [t])]
  assert whole == list(range(2, n + 2))


def test_spans_are_drawn():
  ids = np.arange(2, 102)
  op = ops.build("span_mask(120, 40, 999)")
  firsts = {int(np.argmax(op({"text": ids}, rng(s))["inputs"])) for s in range(50)}
  assert len(firsts) > 15


@pytest.mark.parametrize(
  "spec, tokens, error",
  [
    ("bert_mask(10, 3)", [4, 50], "vocab_size = 10, and text has token 50"),
    ("bert_mask(10, 3, ratio=15)", None, "ratio = 15"),
    ("bert_mask(2, 3)", None, "no tokens besides"),
    ("span_mask(8, 8, 99, mean_span=0)", None, "mean_span = 0"),
    ("span_mask(8, 8, 99)", range(2, 40), "inputs = 8; a text of 38 tokens makes"),
    ("span_mask(8, 8, 99)", [5, 1, 0, 0], "text has 1 tokens"),
    ("tokenize(8, 'train:digit_pairs', 64, eos=maybe)", None, "eos"),
    ("tokenize_prefix_suffix(8, 'train:digit_pairs', 64, bos=maybe)", None, "bos"),
  ],
)
def test_mistakes(spec, tokens, error):
  with pytest.raises((UserError, BadExample)) as raised:
    ops.build(spec)({"text": np.array(tokens)}, rng())
  assert error in str(raised.value)
