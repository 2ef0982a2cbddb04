"""Patterns, missing shards, nothing outside of a folder, indices that are kept."""

import os

import numpy as np
import pytest

from big_vision_like.config import UserError
from big_vision_like.input import paths
from big_vision_like.input.bad import BadExample


def test_braces():
  assert paths.braces("a-{008..011}.tar") == [f"a-{i:03d}.tar" for i in (8, 9, 10, 11)]
  assert paths.braces("{x,y}/{0..1}") == ["x/0", "x/1", "y/0", "y/1"]
  assert paths.braces("plain.tar") == ["plain.tar"]


def test_missing_shards(tmp_path, caplog):
  for i in (0, 2):
    (tmp_path / f"{i}.tar").write_bytes(b"")
  pattern = f"{tmp_path}/{{0..3}}.tar"
  with pytest.raises(UserError, match=r"2 of 4 files are missing, no file .*1\.tar; allow_missing"):
    paths.expand(pattern, "source x")
  found = paths.expand(pattern, "source x", allow_missing_shards=True)
  assert [os.path.basename(f) for f in found] == ["0.tar", "2.tar"]
  assert "2 shards are missing" in caplog.text
  with pytest.raises(UserError, match="no file"):
    paths.expand(f"{tmp_path}/z*.tar", "source x", allow_missing_shards=True)
  assert paths.expand(f"{tmp_path}/*.tar", "source x") == found


def test_remote_reads_like_local():
  import fsspec

  fs = fsspec.filesystem("memory")
  fs.pipe("/paths_test/a/1.txt", b"0123456789")
  fs.pipe("/paths_test/2.txt", b"")
  assert paths.read_bytes("memory://paths_test/a/1.txt", 2, 5) == b"234"
  assert paths.read_bytes("memory://paths_test/a/1.txt") == b"0123456789"
  assert paths.listed("memory://paths_test", "x", (".txt",)) == ["2.txt", "a/1.txt"]
  assert paths.expand("memory://paths_test/a/*.txt", "x") == ["memory:///paths_test/a/1.txt"]
  with pytest.raises(BadExample, match="absent"):
    paths.read_bytes("memory://paths_test/absent")
  with pytest.raises(UserError, match="nothing://a"):
    paths.read_bytes("nothing://a")


def test_nothing_outside_the_folder(tmp_path):
  folder, secret = tmp_path / "data", tmp_path / "secret"
  folder.mkdir()
  secret.write_text("secret")
  (folder / "link").symlink_to(secret)
  (folder / "sub").mkdir()
  (folder / "inner").symlink_to(folder / "sub")
  for name in ("../secret", "a/../../secret", str(secret), "link", "a\\..\\..\\b", "", "s3://x/y"):
    with pytest.raises(BadExample) as error:
      paths.inside(str(folder), name)
    assert error.value.kind == "unsafe path"
  assert paths.inside(str(folder), "sub/a..b.jpg") == f"{folder}/sub/a..b.jpg"
  assert paths.inside(str(folder), "inner/x") == f"{folder}/inner/x"
  with pytest.raises(BadExample):
    paths.inside("gs://bucket/data", "../x")


def test_an_index_is_made_once_and_anew_when_the_file_changed(tmp_path, monkeypatch):
  monkeypatch.setenv(paths.CACHE, "")
  file = tmp_path / "a.tar"
  file.write_bytes(b"12")
  made = []

  def make(path):
    made.append(path)
    return {"offset": np.arange(os.path.getsize(path))}

  def index(cache=""):
    [found] = paths.cached_index([str(file)], make, "idx", "source x", cache)
    return found["offset"].tolist()

  assert index() == index() == [0, 1] and len(made) == 1
  assert sorted(f.name for f in tmp_path.iterdir()) == [".a.tar.idx.npz", "a.tar"]
  file.write_bytes(b"123")
  assert index() == [0, 1, 2] and len(made) == 2
  (tmp_path / ".a.tar.idx.npz").write_bytes(b"PK\x03\x04 cut by a crash")
  assert index() == [0, 1, 2] and len(made) == 3
  cache = tmp_path / "cache"
  assert index(str(cache)) == [0, 1, 2] and len(made) == 4
  assert len(list(cache.iterdir())) == 1
