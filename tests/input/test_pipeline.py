"""Position is (seed, index): batches are the same for any number of processes and any start."""

import time

import numpy as np
import pytest

from big_vision_like.config import UserError
from big_vision_like.input import ops, pipeline, sources, tokenizers
from big_vision_like.input.sources.digits import NEW_PAIRS, WORDS

PP = "random_crop(8, 12)|flip_lr|value_range(-1, 1)|drop(text)"
CFG = {"source": "digit_pairs(split='train', size=50)", "pp": PP}


def read(steps, start=0, index=0, count=1, **cfg):
  batches = pipeline.train_batches(
    {**CFG, **cfg},
    batch_size=8,
    seed=3,
    start_step=start,
    process_index=index,
    process_count=count,
  )
  return [next(batches) for _ in range(steps)]


def assert_same(a, b):
  assert a.keys() == b.keys()
  for key in a:
    np.testing.assert_array_equal(a[key], b[key])


@pytest.mark.parametrize("count", [2, 4, 8])
def test_any_number_of_processes(count):
  whole = read(10)
  parts = [read(10, index=i, count=count) for i in range(count)]
  for k in range(10):
    joined = {key: np.concatenate([p[k][key] for p in parts]) for key in whole[k]}
    assert_same(joined, whole[k])


def test_resumes_anywhere_and_on_other_thread_counts():
  whole = read(10)
  for start in (1, 7):
    for a, b in zip(read(3, start=start, num_threads=1, prefetch=1), whole[start:]):
      assert_same(a, b)


def test_every_epoch_has_every_example_in_a_new_order():
  spec = "digits(split='test')"
  n = len(sources.open_source(spec))
  cfg = {"source": spec, "pp": "copy(label, was)|drop(text)"}
  labels = np.concatenate([b["was"] for b in read(2 * n // 8 + 1, **cfg)])
  first, second = labels[:n], labels[n : 2 * n]
  assert (first != second).any()
  np.testing.assert_array_equal(np.sort(first), np.sort(second))


def test_index_is_the_global_position():
  np.testing.assert_array_equal(read(2, start=5)[1]["index"], np.arange(48, 56))


def test_held_out_pairs_and_scans_are_never_trained_on():
  train = sources.open_source("digit_pairs(split='train', size=2000)")
  new = sources.open_source("digit_pairs(split='test_new_pairs')")
  pairs = {divmod(train[i]["label"], 10) for i in range(2000)}
  assert len(NEW_PAIRS) == 20 and not pairs & NEW_PAIRS and len(pairs) == 80
  assert {divmod(new[i]["label"], 10) for i in range(300)} <= NEW_PAIRS
  forbidden = {f"{WORDS[a]} left of {WORDS[b]}" for a, b in NEW_PAIRS}
  forbidden |= {f"{WORDS[b]} right of {WORDS[a]}" for a, b in NEW_PAIRS}
  assert not {train[i]["text"] for i in range(2000)} & forbidden
  scans = [sources.open_source(f"digits(split='{s}')") for s in ("train", "test")]
  assert sum(map(len, scans)) == 1797
  assert len(scans[1]) == pytest.approx(0.2 * 1797, abs=5)


def test_eval_covers_every_example_once():
  batches = list(pipeline.eval_batches("digits(split='test')", "drop(text)", batch_size=50))
  n = len(sources.open_source("digits(split='test')"))
  assert len(batches) == -(-n // 50)
  seen = np.concatenate([b["index"][b["_mask"]] for b in batches])
  np.testing.assert_array_equal(seen, np.arange(n))
  halves = [
    list(
      pipeline.eval_batches(
        "digits(split='test')", "drop(text)", batch_size=50, process_index=i, process_count=2
      )
    )
    for i in range(2)
  ]
  for k, batch in enumerate(batches):
    assert_same({key: np.concatenate([h[k][key] for h in halves]) for key in batch}, batch)


class Flaky:
  """Every `period`-th example raises."""

  def __init__(self, period):
    self.period = period

  def __len__(self):
    return 100

  def __getitem__(self, i):
    if i % self.period == 0:
      raise ValueError("truncated file")
    return {"x": np.float32(i)}


def test_bad_examples_are_replaced_and_counted(monkeypatch, caplog):
  monkeypatch.setattr(pipeline, "open_source", lambda spec: Flaky(50))
  one = read(20, pp="", max_bad_fraction=0.1)
  two = read(20, pp="", max_bad_fraction=0.1, num_threads=1)
  for a, b in zip(one, two):
    assert_same(a, b)
  assert not np.isin(np.concatenate([b["x"] for b in one]), (0, 50)).any()
  assert "bad example 50 (ValueError: truncated file)" in caplog.text
  with pytest.raises(RuntimeError, match=r"more than input.max_bad_fraction = 0.01"):
    read(20, pp="", max_bad_fraction=0.01)


def test_prefetch_keeps_order_raises_and_measures():
  def slow():
    for i in range(5):
      time.sleep(0.01)
      yield i
    raise ValueError("from the worker")

  with pipeline.prefetch_to_device(slow(), lambda x: 10 * x) as batches:
    assert [next(batches) for _ in range(5)] == [0, 10, 20, 30, 40]
    assert batches.wait_seconds > 0
    with pytest.raises(ValueError, match="from the worker"):
      next(batches)


def test_tokenizer_is_deterministic_and_round_trips():
  tokenizers.sentencepiece.cache_clear()
  a = tokenizers.sentencepiece("train:digit_pairs", 64)
  tokenizers.sentencepiece.cache_clear()
  b = tokenizers.sentencepiece("train:digit_pairs", 64)
  assert a.model == b.model
  op = ops.build("tokenize(20, model='train:digit_pairs', vocab_size=64)")
  text = "on the left three and on the right seven"
  ids = op({"text": text}, np.random.default_rng(0))["text"]
  assert ids.dtype == np.int32 and ids.shape == (20,)
  assert a.decode(ids) == text
  short = ops.build("tokenize(4, model='train:digit_pairs', vocab_size=64)")
  assert short({"text": text}, None)["text"][-1] == a.eos


@pytest.mark.parametrize(
  "call, message",
  [
    (lambda: sources.open_source("digts()"), "did you mean digits"),
    (lambda: sources.open_source("digits(splt='x')"), "did you mean split"),
    (lambda: sources.open_source("digits(split='tests')"), "did you mean test"),
    (lambda: sources.open_source("image_folder(path='/nowhere')"), "/nowhere is not a folder"),
    (lambda: sources.open_source("tfds(name='nothing_here', data_dir='/nowhere')"), "nothing_here"),
    (lambda: sources.open_source("array_record(pattern='/nowhere/*')"), "no file matches"),
    (lambda: ops.build("resiz(3)"), "did you mean resize"),
    (lambda: ops.build("resize(3, 4, 'bicubicc')"), "did you mean bicubic"),
    (lambda: ops.build("resize()"), "height"),
    (lambda: ops.build("tokenize(8, model='/nowhere.model')"), "/nowhere.model"),
    (lambda: read(1, count=3), "does not divide by 3 processes"),
  ],
)
def test_mistakes(call, message):
  with pytest.raises(UserError) as error:
    call()
  assert message in str(error.value)
