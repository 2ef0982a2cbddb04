"""NumPy files made here, and scikit-image's photographs where it is installed."""

import importlib.util

import numpy as np
import pytest

from big_vision_like.config import UserError
from big_vision_like.input import schema, sources


def opened(name, *args, **options):
  parts = [*(repr(str(a)) for a in args), *(f"{k}={v!r}" for k, v in options.items())]
  return sources.open_source(f"{name}({', '.join(parts)})")


@pytest.fixture
def npz(tmp_path):
  x = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
  np.savez(tmp_path / "a.npz", x=x, y=np.array([2, 0, 1]), t=np.array(["a", "bb", "c"]))
  return tmp_path / "a.npz", x


def test_npz(npz):
  path, x = npz
  source = opened("arrays", path, image="x", label="y", text="t")
  assert len(source) == 3
  example = source[1]
  schema.check(example)
  np.testing.assert_array_equal(example["image"], x[1][..., None])
  assert (example["label"], example["text"]) == (0, "bb") and type(example["label"]) is int
  assert opened("arrays", path)[0].keys() == {"x", "y", "t"}
  assert opened("arrays", path)[0]["x"].shape == (4, 5)  # a channel only for images
  with pytest.raises(IndexError):
    source[3]


def test_npy_is_mapped_and_its_rows_are_copies(tmp_path):
  np.save(tmp_path / "a.npy", np.arange(24, dtype=np.float32).reshape(2, 2, 2, 3))
  source = opened("arrays", tmp_path / "a.npy")
  assert isinstance(source.columns["image"], np.memmap)
  image = source[1]["image"]
  assert type(image) is np.ndarray
  image += 1  # neither an error nor a change of the file
  np.testing.assert_array_equal(source[1]["image"] + 1, image)
  assert opened("arrays", tmp_path / "a.npy", key="latent")[0].keys() == {"latent"}


def test_through_fsspec(npz):
  fsspec = pytest.importorskip("fsspec")
  fsspec.filesystem("memory").pipe("/arrays/a.npz", npz[0].read_bytes())
  assert opened("arrays", "memory://arrays/a.npz", label="y")[2] == {"label": 1}
  with pytest.raises(UserError, match="memory://arrays/b"):
    opened("arrays", "memory://arrays/b.npz")


def test_errors(tmp_path, npz):
  with pytest.raises(UserError, match="array 'z' is unknown"):
    opened("arrays", npz[0], image="z")
  np.savez(tmp_path / "b.npz", x=np.zeros(3), y=np.zeros(4))
  with pytest.raises(UserError, match=r"equal length expected, found \{'x': 3, 'y': 4\}"):
    opened("arrays", tmp_path / "b.npz")
  np.savez(tmp_path / "c.npz", x=np.zeros(()))
  with pytest.raises(UserError, match="a scalar"):
    opened("arrays", tmp_path / "c.npz")
  for name, objects in (("d.npz", {"x": np.array([{}])}), ("e.npy", None)):
    save = np.savez if objects else np.save
    save(tmp_path / name, **(objects or {"arr": np.array([{}])}))
    with pytest.raises(UserError, match=r"pickle|[Oo]bject"):
      opened("arrays", tmp_path / name)
  (tmp_path / "f.npz").write_bytes(b"PK no zip")
  for name in ("f.npz", "absent.npz"):
    with pytest.raises(UserError, match=name):
      opened("arrays", tmp_path / name)
  np.save(tmp_path / "g.npy", np.zeros(3))
  with pytest.raises(UserError, match="holds one array"):
    opened("arrays", tmp_path / "g.npy", image="x")


def test_photos():
  pytest.importorskip("skimage")
  source = sources.open_source("photos")
  got = [source[i] for i in range(len(source))]
  assert len(got) >= 10
  for example in got:
    schema.check(example)
    assert example["image"].shape[-1] == 3
  assert len({e["text"] for e in got}) == len(got) == len({e["label"] for e in got})
  [camera] = [e["image"] for e in got if "through a camera" in e["text"]]
  assert (camera == camera[..., :1]).all()  # grey, repeated
  camera[:] = 0
  assert any(e["image"].any() for e in [source[2]])  # what is kept is not what was given


def test_photos_need_scikit_image(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match=r"\[data\]"):
    sources.open_source("photos")
