"""The op-string language: what is written is what is read, and nothing else gets through."""

import keyword

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from big_vision_like.config import Call, UserError, parse_spec

some = settings(max_examples=100, deadline=None, derandomize=True)
NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True).filter(
  lambda s: not keyword.iskeyword(s)
)
DOTTED = st.lists(NAMES, min_size=1, max_size=3).map(".".join)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ATOMS = (
  st.none()
  | st.booleans()
  | st.integers(-(10**20), 10**20)
  | st.floats(allow_nan=False, allow_infinity=False)
  | TEXTS
  | st.binary(max_size=8)
)
VALUES = st.recursive(
  ATOMS,
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.lists(inner, max_size=3).map(tuple)
    | st.dictionaries(NAMES, inner, max_size=3)
  ),
  max_leaves=6,
)
CALLS = st.builds(
  Call, DOTTED, st.lists(VALUES, max_size=3).map(tuple), st.dictionaries(NAMES, VALUES, max_size=3)
)


@some
@given(st.lists(CALLS, min_size=1, max_size=4))
def test_what_is_written_is_what_is_read(calls):
  assert parse_spec("|".join(map(str, calls)), "pp") == calls


@some
@given(st.lists(CALLS, min_size=1, max_size=3), st.sampled_from(["'", '"']))
def test_strings_within_strings_are_kept(calls, quote):
  inner = "|".join(map(str, calls))
  [outer] = parse_spec(str(Call("choice", (inner, quote), {})), "pp")
  assert parse_spec(outer.args[0], "pp") == calls


PIECES = ["a", "b.c", "(", ")", "[", "]", "{", "}", ",", "=", "|", "'", '"', "\\", "*", "**", "-"]
PIECES += ["lambda", "not", ":", ":=", "1", "1e999", "0x", "...", "\n", "#", "f''", "await", " if "]
GARBAGE = st.text(max_size=30) | st.lists(st.sampled_from(PIECES), max_size=15).map("".join)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(GARBAGE)
def test_garbage_is_a_user_error_or_calls(text):
  try:
    calls = parse_spec(text, "config.input.pp")
  except UserError as e:
    assert str(e).startswith("config.input.pp: ")
  else:
    assert all(isinstance(c, Call) and c.name for c in calls)


@pytest.mark.parametrize(
  "text",
  [
    "f(" * 500,
    "f(" + "(" * 250 + ")" * 250 + ")",
    "|".join("a" * 5000),
    "f(" + "-" * 5000 + "1)",
    "f(" + "9" * 5000 + ")",
    "f({[]: 1})",
    "f({**{}})",
    "f(*a)",
    "f(**a)",
    "f(a=1, a=2)",
    "f(x)(y)",
    "f(g(1))",
    "f[1]",
    "__import__('os').system('true')",
    "a\0b",
    "\ud800",
    3,
    None,
  ],
  ids=lambda text: str(text)[:12].encode("utf-8", "replace").decode(),
)
def test_what_is_no_spec(text):
  with pytest.raises(UserError, match=r"^config\.input\.pp: "):
    parse_spec(text, "config.input.pp")


def test_nothing_is_no_calls():
  assert parse_spec("", "pp") == parse_spec(" \n ", "pp") == []
