"""Every second of a run is in one category, over crashes too: a scripted clock, checked by hand."""

import json
import logging

import jax
import pytest

from big_vision_like import goodput


class Clock:
  def __init__(self, now=1000.0):
    self.now = now

  def __call__(self):
    return self.now

  def add(self, seconds):
    self.now += seconds


def steps(ledger, clock, first, last, *, wait=0.5, compute=2.0):
  for _ in range(first, last + 1):
    with ledger.phase("data_wait"):
      clock.add(wait)
    clock.add(compute)
    ledger.beat()


def save(ledger, clock, step, seconds=1.0):
  ledger.mark(step)
  with ledger.phase("checkpoint"):
    clock.add(seconds)


def start(tmp_path, clock, step, startup=10.0, restore=0.0):
  ledger = goodput.Ledger(clock, write_seconds=0)
  clock.add(startup)
  ledger.open(tmp_path)
  with ledger.phase("restore"):
    clock.add(restore)
  ledger.resume(step)
  ledger.otherwise("compute")
  return ledger


def spent(tmp_path):
  """Without the categories that are 0."""
  seconds = goodput.read(tmp_path / "goodput.json")["seconds"]
  return {k: v for k, v in seconds.items() if v}


def test_restarts_by_hand(tmp_path):
  clock = Clock()
  ledger = start(tmp_path, clock, 0)
  steps(ledger, clock, 1, 4)
  save(ledger, clock, 4)
  steps(ledger, clock, 5, 6)
  with ledger.phase("evaluation"):
    clock.add(7)
  ledger.beat()
  # Killed 3 s into step 7, which nobody booked; 60 s later it is started again.
  clock.add(3 + 60)
  ledger = start(tmp_path, clock, 4, startup=8, restore=5)
  assert spent(tmp_path) == dict(
    startup=18, restore=5, compute=8, data_wait=2, checkpoint=1, evaluation=7, lost=5, down=63
  )
  steps(ledger, clock, 5, 8)
  save(ledger, clock, 8)
  steps(ledger, clock, 9, 9)
  # Killed. Step 8 turns out to be damaged: step 4 is restored, four steps more are lost.
  ledger = start(tmp_path, clock, 4, startup=8, restore=6)
  steps(ledger, clock, 5, 10, wait=0.0)
  save(ledger, clock, 10)
  ledger.finish()
  assert spent(tmp_path) == dict(
    startup=26,
    restore=11,
    compute=4 * 2 + 6 * 2,
    data_wait=4 * 0.5,
    checkpoint=3,
    evaluation=7,
    lost=2 * 2.5 + 5 * 2.5,
    down=63,
  )
  wall = clock.now - 1000
  assert sum(ledger.seconds().values()) == wall == 149.5
  assert ledger.goodput() == 20 / wall
  content = json.loads((tmp_path / "goodput.json").read_text())
  assert content["goodput"] == pytest.approx(20 / wall, abs=1e-6) and content["finished"]
  assert goodput.told(ledger.seconds()) == (
    "goodput 13.4 % of 149.5 s: down 63.0, startup 26.0, compute 20.0, lost 17.5, restore 11.0, "
    "evaluation 7.0, checkpoint 3.0, data wait 2.0"
  )


def test_killed_before_the_first_save(tmp_path):
  clock = Clock()
  steps(start(tmp_path, clock, 0), clock, 1, 3)
  clock.add(4)
  start(tmp_path, clock, 0)
  assert spent(tmp_path) == dict(startup=20, lost=7.5, down=4)


def test_killed_during_start_up(tmp_path):
  clock = Clock()
  ledger = goodput.Ledger(clock)
  clock.add(3)
  ledger.open(tmp_path)
  clock.add(30)
  start(tmp_path, clock, 0)
  assert spent(tmp_path) == dict(startup=13, down=30)


def test_an_account_younger_than_the_checkpoint(tmp_path):
  """What led to step 7 is not known; what is done after it and again is lost all the same."""
  clock = Clock()
  steps(start(tmp_path, clock, 7), clock, 8, 9)
  assert spent(tmp_path) == dict(startup=10, compute=4, data_wait=1)
  start(tmp_path, clock, 7)
  assert spent(tmp_path) == dict(startup=20, lost=5)


def test_phases_inside_of_phases_count_once():
  clock = Clock()
  ledger = goodput.Ledger(clock)
  ledger.otherwise("compute")
  with ledger.phase("evaluation"):
    clock.add(2)
    with pytest.raises(KeyError), ledger.phase("checkpoint"):
      clock.add(3)
      raise KeyError
    clock.add(4)
  clock.add(5)
  assert {k: v for k, v in ledger.here().items() if v} == dict(
    evaluation=6, checkpoint=3, compute=5
  )


def test_a_finished_run_stands_still(tmp_path):
  clock = Clock()
  ledger = start(tmp_path, clock, 0)
  steps(ledger, clock, 1, 2)
  save(ledger, clock, 2)
  ledger.finish()
  clock.add(9)
  ledger.beat()
  before = (tmp_path / "goodput.json").read_bytes()
  clock.add(1e6)
  with goodput.Ledger(clock) as ledger:  # the same command again: nothing to do
    clock.add(9)
    ledger.open(tmp_path)
    ledger.finish()
  assert (tmp_path / "goodput.json").read_bytes() == before
  clock.add(1e6)
  ledger = start(tmp_path, clock, 2, startup=7)  # it is to run longer
  steps(ledger, clock, 3, 3)
  assert spent(tmp_path) == dict(startup=17, compute=6, data_wait=1.5, checkpoint=1)


def test_written_every_few_seconds_and_by_process_0_only(tmp_path, monkeypatch):
  clock = Clock()
  ledger = goodput.Ledger(clock, write_seconds=10)
  ledger.open(tmp_path)
  ledger.resume(0)
  ledger.otherwise("compute")
  seen = []
  for _ in range(8):
    clock.add(4)
    ledger.beat()
    seen.append(goodput.read(tmp_path / "goodput.json")["last_seen"] - 1000)
  assert seen == [0, 0, 12, 12, 12, 24, 24, 24]
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  other = tmp_path / "other"
  other.mkdir()
  start(other, clock, 0).finish()
  assert list(other.iterdir()) == []


@pytest.mark.parametrize("content", ["", "{", "[]", '{"seconds": {"compute": 1}}'])
def test_a_damaged_file_begins_anew(tmp_path, content, caplog):
  (tmp_path / "goodput.json").write_text(content)
  clock = Clock()
  with caplog.at_level(logging.WARNING):
    start(tmp_path, clock, 4)
  assert "goodput.json is damaged" in caplog.text
  assert spent(tmp_path) == dict(startup=10)


def test_a_clock_that_runs_backwards_adds_nothing(tmp_path):
  clock = Clock()
  ledger = start(tmp_path, clock, 0)
  clock.add(-5)
  ledger.beat()
  clock.add(2)
  assert ledger.seconds()["compute"] == 0
  start(tmp_path, Clock(10.0), 0)  # another machine, whose clock is behind
  assert spent(tmp_path) == dict(startup=20)


def test_no_time_is_no_goodput():
  assert goodput.goodput(dict.fromkeys(goodput.CATEGORIES, 0.0)) == 0
