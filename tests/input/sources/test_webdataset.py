"""Tar shards made here by tarfile: whole, compressed, elsewhere, cut at every place, hostile."""

import concurrent.futures
import functools
import gzip
import io
import json
import pickle
import tarfile

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from big_vision_like.config import UserError
from big_vision_like.input import paths, pipeline, sources
from big_vision_like.input.bad import BadExample
from big_vision_like.input.formats import fields, tar
from big_vision_like.input.sources import webdataset


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv(paths.CACHE, str(tmp_path / "cache"))


def member(name, data=b"", kind=tarfile.REGTYPE):
  info = tarfile.TarInfo(name)
  info.size, info.type = len(data), kind
  return info, io.BytesIO(data)


def write(path, members, **options):
  """A tar of (name, bytes); returns its bytes."""
  out = io.BytesIO()
  with tarfile.open(fileobj=out, mode="w", **options) as file:
    for name, data in members:
      file.addfile(*member(name, data))
  if path is not None:
    path.write_bytes(out.getvalue())
  return out.getvalue()


def pair(i):
  return [(f"a/{i:03}.jpg", b"image %d " % i * 100), (f"a/{i:03}.txt", f"text {i} \u00e9".encode())]


def pairs(*numbers):
  return [m for i in numbers for m in pair(i)]


def expected(i):
  return {"image": b"image %d " % i * 100, "text": f"text {i} \u00e9", "key": f"a/{i:03}"}


def open_source(pattern, **options):
  spec = ", ".join(f"{k}={v!r}" for k, v in options.items())
  return sources.open_source(f"webdataset({str(pattern)!r}, {spec})")


def read(source):
  """Examples, or the kinds of those that are bad."""
  out = []
  for i in range(len(source)):
    try:
      out.append(source[i])
    except BadExample as e:
      out.append(e.kind)
  return out


def test_shards_in_order_and_at_random(tmp_path):
  for n in range(3):
    write(tmp_path / f"x-{n:02}.tar", pairs(*range(3 * n, 3 * n + 3)))
  source = open_source(f"{tmp_path}/x-{{00..02}}.tar")
  assert read(source) == [expected(i) for i in range(9)]
  assert source[7] == expected(7) == pickle.loads(pickle.dumps(source))[7]
  with pytest.raises(IndexError):
    source[9]
  cfg = dict(source=f"webdataset('{tmp_path}/x-*.tar', keys=text)", pp="", shuffle=False)
  stream = pipeline.train_batches(cfg, batch_size=4, seed=0, start_step=1)
  assert list(next(stream)["text"]) == [expected(i)["text"] for i in (4, 5, 6, 7)]
  stream.close()


def test_an_index_is_made_once_and_anew_when_the_file_changed(tmp_path, monkeypatch):
  made = []
  index = tar.index_samples
  monkeypatch.setattr(tar, "index_samples", lambda *a: made.append(a) or index(*a))
  for count in (2, 2, 3):
    write(tmp_path / "x.tar", pairs(*range(count))) if count * 2 != len(made) * 4 else None
    assert len(open_source(tmp_path / "x.tar")) == count
  assert len(made) == 2


