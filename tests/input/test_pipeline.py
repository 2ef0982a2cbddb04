"""Position is (seed, index): batches are the same for any number of processes and any start."""

import threading
import time

import numpy as np
import pytest

from big_vision_like.config import UserError
from big_vision_like.input import ops, pipeline, reader, sources, tokenizers
from big_vision_like.input.sources import digits
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
  forbidden = {
    t.format(left=WORDS[a], right=WORDS[b]) for a, b in NEW_PAIRS for t in digits._templates()
  }
  assert len(forbidden) == 20 * len(digits._templates())
  assert not {train[i]["text"] for i in range(2000)} & forbidden
  for side in (0, 1):
    assert {pair[side] for pair in pairs} == set(range(10))
  scans = [sources.open_source(f"digits(split='{s}')") for s in ("train", "test")]
  assert sum(map(len, scans)) == 1797
  assert len(scans[1]) == pytest.approx(0.2 * 1797, abs=5)


def test_an_example_depends_on_its_index_alone_whatever_the_integer():
  source = sources.open_source("digit_pairs(split='val')")
  for i in (0, 1, 7):
    assert_same(source[np.int64(i)], source[i])
  assert len({source[np.int64(i)]["label"] for i in range(20)}) > 5


def test_ops_draw_other_numbers_than_the_source(monkeypatch):
  class Drawn:
    def __len__(self):
      return 32

    def __getitem__(self, i):
      rng = np.random.Generator(np.random.Philox(key=3, counter=int(i) << 64))
      return {"x": rng.random()}

  monkeypatch.setattr(reader, "open_source", lambda *_: Drawn())
  monkeypatch.setattr(
    reader.ops, "build", lambda *_: lambda example, rng: {**example, "op": rng.random()}
  )
  [batch] = read(1, shuffle=False)
  assert not np.isin(batch["x"], batch["op"]).any()
  assert len(np.unique(batch["op"])) == 8


def test_eval_covers_every_example_once():
  test = pipeline.eval_reader("digits(split='test')", "drop(text)")
  batches = list(pipeline.eval_batches(test, batch_size=50))
  n = len(sources.open_source("digits(split='test')"))
  assert len(batches) == -(-n // 50)
  seen = np.concatenate([b["index"][b["_mask"]] for b in batches])
  np.testing.assert_array_equal(seen, np.arange(n))
  halves = [
    list(pipeline.eval_batches(test, batch_size=50, process_index=i, process_count=2))
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
  monkeypatch.setattr(reader, "open_source", lambda *_: Flaky(50))
  one = read(20, pp="", max_bad_fraction=0.1)
  two = read(20, pp="", max_bad_fraction=0.1, num_threads=1)
  for a, b in zip(one, two):
    assert_same(a, b)
  assert not np.isin(np.concatenate([b["x"] for b in one]), (0, 50)).any()
  line = f"bad example 50 of {CFG['source']}: ValueError (ValueError: truncated file)"
  assert line in caplog.text
  with pytest.raises(UserError, match=r"more than input.max_bad_fraction = 0.01"):
    read(20, pp="", max_bad_fraction=0.01)


def test_prefetch_keeps_order_and_raises():
  def slow():
    for i in range(5):
      time.sleep(0.01)
      yield i
    raise ValueError("from the worker")

  with pipeline.prefetch_to_device(slow(), lambda x: 10 * x) as batches:
    assert [next(batches) for _ in range(5)] == [0, 10, 20, 30, 40]
    with pytest.raises(ValueError, match="from the worker"):
      next(batches)
    with pytest.raises(StopIteration):
      next(batches)


def test_prefetch_says_what_is_there():
  go = threading.Event()

  def one():
    go.wait()
    yield 1

  with pipeline.prefetch_to_device(one(), lambda x: x) as batches:
    assert not batches.ready()
    go.set()
    assert next(batches) == 1
    with pytest.raises(StopIteration):
      next(batches)
    assert batches.ready()  # the end needs no waiting either


def test_prefetch_ends_and_closes_what_it_reads():
  closed = threading.Event()

  def endless():
    try:
      while True:
        yield 1
    finally:
      closed.set()

  reader = endless()  # kept here, so that nothing but `close` ends it
  with pipeline.prefetch_to_device(reader, lambda x: x) as batches:
    next(batches)
    thread = batches._thread
  assert closed.is_set() and not thread.is_alive()
  assert list(batches) == []
  assert list(pipeline.prefetch_to_device(iter([1, 2]), lambda x: x)) == [1, 2]


def test_prefetch_is_ahead_by_no_more_than_its_size():
  taken = []
  with pipeline.prefetch_to_device(iter(range(100)), taken.append, size=2) as batches:
    next(batches)
    time.sleep(0.3)
    assert len(taken) <= 4  # one used, two queued, one waiting for its place


def test_grain_reads_no_further_ahead_than_asked(monkeypatch):
  asked = []

  class Counting(Flaky):
    def __getitem__(self, i):
      asked.append(i)
      return {"x": np.float32(i)}

  monkeypatch.setattr(reader, "open_source", lambda *_: Counting(50))
  batches = pipeline.train_batches(
    {**CFG, "pp": "", "prefetch": 2, "num_threads": 4}, batch_size=8, seed=0, start_step=0
  )
  next(batches)
  time.sleep(0.3)
  assert len(asked) <= 8 + 2 * 8 + 4


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
  plain = ops.build("tokenize(4, model='train:digit_pairs', vocab_size=64, eos=no)")
  assert plain({"text": text}, None)["text"].tolist() == a.encode(text)[:4]


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
    (lambda: ops.build("tokenize(8, model='train:digit_pairs', vocab_size=5)"), "vocab_size = 5"),
    (lambda: ops.build("tokenize(0, model='train:digit_pairs')"), "length = 0"),
    (lambda: ops.build("tokenize(8, model='train:tfds(name=x)')"), "tfds"),
    (lambda: ops.build("resize((8, 16))"), "write resize(8, 16)"),
    (lambda: ops.build("resize_small(0)"), "smaller = 0"),
    (lambda: ops.build("random_resized_crop(8, area=0.5)"), "expected (low, high)"),
    (lambda: ops.build("value_range(a, 1)"), "low = 'a'"),
    (lambda: ops.build("standardize(0.5, 0.0)"), "std = 0.0"),
    (lambda: ops.build("onehot(ten)"), "classes = 'ten'"),
    (lambda: sources.open_source("digit_pairs(size=0)"), "size = 0"),
    (lambda: read(1, num_threads=-1), "config.input.num_threads = -1"),
    (lambda: read(1, prefetch=0), "config.input.prefetch = 0"),
    (lambda: read(1, max_bad_fraction=2), "max_bad_fraction = 2"),
    (lambda: read(1, count=3), "does not divide by 3 processes"),
  ],
)
def test_mistakes(call, message):
  with pytest.raises(UserError) as error:
    call()
  assert message in str(error.value)


