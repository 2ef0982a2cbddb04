"""The suite `input`: its data, the processes that take turns, and tiny rows of every kind."""

import tarfile

import numpy as np
import pytest
from PIL import Image

from big_vision_like.input import sources
from tools.bench import harness, input_data, input_peers, processes
from tools.bench import input as suite
from tools.bench.harness import Options

DIGITS = {"source": "digits(split='train')", "pp": "value_range(-1, 1)|keep(image, label)"}


@pytest.fixture
def no_peers(monkeypatch):
  monkeypatch.delenv(processes.INTERPRETERS, raising=False)
  processes.interpreter.cache_clear()
  yield
  processes.interpreter.cache_clear()


def rows(only):
  return {row.name: row for row in suite.rows(Options(only, repeats=1, smoke=True))}


# -------------------------------------------------------------------------------------------- data


def test_pictures_of_a_large_folder_are_links(tmp_path, monkeypatch):
  monkeypatch.setattr(input_data, "PICTURES", 2)
  source = sources.open_source(input_data.write_pictures(tmp_path, 5))
  assert len(source) == 5 and source[0]["image"] == source[4]["image"] != source[1]["image"]
  assert (tmp_path / "class" / "00002.jpg").stat().st_nlink == 3
  with Image.open(tmp_path / "class" / "00001.jpg") as picture:
    assert picture.size == (500, 375)


def test_shards_of_captions_are_tars(tmp_path):
  """Written by array arithmetic, read by the standard library."""
  input_data.write_captions(tmp_path, 25, shards=3)
  found = {}
  for shard in range(3):
    with tarfile.open(tmp_path / f"{shard}.tar") as tar:
      found |= {m.name: tar.extractfile(m).read() for m in tar}
  assert found == {f"{i:08d}.txt": b"%08d" % i for i in range(25)}


def test_shards_hold_every_picture_once(tmp_path):
  paths = input_data.write_shards(tmp_path, 6, 4)
  names = []
  for path in paths:
    with tarfile.open(path) as tar:
      assert tar.getnames()
      names += tar.getnames()
  assert names == [f"{i:06d}.{kind}" for i in range(6) for kind in ("jpg", "txt")]


def test_the_peers_crop():
  picture = Image.fromarray(np.full((40, 60, 3), 255, np.uint8))
  out = input_peers.augmented(picture, 8, np.random.default_rng(0))
  assert out.shape == (3, 8, 8) and out.dtype == np.float32 and (out == 1).all()
  ramp = np.broadcast_to(np.arange(60, dtype=np.uint8)[None, :, None], (40, 60, 3))
  crops = [
    input_peers.augmented(Image.fromarray(ramp), 8, np.random.default_rng(i)) for i in range(20)
  ]
  slopes = {bool(crop[0, 0, 0] < crop[0, 0, -1]) for crop in crops}
  assert slopes == {True, False} and len({crop.tobytes() for crop in crops}) == 20


# --------------------------------------------------------------------------------------- processes


def test_the_first_interpreter_that_has_the_package(tmp_path, monkeypatch, no_peers):
  for name, code in (("lacks", 1), ("has", 0), ("has_too", 0)):
    (tmp_path / name).write_text(f"#!/bin/sh\nexit {code}\n")
    (tmp_path / name).chmod(0o755)
  paths = [str(tmp_path / name) for name in ("lacks", "has", "has_too")]
  monkeypatch.setenv(processes.INTERPRETERS, ":".join(paths))
  assert processes.interpreter("no_such_package") == paths[1]


def test_a_missing_peer_is_a_row_that_says_so(monkeypatch, no_peers):
  monkeypatch.setitem(processes.NEEDS, "tfdata", "no_such_package")
  [row] = rows("decode/tfdata").values()
  assert row.value is None and row.note.startswith(harness.NOT_INSTALLED)
  assert "no_such_package" in row.note
  with pytest.raises(ImportError, match="no_such_package"):
    processes.Process("tfdata")


def test_a_process_that_ends_says_why():
  with pytest.raises(RuntimeError, match=r"unexpected keyword argument 'nonsense'"):
    processes.Process("ours", nonsense=1)


def test_a_fresh_process_measures_its_start():
  found = processes.once("start", cfg=DIGITS, batch=4)
  assert found["imports"] > 0 and found["first"] > 0


# -------------------------------------------------------------------------------------------- rows


def test_rows_of_this_process():
  found = rows("read|digits")
  assert found["read/raw"].values["bytes"] > 32 * 10_000
  for name, examples in (("read/raw", 32), ("digits/direct", 64)):
    assert found[name].values["ours_per_s"] == pytest.approx(examples / found[name].ours.median)


def test_rows_of_processes():
  found = rows("decode/direct|memory")
  row = found["decode/direct"]
  assert row.values["peer_per_s"] == pytest.approx(16 / row.peer.median)
  assert row.values["cpu_ratio"] > 0
  memory = found["memory/epoch"]
  assert memory.values["end_bytes"] > 1 << 20 and 0.5 < memory.value < 5
  assert memory.target.at_most


@pytest.mark.parametrize("row", ["shards/random", "start/million_tar", "start/million_lines"])
def test_rows_of_other_sources(row):
  name = "jsonl" if row.endswith("lines") else "webdataset"
  if name not in sources.functions(sources.MODULES):
    pytest.skip(f"there is no source {name}")
  assert rows(f"^{row}$")[row].value > 0


def test_stall_share():
  cfg = {"source": "digits(split='train')", "pp": "keep(label)"}
  assert 0 <= suite.stall_share(cfg, 4, steps=3, compute=lambda: None) <= 1


def test_names_of_all_rows():
  options = Options("nothing of that name", smoke=True)
  assert not list(suite.rows(options))
  documented = [line.split()[0] for line in suite.__doc__.splitlines() if line.startswith("    ")]
  assert {n.replace("million_tar", "million_*") for n in options.names} >= set(documented)
