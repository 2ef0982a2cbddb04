"""Folders of images made here: nested, large, elsewhere, with files that are broken or gone."""

import os
import pickle

import pytest

from big_vision_like.config import UserError
from big_vision_like.input import paths, sources
from big_vision_like.input.bad import BadExample
from big_vision_like.input.sources import folders


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv(paths.CACHE, str(tmp_path / "cache"))


FILES = ("cat/1.jpg", "cat/0.PNG", "cat/deep/er/x.webp", "dog/9.gif", "a b/0.bmp")
OTHERS = ("cat/notes.txt", "cat/.hidden.jpg", ".thumbs/0.jpg", "top.jpg")
IN_ORDER = ["a b/0.bmp", "cat/0.PNG", "cat/1.jpg", "cat/deep/er/x.webp", "dog/9.gif"]


@pytest.fixture
def root(tmp_path):
  folder = tmp_path / "data"
  for name in FILES + OTHERS:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(name.encode())
  return folder


def open_source(path, **options):
  spec = ", ".join(f"{k}={v!r}" for k, v in options.items())
  return sources.open_source(f"image_folder({str(path)!r}, {spec})")


def read(source):
  out = []
  for i in range(len(source)):
    try:
      example = source[i]
      out.append((example["image"].decode(), example["label"], example["text"]))
    except BadExample as e:
      out.append(e.kind)
  return out


def test_classes_are_the_first_folders(root):
  source = open_source(root)
  labels = [(0, "a b"), (1, "cat"), (1, "cat"), (1, "cat"), (2, "dog")]
  assert read(source) == [(n, *label) for n, label in zip(IN_ORDER, labels)]
  assert read(pickle.loads(pickle.dumps(source))) == read(source)
  with pytest.raises(IndexError):
    source[5]


def test_chosen_classes_in_their_order(root):
  source = open_source(root, classes=("dog", "a b"))
  assert read(source) == [("a b/0.bmp", 1, "a b"), ("dog/9.gif", 0, "dog")]
  with pytest.raises(UserError, match="folder 'dogs' is unknown; did you mean dog"):
    open_source(root, classes=("dogs",))


def test_files_that_broke_or_went_after_they_were_listed(root):
  source = open_source(root)
  (root / IN_ORDER[1]).write_bytes(b"")
  (root / IN_ORDER[4]).unlink()
  assert [read(source)[i] for i in (1, 4)] == ["empty file", "missing file"]


def test_nothing_outside_is_read(root, tmp_path):
  (tmp_path / "secret.jpg").write_bytes(b"secret")
  (tmp_path / "elsewhere").mkdir()
  (tmp_path / "elsewhere" / "0.jpg").write_bytes(b"secret")
  os.symlink(tmp_path / "secret.jpg", root / "dog" / "a.jpg")
  os.symlink(root / "dog" / "9.gif", root / "dog" / "b.gif")
  os.symlink(tmp_path / "elsewhere", root / "zoo")
  os.symlink(root, root / "dog" / "loop")
  dog = ("dog/9.gif", 2, "dog")
  assert read(open_source(root))[4:] == [dog, "unsafe path", dog]


def test_the_list_of_a_large_folder_is_kept(root, tmp_path, monkeypatch):
  monkeypatch.setattr(folders, "LARGE", 2)
  made, arrays = [], folders._arrays
  monkeypatch.setattr(folders, "_arrays", lambda files: made.append(1) or arrays(files))
  before = read(open_source(root))
  assert len(before) == 5 and read(open_source(root)) == before and len(made) == 1
  (root / "cat" / "deep" / "er" / "y.jpg").write_bytes(b"new")
  assert len(open_source(root)) == 6 and len(made) == 2
  (root / "cat" / "deep" / "er" / "y.jpg").unlink()
  assert read(open_source(root)) == before and len(made) == 3
  assert len(list((tmp_path / "cache").glob("*.images.npz"))) == 1


def test_a_small_folder_leaves_nothing(root, tmp_path):
  open_source(root)
  assert not (tmp_path / "cache").exists() and not list(tmp_path.glob(".*"))


def test_elsewhere(root):
  fsspec = pytest.importorskip("fsspec")
  fs = fsspec.filesystem("memory")
  fs.put(str(root), "/pictures", recursive=True)
  try:
    source = open_source("memory://pictures")
    assert read(source) == read(open_source(root))
    order = [4, 0, 2, 2]
    assert source.__getitems__(order) == [source[i] for i in order]
    fs.pipe_file("/pictures/cat/0.PNG", b"")
    fs.rm("/pictures/dog/9.gif")
    assert [read(source)[i] for i in (1, 4)] == ["empty file", "missing file"]
    assert source.__getitems__([1, 0, 4]) == [None, source[0], None]
  finally:
    fs.rm("/pictures", recursive=True)


def test_mistakes(root, tmp_path):
  with pytest.raises(UserError, match="is not a folder"):
    open_source(tmp_path / "none")
  with pytest.raises(UserError, match="no class folder"):
    open_source(root / "cat" / "deep" / "er")
