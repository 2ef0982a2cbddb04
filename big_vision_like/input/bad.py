"""Examples that cannot be used: what is wrong with them, by kind, counted and bounded."""

import collections
import logging
from collections.abc import Iterable
from typing import Any, NamedTuple

from big_vision_like.config import UserError

LOGGED = 100
"""Bad examples of a kind that are logged one by one."""
ALWAYS_SEEN = 100
"""Fewer examples than this are too few to call what is bad among them a fraction."""


class BadExample(ValueError):
  """Raised by sources and ops for data that is broken: it is counted, logged and replaced.

  `kind` is a short noun phrase that groups what is alike ("truncated image", "empty text"); the
  message has the details. Mistakes in a config are `UserError`s and end the run at its start.
  """

  def __init__(self, kind: str, message: str):
    super().__init__(message)
    self.kind = kind


def kind_of(error: Exception) -> str:
  """The kind of any exception that an example caused."""
  if isinstance(error, BadExample):
    return error.kind
  if isinstance(error, KeyError):
    return "missing key"
  if isinstance(error, UnicodeDecodeError):
    return "not UTF-8"
  return type(error).__name__


class Bad(NamedTuple):
  """One bad example, as it travels from where it was read to where it is counted."""

  source: str
  index: int
  kind: str
  message: str

  def __str__(self) -> str:
    return f"bad example {self.index} of {self.source}: {self.kind} ({self.message})"


def describe(error: Exception, source: str, index: int) -> Bad:
  """What is known of an example that raised `error`; ops leave their name in its notes."""
  notes = "; ".join(getattr(error, "__notes__", []))
  message = f"{type(error).__name__}: {error}" + (f", {notes}" if notes else "")
  return Bad(source, index, kind_of(error), message)


def check_fraction(value: Any, what: str) -> None:
  """Raises `UserError` where it is no number from 0 to 1; `what` begins the message."""
  if not isinstance(value, (int, float)) or not 0 <= value <= 1:
    raise UserError(f"{what} = {value!r}; expected 0 to 1")


class Counter:
  """Counts bad examples by kind, logs them, and ends the run when they are too many.

  `setting` is where the user gave `max_fraction`.
  """

  def __init__(self, max_fraction: float, setting: str = "input.max_bad_fraction"):
    self.max_fraction, self.setting = max_fraction, setting
    self.seen = 0
    self.kinds: collections.Counter[str] = collections.Counter()

  def add(self, seen: int, found: Iterable[Bad]) -> None:
    """`seen` more examples, those `found` among them were bad.

    Raises:
      UserError: more than `max_fraction` of all are bad: the counts by kind and the last one.
    """
    self.seen += seen
    last = None
    for last in found:
      self.kinds[last.kind] += 1
      if self.kinds[last.kind] <= LOGGED:
        logging.warning("%s", last)
      if self.kinds[last.kind] == LOGGED:
        logging.warning("further examples of the kind %s are counted only", last.kind)
    bad = self.kinds.total()
    if last is not None and bad > self.max_fraction * max(self.seen, ALWAYS_SEEN):
      raise UserError(
        f"{bad} of {self.seen} examples are bad ({self}), more than {self.setting} = "
        f"{self.max_fraction}; the last: {last}"
      )

  def __str__(self) -> str:
    return ", ".join(f"{kind} {n}" for kind, n in self.kinds.most_common())
