"""Index arithmetic: shuffles are permutations, mixtures keep their weights, at any position."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from big_vision_like.input import order
from big_vision_like.input.order import Order, key_of, permuted
from big_vision_like.input.pipeline import BatchRows

few = settings(max_examples=60, deadline=None, derandomize=True)


@few
@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_permuted_is_a_permutation(n, key):
  out = permuted(np.arange(n), n, np.full(n, key, np.uint64))
  np.testing.assert_array_equal(np.sort(out), np.arange(n))


@few
@given(st.integers(2**31, 2**46), st.integers(0, 2**64 - 1), st.integers(0, 2**31 - 20))
def test_permuted_of_more_than_32_bits(n, key, first):
  out = permuted(np.arange(first, first + 20), n, np.full(20, key, np.uint64))
  assert len(set(out.tolist())) == 20 and out.min() >= 0 and out.max() < n
  assert out.max() > 2**28  # spread over all of it


@pytest.mark.parametrize("n", [3, 4, 5])
def test_all_permutations_are_equally_likely(n):
  keys = np.random.default_rng(0).integers(0, 2**63, 6000, np.uint64)
  at = np.tile(np.arange(n), len(keys))
  rows = permuted(at, n, np.repeat(keys, n)).reshape(-1, n)
  counts = np.array(list(collections.Counter(map(tuple, rows.tolist())).values()))
  expected = len(keys) / len(counts)
  assert len(counts) == np.prod(np.arange(1, n + 1))
  chi2 = ((counts - expected) ** 2 / expected).sum()
  assert chi2 < len(counts) + 5 * np.sqrt(2 * len(counts))  # five standard deviations


def test_neighbours_do_not_stay_neighbours():
  out = permuted(np.arange(10_000), 10_000, np.full(10_000, 5, np.uint64))
  assert abs(np.corrcoef(out[:-1], out[1:])[0, 1]) < 0.05
  assert np.mean(np.abs(np.diff(out)) == 1) < 0.001


@few
@given(
  st.lists(st.integers(1, 40), min_size=1, max_size=4),
  st.data(),
  st.integers(0, 2**32 - 1),
  st.booleans(),
)
def test_order_is_one_function_of_position(sizes, data, seed, shuffle):
  weights = data.draw(
    st.lists(
      st.one_of(st.integers(1, 9), st.floats(0.01, 10)),
      min_size=len(sizes),
      max_size=len(sizes),
    )
  )
  names = [f"p{i}" for i in range(len(sizes))]
  made = Order(dict(zip(names, sizes)), dict(zip(names, weights)), seed=seed, shuffle=shuffle)
  again = Order(dict(zip(names, sizes)), dict(zip(names, weights)), seed=seed, shuffle=shuffle)
  part, index = made(np.arange(3000))
  start = data.draw(st.integers(0, 2999))
  for mine, whole in zip(again(np.arange(start, 3000)), (part, index)):
    np.testing.assert_array_equal(mine, whole[start:])
  # Each part sees its own examples once an epoch, in an order of its own.
  for p, n in enumerate(sizes):
    mine = index[part == p]
    for epoch in range(len(mine) // n):
      np.testing.assert_array_equal(np.sort(mine[epoch * n :][:n]), np.arange(n))
    if not shuffle:
      np.testing.assert_array_equal(mine, np.arange(len(mine)) % n)
  # The shares hold everywhere, and the counter says what was drawn.
  share = np.asarray(weights) / np.sum(weights)
  for stop in (start, 3000):
    drawn = np.bincount(part[:stop], minlength=len(sizes))
    assert made.examples(stop) == dict(zip(names, drawn.tolist()))
    assert np.abs(drawn - share * stop).max() < len(sizes) + 1


def test_whole_weights_that_divide_the_batch_are_exact_in_every_batch():
  made = Order({"a": 7, "b": 100, "c": 5}, {"a": 12, "b": 3, "c": 1}, seed=0)
  part, _ = made(np.arange(160))
  for batch in part.reshape(-1, 16):
    assert np.bincount(batch).tolist() == [12, 3, 1]


def test_small_weights_are_drawn_at_all():
  made = Order({"a": 10, "b": 10}, {"a": 1.0, "b": 1e-9}, seed=0)
  assert made.examples(order.PERIOD + 1)["b"] == 1


def test_streams_of_other_names_and_seeds_are_not_in_step():
  at = np.arange(1000)
  draw = lambda seed, name: Order({"": 1000}, {"": 1}, seed=seed, name=name)(at)[1]
  orders = [draw(0, ""), draw(1, ""), draw(0, "pairs"), draw(0, "images")]
  for i, a in enumerate(orders):
    for b in orders[:i]:
      assert (a == b).mean() < 0.02
  assert key_of(7, "") == 7


def test_epochs_of_one_seed_are_not_those_of_the_next():
  n = 500
  first = Order({"": n}, {"": 1}, seed=0)(np.arange(2 * n))[1]
  second = Order({"": n}, {"": 1}, seed=1)(np.arange(n))[1]
  assert (first[n:] == second).mean() < 0.05 and (first[:n] == first[n:]).mean() < 0.05


@few
@given(st.integers(1, 12), st.integers(1, 8), st.integers(1, 5), st.integers(0, 40), st.data())
def test_chunks_of_all_processes_are_the_batch(windows, processes, window, readers, data):
  batch = windows * processes * window
  k = data.draw(st.integers(0, 1000))
  rows = []
  for i in range(processes):
    mine = BatchRows(batch, i, processes, "config.input", window)
    mine.split(readers)
    for c in range(k * mine.chunks, (k + 1) * mine.chunks):
      first, count = mine(c)
      assert count > 0 and first % window == count % window == 0
      rows += range(first, first + count)
  assert rows == list(range(k * batch, (k + 1) * batch))
