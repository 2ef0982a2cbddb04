"""Mixtures, several batches in a step, and the matrix of hosts, workers and starts."""

import multiprocessing
import os
import signal

import numpy as np
import pytest

from big_vision_like.config import UserError
from big_vision_like.input import batching, pipeline

# Random ops, two schemas made one, and weights that do not divide the batch.
MIXTURE = {
  "parts": {
    "pairs": {"source": "digit_pairs(split='train', size=37)", "weight": 2.5},
    "single": {"source": "digits(split='test')", "pp": "random_place(8, 12)|flip_lr|drop(text)"},
  },
  "pp": "random_crop(8, 12)|flip_lr|drop(text)",
}
SEVERAL = {
  "pairs": {**MIXTURE, "batch_size": 8},
  "images": {"source": "digits(split='train')", "pp": "flip_lr|keep(image)"},
}
ONE = {"source": "digit_pairs(split='train', size=50)", "pp": "random_crop(8, 12)|drop(text)"}
BATCH = 16


def read(cfg, steps, start=0, index=0, count=1, **more):
  stream = pipeline.train_batches(
    {**cfg, **more},
    batch_size=BATCH,
    seed=3,
    start_step=start,
    process_index=index,
    process_count=count,
  )
  out = [next(stream) for _ in range(steps)]
  stream.close()
  return out


def flat(batch):
  return {
    f"{k}.{key}": x
    for k, v in batch.items()
    for key, x in (v if isinstance(v, dict) else {"": v}).items()
  }


def assert_same(a, b):
  a, b = flat(a), flat(b)
  assert a.keys() == b.keys()
  for key in a:
    np.testing.assert_array_equal(a[key], b[key])


def joined(parts):
  flats = [flat(p) for p in parts]
  return {key: np.concatenate([f[key] for f in flats]) for key in flats[0]}


@pytest.mark.parametrize("cfg", [ONE, MIXTURE, SEVERAL], ids=["one", "mixture", "several"])
def test_four_hosts_killed_and_resumed_as_two_and_as_eight(cfg):
  """What they read together is the uninterrupted stream, bit for bit."""
  whole = read(cfg, 9, num_threads=1)
  killed_at = 4
  four = [read(cfg, killed_at, index=i, count=4) for i in range(4)]
  for hosts in (2, 8):
    after = [read(cfg, 5, start=killed_at, index=i, count=hosts) for i in range(hosts)]
    for k in range(9):
      parts = [p[k] for p in four] if k < killed_at else [p[k - killed_at] for p in after]
      assert_same(joined(parts), flat(whole[k]))


def test_positions_of_a_mixture_are_those_of_its_parts():
  batches = read(MIXTURE, 6)
  opened = pipeline.Input(MIXTURE, seed=3)
  assert opened.examples(6, BATCH) == {"pairs": 69, "single": 27}
  part, _ = opened.readers[""].order(np.arange(6 * BATCH))
  label = np.concatenate([b["label"] for b in batches])
  assert (label[part == 1] < 10).all()  # single digits; pairs have labels up to 99
  assert (label[part == 0] >= 10).mean() > 0.5
  np.testing.assert_array_equal(np.concatenate([b["index"] for b in batches]), np.arange(96))


def test_several_batches_have_sizes_and_orders_of_their_own():
  [first, second] = read(SEVERAL, 2)
  assert first["pairs"]["image"].shape == (8, 8, 12, 1)
  assert first["images"]["image"].shape == (BATCH, 8, 8, 1)
  np.testing.assert_array_equal(second["pairs"]["index"], np.arange(8, 16))
  np.testing.assert_array_equal(second["images"]["index"], np.arange(16, 32))
  same = {"a": ONE, "b": ONE}  # two streams of one source are not in step
  [batch] = read(same, 1)
  assert not np.array_equal(batch["a"]["label"], batch["b"]["label"])
  assert pipeline.Input(SEVERAL, seed=3).examples(3, BATCH) == {
    "pairs/pairs": 17,
    "pairs/single": 7,
  }


def test_settings_beside_several_batches_hold_for_all():
  with pytest.raises(UserError, match=r"config.input.pairs.num_threads = -1"):
    read({**SEVERAL, "num_threads": -1}, 1)
  own = {**SEVERAL, "pairs": {**SEVERAL["pairs"], "num_threads": 1}, "num_threads": 2}
  assert_same(read(own, 1)[0], read(SEVERAL, 1)[0])


@pytest.mark.parametrize(
  "cfg, message",
  [
    ({}, "config.input has no source, no parts, and no batches by name"),
    ({"a": {"pp": ""}}, "config.input.a has no source"),
    ({**ONE, "parts": {}}, "has source and parts"),
    ({"parts": {}}, "config.input.parts is empty"),
    ({"parts": {"a": "digits()"}}, "config.input.parts.a = 'digits()'"),
    ({"parts": {"a": {"source": "digits()", "weight": 0}}}, "config.input.parts.a.weight = 0"),
    ({"parts": {"a": {"source": "digts()"}}}, "config.input.parts.a.source 'digts' is unknown"),
    ({"parts": {"a": {"source": "digits()", "pp": "flop"}}}, "config.input.parts.a.pp: op 'flop'"),
  ],
)
def test_mistakes(cfg, message):
  with pytest.raises(UserError) as error:
    read(cfg, 1)
  assert message in str(error.value)


def test_examples_that_do_not_stack_are_told():
  digits = {"source": "digits(split='test')"}
  pairs = {"source": "digit_pairs(split='val')"}
  with pytest.raises(UserError, match=r"image is uint8\(8, \d+, 1\) and uint8\(8, \d+, 1\)"):
    read({"parts": {"a": digits, "b": pairs}, "pp": "keep(image)"}, 2)
  with pytest.raises(UserError, match=r"of keys image.* and of keys image.* in one batch"):
    read({"parts": {"a": {**digits, "pp": "keep(image)"}, "b": pairs}}, 2)


def test_texts_and_bytes_keep_their_zeros():
  [batch] = read({"source": "digits(split='test')", "pp": "keep(text)"}, 1)
  assert batch["text"].dtype == object and isinstance(batch["text"][0], str)
  rows = [{"x": b"ab\0\0"}, {"x": b"c"}]
  assert (
    batching.joined([batching.stack(rows, "pp")] * 2, "pp")["x"].tolist()
    == [
      b"ab\0\0",
      b"c",
    ]
    * 2
  )


@pytest.mark.slow
def test_worker_processes_read_the_same_and_say_where_they_died():
  whole = read(SEVERAL, 4)
  for a, b in zip(read(SEVERAL, 4, num_workers=2), whole):
    assert_same(a, b)
  stream = pipeline.train_batches({**ONE, "num_workers": 2}, batch_size=BATCH, seed=3, start_step=0)
  next(stream)
  os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
  with pytest.raises(
    RuntimeError, match=r"example \d+ of digit_pairs\(.*\) \((reading|random_crop|drop)\)"
  ):
    while True:
      next(stream)