FORMATS = {"pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT, "ustar": tarfile.USTAR_FORMAT}


@pytest.mark.parametrize("name", FORMATS)
def test_names_of_all_formats(tmp_path, name):
  names = ["n" * 95, "d/" * 40 + "x" * 90, "./e/y", "s p a c e"]
  if name != "ustar":
    names += ["long" * 200, "\u00e9\U0001f600" * 60, "f" * 150 + "/" + "g" * 200]
  members = [(f"{n}.txt", n.encode()) for n in names]
  write(tmp_path / "x.tar", members, format=FORMATS[name])
  source = open_source(tmp_path / "x.tar")
  assert [(e["key"], e["text"]) for e in read(source)] == [(n.removeprefix("./"), n) for n in names]


@pytest.mark.filterwarnings("ignore")  # it leaves the file to the garbage collector
def test_it_reads_what_the_library_reads(tmp_path):
  library = pytest.importorskip("webdataset")
  members = [
    *pairs(1),
    ("a/002.left.png", b"l"),
    ("a/002.right.png", b"r"),
    ("noextension", b""),
    (".hidden", b""),
    ("b.c/003.x.y.bin", b"z"),
    ("b.c/004.CLS", b"4"),
  ]
  write(tmp_path / "x.tar", members)
  theirs = library.WebDataset(str(tmp_path / "x.tar"), shardshuffle=False)
  source = open_source(tmp_path / "x.tar")
  assert [e["key"] for e in read(source)] == [s["__key__"] for s in theirs]
  assert read(source) == [
    expected(1),
    {"left": b"l", "right": b"r", "key": "a/002"},
    {"x.y.bin": b"z", "key": "b.c/003"},
    {"label": 4, "key": "b.c/004"},
  ]


def npy(array):
  out = io.BytesIO()
  np.save(out, array)
  return out.getvalue()


def test_fields(tmp_path):
  array = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
  document = {"caption": "c", "width": 3}
  members = [
    ("0.webp", b"w"),
    ("0.mp4", b"v"),
    ("0.flac", b"f"),
    ("0.cls", b" 12\n"),
    ("0.json", json.dumps(document).encode()),
    ("0.npy", npy(array)),
    ("0.boxes.npy", npy(array[0])),
    ("0.text.json", b'["one", "two"]'),
    ("0.bin", b""),
  ]
  write(tmp_path / "x.tar", members)
  [example] = read(open_source(tmp_path / "x.tar"))
  np.testing.assert_array_equal(example.pop("npy"), array)
  np.testing.assert_array_equal(example.pop("boxes"), array[0])
  assert example == dict(
    image=b"w",
    video=b"v",
    audio=b"f",
    label=12,
    json=document,
    text=["one", "two"],
    bin=b"",
    key="0",
  )
  some = read(open_source(tmp_path / "x.tar", keys=("label", "bin", "key")))
  assert some == [dict(label=12, bin=b"", key="0")]
  with pytest.raises(UserError, match="field 'lable' is unknown; did you mean label"):
    open_source(tmp_path / "x.tar", keys="lable")


@pytest.mark.parametrize(
  "name, data, kind",
  [
    ("0.jpg", b"", "empty file"),
    ("0.txt", b"\xff\xfe", "not UTF-8"),
    ("0.cls", b"cat", "not a label"),
    ("0.json", b"{", "not JSON"),
    ("0.npy", npy(np.zeros(9))[:-1], "not an array"),
    ("0.npy", b"no", "not an array"),
    ("0.npy", npy(np.zeros(9)).replace(b"(9,)", b"(1<<", 1), "not an array"),
    ("../0.jpg", b"x", "unsafe path"),
    ("a/../../0", b"x", "unsafe path"),
    ("/etc/0.txt", b"x", "unsafe path"),
    ("..\\0.txt", b"x", "unsafe path"),
  ],
)
def test_bad_members(tmp_path, name, data, kind):
  write(tmp_path / "x.tar", [*pairs(1), (name, data), *pairs(2)])
  assert read(open_source(tmp_path / "x.tar")) == [expected(1), kind, expected(2)]


def test_array_of_objects_is_not_unpickled(tmp_path):
  out = io.BytesIO()
  np.save(out, np.array([{}]), allow_pickle=True)
  write(tmp_path / "x.tar", [("0.npy", out.getvalue())])
  assert read(open_source(tmp_path / "x.tar")) == ["not an array"]


def test_two_files_of_one_field_and_a_missing_one(tmp_path):
  write(tmp_path / "x.tar", [*pairs(1), ("2.jpg", b"x"), ("2.png", b"y")])
  assert read(open_source(tmp_path / "x.tar"))[1] == "duplicate member"
  assert read(open_source(tmp_path / "x.tar", keys=("text", "key")))[1] == "missing key"


def test_links_and_devices_are_left_out(tmp_path):
  with tarfile.open(tmp_path / "x.tar", "w") as file:
    for i, kind in enumerate(
      (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
    ):
      info, _ = member(f"{i}.txt", kind=kind)
      info.linkname = "/etc/passwd"
      file.addfile(info)
      for one in pair(i):
        file.addfile(*member(*one))
  assert read(open_source(tmp_path / "x.tar")) == [expected(i) for i in range(5)]


# ------------------------------------------------------------------------------------- damaged tars


@pytest.mark.parametrize("name", FORMATS)
def test_cut_anywhere(tmp_path, name):
  """Whole samples before the cut are read, what is cut is one bad example, if anything is."""
  members = pairs(1, 2, 3)
  if name != "ustar":
    members = [("l" * 120 + n, data) for n, data in members]
  whole = write(None, members, format=FORMATS[name])
  with tarfile.open(fileobj=io.BytesIO(whole)) as file:
    ends = [m.offset_data + m.size for m in file]
    places = {m.offset_data for m in file} | {m.offset for m in file} | set(ends)
  path = tmp_path / "x.tar"
  path.write_bytes(whole)
  good = read(open_source(path))
  padded = -(-ends[-1] // 512) * 512
  for cut in sorted({p + d for p in places | {padded} for d in (-513, -1, 0, 1, 512)}):
    if 512 <= cut < len(whole):
      path.write_bytes(whole[:cut])
      complete = sum(cut >= end for end in ends[1::2])
      found = read(open_source(path))
      assert found[:complete] == good[:complete], cut
      if complete == 0 and len(found) and cut >= ends[0] and found[0] != "truncated tar":
        # Nothing before it says that the first sample was to have a text.
        assert found.pop(0) == {k: v for k, v in good[0].items() if k != "text"}
      after = -(-ends[2 * complete - 1] // 512) * 512 if complete else 0
      # Between two samples it cannot be told that another one was to come.
      between = cut <= after or cut >= padded or (not complete and not found)
      assert found[complete:] == ([] if between else ["truncated tar"]), cut


def test_a_damaged_header(tmp_path, caplog):
  whole = bytearray(write(None, pairs(1, 2, 3)))
  with tarfile.open(fileobj=io.BytesIO(whole)) as file:
    headers = [m.offset for m in file]
  path = tmp_path / "x.tar"
  for n in range(1, len(headers)):
    damaged = bytearray(whole)
    damaged[headers[n] : headers[n] + 8] = b"\xff" * 8
    path.write_bytes(damaged)
    found = read(open_source(path))
    first = {k: v for k, v in expected(1).items() if k != "text"} if n == 1 else expected(1)
    assert found == [first, *(expected(i + 1) for i in range(1, n // 2)), "truncated tar"]
    assert f"there is no header at byte {headers[n]}" in caplog.text


def test_a_file_that_shrank_or_vanished_after_it_was_opened(tmp_path):
  whole = write(tmp_path / "x.tar", pairs(1, 2))
  write(tmp_path / "y.tar", pairs(3))
  source = open_source(f"{tmp_path}/*.tar")
  (tmp_path / "x.tar").write_bytes(whole[:600])
  (tmp_path / "y.tar").unlink()
  assert read(source) == ["truncated tar", "truncated tar", "missing file"]


@pytest.mark.parametrize(
  "data, message",
  [
    (b"", "is not a tar file: it is empty"),
    (b"\xff\xd8 a picture" * 100, r"is not a tar file: it begins with b'\\xff\\xd8"),
    (b"short", "is not a tar file"),
  ],
)
def test_not_a_tar(tmp_path, data, message):
  (tmp_path / "x.tar").write_bytes(data)
  with pytest.raises(UserError, match=message):
    open_source(tmp_path / "x.tar")


def hostile(**fields):
  """A header with these bytes in it, and the right sum."""
  header = bytearray(write(None, [("0.txt", b"")])[:512])
  for name, data in fields.items():
    at = dict(name=0, size=124, kind=156)[name]
    header[at : at + len(data)] = data
  header[148:156] = b" " * 8
  header[148:156] = b"%06o\0 " % sum(header)
  return bytes(header)


@pytest.mark.parametrize(
  "header",
  [
    hostile(size=b"\x80" + b"\xff" * 11),
    hostile(size=b"\xff" * 12),
    hostile(size=b"-0000000512\0"),
    hostile(size=b"77777777777\0"),
    hostile(size=b"77777777777\0", kind=b"L"),
    hostile(size=b"77777777777\0", kind=b"D"),
    hostile(size=b"00000001000\0", kind=b"x"),
  ],
)
def test_hostile_headers_end_the_walk(tmp_path, header):
  tail = (b"9" * 512, b"12 size=-99\n".ljust(512, b"\0"))
  for data in tail:
    (tmp_path / "x.tar").write_bytes(write(None, pairs(1))[:2560] + header + data + bytes(1024))
    assert read(open_source(tmp_path / "x.tar")) in (
      [expected(1), "truncated tar"],
      [expected(1), "truncated tar", "truncated tar"],
    )


# ------------------------------------------------------------------------ missing, gz and elsewhere


def test_missing_shards(tmp_path):
  write(tmp_path / "x-0.tar", pairs(1))
  with pytest.raises(UserError, match=r"1 of 2 files are missing.*x-1\.tar"):
    open_source(f"{tmp_path}/x-{{0..1}}.tar")
  assert read(open_source(f"{tmp_path}/x-{{0..1}}.tar", allow_missing_shards=True)) == [expected(1)]
  with pytest.raises(UserError, match="no file"):
    open_source(tmp_path / "y.tar")


@pytest.mark.parametrize("ending", ["tar.gz", "tgz"])
def test_gz(tmp_path, ending):
  path = tmp_path / f"x.{ending}"
  path.write_bytes(gzip.compress(write(None, pairs(1, 2))))
  source = open_source(path)
  assert read(source) == [expected(1), expected(2)]
  [copy] = (tmp_path / "cache").glob("*.tar")
  before = copy.stat()
  assert read(open_source(path)) == [expected(1), expected(2)]
  assert copy.stat().st_mtime_ns == before.st_mtime_ns
  path.write_bytes(gzip.compress(write(None, pairs(1, 2, 3))))
  assert read(open_source(path)) == [expected(i) for i in (1, 2, 3)]
  elsewhere = tmp_path / "other"
  open_source(path, cache=str(elsewhere))
  assert len(list(elsewhere.glob("*.tar"))) == 1


def test_gz_in_several_parts(tmp_path):
  whole = write(None, pairs(1, 2))
  parts = [gzip.compress(whole[:3000]), gzip.compress(whole[3000:]), bytes(512)]
  (tmp_path / "x.tgz").write_bytes(b"".join(parts))
  assert read(open_source(tmp_path / "x.tgz")) == [expected(1), expected(2)]


def test_gz_cut_and_not_gz(tmp_path):
  noise = np.random.default_rng(0).bytes(5000)
  whole = gzip.compress(write(None, [*pairs(1), ("a/002.jpg", noise), ("a/002.txt", b"t")]))
  (tmp_path / "x.tar.gz").write_bytes(whole[:4000])
  assert read(open_source(tmp_path / "x.tar.gz")) == [expected(1), "truncated tar"]
  (tmp_path / "x.tar.gz").write_bytes(b"not compressed")
  with pytest.raises(UserError, match="is not a gzip file"):
    open_source(tmp_path / "x.tar.gz")
  assert not list((tmp_path / "cache").glob("*.tmp"))


def test_elsewhere(tmp_path):
  fsspec = pytest.importorskip("fsspec")
  fs = fsspec.filesystem("memory")
  members = [*pairs(1, 2, 3), ("../4.txt", b"x"), ("5.txt", b"\xff"), *pairs(6)]
  with_gz = {"x-0.tar": write(None, members), "x-1.tar": write(None, pairs(7, 8))}
  for name, data in with_gz.items():
    fs.pipe_file(f"/shards/{name}", data)
  fs.pipe_file("/gz/x.tar.gz", gzip.compress(write(None, pairs(9))))
  try:
    source = open_source("memory://shards/x-{0..1}.tar")
    good = [expected(i) for i in (1, 2, 3, 6, 7, 8)]
    everything = [*good[:3], "unsafe path", "not UTF-8", *good[3:]]
    assert read(source) == everything
    order = [7, 0, 3, 4, 2, 0, 6, 5, 1]
    together = [None if isinstance(e, str) else e for e in everything]
    assert source.__getitems__(order) == [together[i] for i in order]
    assert source.__getitems__([]) == []
    assert read(open_source("memory://gz/x.tar.gz")) == [expected(9)]
    with pytest.raises(UserError, match="1 of 3 files are missing"):
      open_source("memory://shards/x-{0..2}.tar")
    fs.rm("/shards/x-1.tar")
    assert read(source)[6] == "missing file"
    assert source.__getitems__([0, 7]) == [expected(1), None]
  finally:
    fs.rm("/shards", recursive=True)
    fs.rm("/gz", recursive=True)


def test_bad_samples_are_counted_and_replaced(tmp_path):
  fs = pytest.importorskip("fsspec").filesystem("memory")
  numbers = range(120)
  members = [*pairs(*numbers[:60]), ("y.txt", b"\xff"), *pairs(*numbers[60:]), ("../x.txt", b"x")]
  fs.pipe_file("/counted/x.tar", write(tmp_path / "x.tar", members))
  try:
    rows = []
    for source in (f"{tmp_path}/x.tar", "memory://counted/x.tar"):
      cfg = dict(source=f"webdataset({source!r})", pp="keep(text)", max_bad_fraction=0.05)
      stream = pipeline.train_batches(cfg, batch_size=61, seed=0, start_step=0)
      rows.append([list(next(stream)["text"]) for _ in range(2)])
      assert stream.bad.kinds == {"unsafe path": 1, "not UTF-8": 1}
      stream.close()
    assert rows[0] == rows[1]
    assert {t for batch in rows[0] for t in batch} == {expected(i)["text"] for i in numbers}
  finally:
    fs.rm("/counted", recursive=True)


def test_members_far_apart_are_read_alone(tmp_path):
  big = np.random.default_rng(0).bytes(200_000)
  members = [("0.txt", b"one"), ("0.bin", big), ("0.cls", b"2"), ("0.png", b"p"), ("0.x.bin", b"")]
  write(tmp_path / "x.tar", members)
  keys = ("text", "label", "image", "x.bin")
  [example] = read(open_source(tmp_path / "x.tar", keys=keys))
  assert example == {"text": "one", "label": 2, "image": b"p", "x.bin": b""}
  [example] = read(open_source(tmp_path / "x.tar"))
  assert example["bin"] == big


# ------------------------------------------------------------------------------- any bytes at all

NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
NAMES = NAMES.filter(lambda name: not name.endswith("/"))  # else it is a folder


@hypothesis.given(
  st.lists(st.tuples(NAMES, st.binary(max_size=600))), st.sampled_from(["pax", "gnu"])
)
@hypothesis.settings(max_examples=100, deadline=None, derandomize=True)
def test_members_are_those_of_tarfile(files, name):
  whole = write(None, files, format=FORMATS[name])
  with tarfile.open(fileobj=io.BytesIO(whole)) as file:
    theirs = [(m.offset_data, m.size) for m in file if m.isreg()]
  ours = list(tar.members(io.BytesIO(whole), len(whole)))
  assert [(m.offset, m.size) for m in ours] == theirs
  assert [m.name for m in ours] == [n for n, _ in files]


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=200, deadline=None, derandomize=True)
def test_any_damage_ends_in_examples_or_a_kind(data):
  name = data.draw(st.sampled_from(sorted(FORMATS)))
  long = "d/" + "l" * 60 if name == "ustar" else "\u00e9" * 200
  raw = bytearray(write(None, [*pairs(1), (f"{long}.txt", b"t"), *pairs(2)], format=FORMATS[name]))
  for _ in range(data.draw(st.integers(1, 4))):
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at : at + 8] = data.draw(st.binary(min_size=1, max_size=8))
  try:
    for member in tar.members(io.BytesIO(raw), len(raw)):
      assert member.offset >= 0 and member.size >= 0
  except tar.Damage as e:
    assert e.at >= 0


@hypothesis.given(st.binary(min_size=0, max_size=400), st.integers(0, 200), st.integers(0, 255))
@hypothesis.settings(max_examples=100, deadline=None, derandomize=True)
def test_any_bytes_as_an_array(junk, at, value):
  damaged = bytearray(npy(np.arange(6.0)))
  damaged[at % len(damaged)] = value
  for raw in (junk, b"\x93NUMPY\x01\x00" + junk, bytes(damaged)):
    try:
      assert isinstance(fields.of_extension("npy")[1](raw), np.ndarray)
    except BadExample as e:
      assert e.kind == "not an array"


def test_threads_share_a_source(tmp_path):
  for n in range(4):
    write(tmp_path / f"x-{n}.tar", pairs(*range(8 * n, 8 * n + 8)))
  source = open_source(f"{tmp_path}/*.tar")
  source._open = functools.lru_cache(2)(webdataset._File)  # files close while others read them
  right = lambda seed: all(
    source[i] == expected(i) for i in np.random.default_rng(seed).integers(0, 32, 200).tolist()
  )
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    assert all(pool.map(right, range(16)))
