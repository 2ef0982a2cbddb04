"""Ops of which chance decides."""

import numpy as np
import pytest

from big_vision_like.config import UserError
from big_vision_like.input import ops
from big_vision_like.input.bad import describe


def shares(spec, n=2000):
  op = ops.build(spec)
  found = [tuple(op({"a": 0}, np.random.default_rng(s))) for s in range(n)]
  return {key: found.count(key) / n for key in set(found)}


def test_choice_follows_its_weights():
  got = shares("choice('rename(a, b)', 'rename(a, c)|rename(c, d)', '', weights=(1, 2, 1))")
  assert got.keys() == {("a",), ("b",), ("d",)}
  np.testing.assert_allclose([got[("a",)], got[("b",)], got[("d",)]], [0.25, 0.25, 0.5], atol=0.05)
  assert shares("choice('rename(a, b)', '', weights=(0, 2))", 50) == {("a",): 1}


def test_maybe_follows_its_probability():
  assert shares("maybe(0.3, 'rename(a, b)')")[("b",)] == pytest.approx(0.3, abs=0.05)
  assert shares("maybe(1, 'rename(a, b)')|maybe(0, 'rename(b, c)')", 50) == {("b",): 1}


def test_what_is_certain_draws_nothing():
  op = ops.build(
    "choice('drop(b)')|choice('', 'drop(a)', weights=(1, 0))|maybe(1, '')|maybe(0, '')"
  )
  assert op({"a": 1, "b": 2}, None) == {"a": 1}


def test_choices_nest_and_errors_name_the_way():
  op = ops.build("maybe(1, \"choice('keep(a)', 'keep(a)')\")")
  assert op({"a": 1, "b": 2}, np.random.default_rng(0)) == {"a": 1}
  with pytest.raises(KeyError) as error:
    op({"b": 2}, np.random.default_rng(0))
  bad = describe(error.value, "digits()", 3)
  assert bad.kind == "missing key"
  assert "in op keep; in op choice; in op maybe" in bad.message


@pytest.mark.parametrize(
  "spec, message",
  [
    ("choice()", "no op strings"),
    ("choice('keep(a)', 'kep(a)')", "op choice: string 2: op 'kep' is unknown; did you mean keep"),
    ("choice('keep(', '')", "op choice: string 1: cannot parse"),
    ("choice('', '', weights=(1,))", "expected 2 numbers"),
    ("choice('', weights=(0,))", "weights = (0,)"),
    ("choice('', weights=(-1,))", "weights = (-1,)"),
    ("choice(3)", "op choice: string 1: expected a string"),
    ("maybe(2, 'keep(a)')", "p = 2"),
    ("maybe(0.5, 'kep(a)')", "op maybe: op 'kep'"),
  ],
)
def test_mistakes(spec, message):
  with pytest.raises(UserError) as error:
    ops.build(spec)
  assert message in str(error.value)