def test_values_an_op_cannot_take_are_told():
  rng = np.random.default_rng(0)
  small = {"image": np.zeros((8, 8, 1), np.uint8)}
  with pytest.raises(ValueError, match="smaller than the crop 9 x 9"):
    ops.build("random_crop(9)")(small, rng)
  with pytest.raises(ValueError, match="not below 10"):
    ops.build("onehot(10)")({"label": -1}, rng)
  np.testing.assert_array_equal(ops.build("onehot(3)")({"label": 2}, rng)["label"], [0, 0, 1])


def test_random_place_keeps_the_image_whole():
  op = ops.build("random_place(4, 6, value=9)", "pp")
  image = np.arange(1, 7, dtype=np.uint8).reshape(2, 3, 1)
  places = set()
  for seed in range(200):
    out = op({"image": image}, np.random.default_rng(seed))["image"]
    assert out.shape == (4, 6, 1) and out.dtype == np.uint8 and (out == 9).sum() == 18
    top, left = (x[0] for x in np.nonzero(out[..., 0] == 1))
    np.testing.assert_array_equal(out[top : top + 2, left : left + 3], image)
    places.add((int(top), int(left)))
  assert places == {(y, x) for y in range(3) for x in range(4)}
  with pytest.raises(ValueError, match="is larger than 2 x 2"):
    ops.build("random_place(2)", "pp")({"image": image}, np.random.default_rng(0))


def test_multi_crop_makes_views():
  op = ops.build("multi_crop(6, 4, num_local=3)", "pp")
  image = np.random.default_rng(0).integers(0, 255, (9, 12, 3)).astype(np.uint8)
  draw = lambda seed: op({"image": image, "label": 1}, np.random.default_rng(seed))
  out = draw(0)
  assert out.keys() == {"label", "global", "local"}
  assert out["global"].shape == (2, 6, 6, 3) and out["local"].shape == (3, 4, 4, 3)
  assert out["global"].dtype == np.uint8
  np.testing.assert_array_equal(out["local"], draw(0)["local"])
  assert not np.array_equal(out["global"][0], out["global"][1])
  assert "local" not in ops.build("multi_crop(6, num_local=0)", "pp")(
    {"image": image}, np.random.default_rng(0)
  )
  with pytest.raises(UserError, match="global_area"):
    ops.build("multi_crop(6, global_area=(0.9, 0.1))", "pp")
