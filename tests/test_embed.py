"""tools.embed: every row once and its own, after crashes and on any number of devices."""

import functools
import io
import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_mesh
from PIL import Image

from big_vision_like import checkpoint, step, train
from big_vision_like import state as state_lib
from big_vision_like.config import UserError
from big_vision_like.input import ops
from big_vision_like.input.sources import open_source
from big_vision_like.interop import files
from big_vision_like.state import State
from configs import siglip
from tests import tiny
from tools.embed import __main__ as command
from tools.embed import parts, reading, run

ROOT = pathlib.Path(__file__).parents[1]
STATE = State({}, {}, {}, 0)
MESHES = [dict(replica=1, fsdp=1), dict(replica=2, fsdp=2, tensor=2), dict(fsdp=8)]
PP = "value_range(-1, 1)"
DIGITS = "digits(split='test')"


def encoded(seed, size=(9, 7)):
  out = io.BytesIO()
  pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)
  Image.fromarray(pixels).save(out, "PNG")
  return out.getvalue()


def rows_and_columns(params, aux, batch, rng=None):
  """An embedding that knows its example: sums over columns and over rows, and NaN in padding."""
  x = batch["image"].astype(jnp.float32)[..., 0]
  return jnp.concatenate([x.sum(1), x.sum(2)], axis=1) / batch["_mask"][:, None]


def embed(out, source=DIGITS, mesh=MESHES[0], batch_size=50, part_size=120, pp=PP, **kwargs):
  loader = reading.Loader(source, pp)
  sample, raw = loader.sample()
  loader.columns = reading.kinds_of(raw, [])
  one = run.inputs(sample, pp, "image")
  mesh, fn = make_mesh(**mesh), jax.jit(rows_and_columns)
  size = run.size_of(fn, STATE, one, mesh, "x")
  plan = parts.Plan(
    source, "", len(loader.source), "w", 1, "x", pp, loader.columns, size, part_size
  )
  work = parts.Parts(out, plan)
  run.embed(loader, plan, work, fn, STATE, mesh, one=one, batch_size=batch_size, **kwargs)
  return work


def expected():
  """Embeddings of the digits, one by one."""
  images = [e["image"] for e in map(ops.build(PP), open_source(DIGITS), [None] * 10_000)]
  x = np.stack(images)[..., 0]
  return np.concatenate([x.sum(1), x.sum(2)], axis=1)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("batch_size, part_size", [(50, 120), (7, 364), (512, 512)])
def test_every_row_once_on_any_mesh(tmp_path, mesh, batch_size, part_size):
  out = tmp_path / "x.npz"
  work = embed(out, mesh=mesh, batch_size=batch_size, part_size=part_size)
  assert work.todo() == []
  count, bad = work.merge()
  found = files.load_npz(out)
  digits = list(open_source(DIGITS))
  assert count == len(digits) == 364 and bad == [] and not work.folder.exists()
  assert found["embedding"].dtype == np.float32
  np.testing.assert_allclose(found["embedding"], expected(), atol=1e-5)
  np.testing.assert_array_equal(found["index"], np.arange(364))
  np.testing.assert_array_equal(found["label"], [e["label"] for e in digits])
  assert found["text"].tolist() == [e["text"] for e in digits]


class Killed(Exception):
  pass


@pytest.mark.parametrize("suffix", ["parquet", "npz"])
def test_resumed_equals_one_go_to_the_bit(tmp_path, suffix, monkeypatch):
  one, two = tmp_path / f"one.{suffix}", tmp_path / f"two.{suffix}"
  embed(one).merge()
  write, written = files.write, []

  def killed(path, data):
    if path.name.startswith("00002"):
      path.with_name(path.name + ".part").write_bytes(data[:100])  # half-written
      raise Killed
    written.append(path.name)
    write(path, data)

  monkeypatch.setattr(parts.files, "write", killed)
  with pytest.raises(Killed):
    embed(two)
  assert written == ["plan.json", f"00000.{suffix}", f"00001.{suffix}"]
  monkeypatch.setattr(
    parts.files, "write", lambda path, data: written.append(path.name) or write(path, data)
  )
  work = embed(two)
  assert written[3:] == [f"00002.{suffix}", f"00003.{suffix}"]  # 0 and 1 are not made again
  work.merge()
  assert one.read_bytes() == two.read_bytes()


def test_another_plan_in_the_same_place(tmp_path):
  embed(tmp_path / "x.npz")
  embed(tmp_path / "x.npz", mesh=MESHES[1], batch_size=16)  # devices and batch may differ
  with pytest.raises(UserError, match=r"plan.json was begun with part_size = 120, not 64"):
    embed(tmp_path / "x.npz", part_size=64)
  with pytest.raises(UserError, match=r"begun with pp = .*value_range\(-1, 1\)"):
    embed(tmp_path / "x.npz", pp="value_range(0, 1)")


# ------------------------------------------------------------------------------------------ folder


@pytest.fixture
def folder(tmp_path):
  """Two classes; a file that is cut, an empty one, and what is no image."""
  root = tmp_path / "in"
  for i in range(5):
    for name in ("cat", "dog"):
      (root / name).mkdir(parents=True, exist_ok=True)
      (root / name / f"{i}.png").write_bytes(encoded(i))
  (root / "cat" / "3.png").write_bytes(encoded(3)[:60])
  (root / "dog" / "0.png").write_bytes(b"")
  (root / "dog" / "notes.txt").write_text("no image")
  (root / ".hidden").mkdir()
  (root / ".hidden" / "0.png").write_bytes(encoded(0))
  return root


def test_folder_of_classes_and_bad_images(tmp_path, folder):
  import pyarrow.parquet as pq

  out, pp = tmp_path / "x.parquet", "decode|resize(8)|value_range(-1, 1)"
  work = embed(out, str(folder), MESHES[2], 4, 5, pp, max_bad=1.0)
  count, bad = work.merge()
  table = pq.read_table(out)
  assert count == len(table) == 8 and str(table.schema.field("embedding").type).startswith("fixed")
  names = [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(5)]
  good = [i for i in range(10) if names[i] not in ("cat/3.png", "dog/0.png")]
  assert table["index"].to_pylist() == good
  assert table["path"].to_pylist() == [names[i] for i in good]
  assert table["label"].to_pylist() == [i // 5 for i in good]
  assert table["text"].to_pylist() == ["cat" if i < 5 else "dog" for i in good]
  assert [(b["index"], b["path"]) for b in bad] == [(3, "cat/3.png"), (5, "dog/0.png")]
  assert [b["kind"] for b in bad] == ["truncated image", "empty file"]
  listing = (tmp_path / "x.parquet.bad.jsonl").read_text().splitlines()
  assert [json.loads(line) for line in listing] == bad
  z = np.stack(table["embedding"].to_numpy())
  np.testing.assert_array_equal(z[good.index(1)], z[good.index(6)])  # the same picture
  assert np.isfinite(z).all() and not np.array_equal(z[0], z[1])


def test_too_many_bad_ones_end_it(tmp_path, folder):
  pp = "decode|resize(8)|value_range(-1, 1)"
  with pytest.raises(UserError, match=r"truncated image 1.*more than --max-bad-fraction = 0.01"):
    embed(tmp_path / "x.npz", str(folder), batch_size=4, part_size=5, pp=pp)
  # What was finished counts when it goes on; what went wrong before does too.
  with pytest.raises(UserError, match="2 of 9 examples are bad"):
    embed(tmp_path / "x.npz", str(folder), batch_size=4, part_size=5, pp=pp, max_bad=0.015)


def test_flat_folder(tmp_path):
  for i in range(3):
    (tmp_path / f"{i}.png").write_bytes(encoded(i))
  source = reading.open_input(str(tmp_path))
  assert len(source) == 3 and source[1].keys() == {"image", "path"} and source[1]["path"] == "1.png"
  (tmp_path / "deep").mkdir()
  (tmp_path / "deep" / "0.png").write_bytes(encoded(0))
  found = reading.open_input(str(tmp_path))  # not all are in folders: no classes
  assert found.paths == ["0.png", "1.png", "2.png", "deep/0.png"] and found.classes == []
  with pytest.raises(UserError, match="no images there"):
    (tmp_path / "empty").mkdir()
    reading.open_input(str(tmp_path / "empty"))


def test_images_of_different_sizes(tmp_path):
  (tmp_path / "0.png").write_bytes(encoded(0))
  (tmp_path / "1.png").write_bytes(encoded(1, (9, 8)))
  with pytest.raises(UserError, match="resize, crop or pad it"):
    embed(tmp_path / "x.npz", str(tmp_path), pp="decode")


# ---------------------------------------------------------------------------------- preprocessing


def test_ops_of_the_evaluation():
  tokens = "lower|tokenize(8, model='bytes')"
  evals = {
    "plain": {"type": "x"},
    "knn": {
      "pp": "decode|resize(8, method='area')|onehot(10)|value_range(-1, 1)|keep(image, label)"
    },
    "val": {"pp": f"decode|value_range(0, 1)|{tokens}|keep(image, text)"},
  }
  pp = lambda *args: reading.evaluation_pp({"evals": evals}, *args)
  assert pp("image") == "decode|resize(8, method='area')|value_range(-1, 1)"
  assert pp("image", "val") == "decode|value_range(0, 1)"
  assert pp("text") == tokens
  with pytest.raises(UserError, match=r"no op on texts in config.evals.knn"):
    pp("text", "knn")
  with pytest.raises(UserError, match=r"--eval 'vall' is unknown; did you mean val"):
    pp("image", "vall")
  with pytest.raises(UserError, match="give --pp"):
    reading.evaluation_pp({"evals": {}}, "image")


def test_columns():
  raw = {
    "label": np.int64(3),
    "text": ["a", "b"],
    "image": b"x",
    "url": b"u",
    "boxes": np.ones((2, 4)),
  }
  assert reading.kinds_of(raw, ["url"]) == {"label": "int", "text": "str", "url": "str"}
  assert reading.value(["a", b"\xc3\xa4"], "str") == '["a", "ä"]'
  with pytest.raises(UserError, match="--key 'boxes'"):
    reading.kinds_of(raw, ["boxes"])


# ----------------------------------------------------------------------------------- from the shell


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """A run whose only checkpoint is its initial state."""
  folder = tmp_path_factory.mktemp("run")
  val = siglip.get_config("smoke").evals.val.to_dict()
  config = tiny.wrapped(evals={"val": val})
  built = train.build(config, num_examples=100)
  train.claim_workdir(folder, config, False)
  with jax.set_mesh(built.mesh), checkpoint.Checkpointer(folder / "checkpoints") as saved:
    state = state_lib.init(built.method, built.tx, jax.random.key(0), built.batch, built.shardings)
    saved.save(0, state)
    saved.wait()
  return folder


def test_command_line(workdir, tmp_path, capsys, monkeypatch):
  """Image and text embeddings, as the evaluators get them from predict."""
  monkeypatch.setattr(train, "restore", functools.cache(train.restore))
  config, method, state, mesh = train.restore(str(workdir), None)
  source = "digit_pairs(split='val', size=21)"
  own = ops.build(config.evals.val.pp)
  examples = [own(dict(open_source(source)[i]), np.random.default_rng(0)) for i in range(21)]
  batch = {k: np.stack([e[k] for e in examples])[[*range(21), *[0] * 3]] for k in ("image", "text")}
  args = ["--workdir", str(workdir), "--input", source, "--batch-size", "9"]
  for name in ("image_embed", "text_embed"):
    out = tmp_path / f"{name}.npz"
    assert command.main([*args, "--out", str(out), "--predict", name]) == 0
    with jax.set_mesh(mesh):
      z = step.jit_predict(method)[name](state.params, state.aux, batch)
    found = files.load_npz(out)
    np.testing.assert_allclose(found["embedding"], z[:21], atol=1e-5)
    assert json.loads(str(found["plan"]))["step"] == 0
  said = capsys.readouterr().out
  assert "21/21 examples" in said and "21 embeddings of 32 numbers" in said
  with pytest.raises(UserError, match="is there already"):
    command.main([*args, "--out", str(out)])
  fresh = [*args, "--out", str(tmp_path / "y.npz")]
  with pytest.raises(UserError, match=r"--predict 'image_embedd'.*did you mean image_embed"):
    command.main([*fresh, "--predict", "image_embedd"])
  with pytest.raises(UserError, match="expected one vector an example"):
    command.main([*fresh, "--predict", "features", "--eval", "val"])
  with pytest.raises(UserError, match=r"ends with .parquet or .npz"):
    command.main([*args, "--out", str(tmp_path / "y.csv")])
  with pytest.raises(UserError, match="no such folder"):
    command.main([*fresh, "--input", "nowhere"])


TWO = """if True:
  import sys
  import jax
  jax.config.update("jax_num_cpu_devices", 2)
  from tools.embed import __main__ as command
  sys.exit(command.main(sys.argv[1:]))
"""


@pytest.mark.slow  # two processes that compile
def test_two_processes_write_their_own_parts(workdir, tmp_path):
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
  args = ["--workdir", str(workdir), "--input", "digit_pairs(split='val', size=53)"]
  args += ["--batch-size", "8", "--part-size", "20"]
  env = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_PROCESSES": "2"}
  env["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{port}"
  runs = [
    subprocess.Popen(
      [sys.executable, "-c", TWO, *args, "--out", str(tmp_path / "two.npz")],
      env={**env, "JAX_PROCESS_ID": str(i)},
      cwd=ROOT,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in (0, 1)
  ]
  try:
    errors = [r.communicate(timeout=400)[1] for r in runs]
  finally:
    for r in runs:
      r.kill()
  assert [r.returncode for r in runs] == [0, 0], errors
  assert command.main([*args, "--out", str(tmp_path / "one.npz")]) == 0
  one, two = (files.load_npz(tmp_path / f"{n}.npz") for n in ("one", "two"))
  assert one["index"].tolist() == two["index"].tolist() == list(range(53))
  assert one["text"].tolist() == two["text"].tolist()
  np.testing.assert_allclose(two["embedding"], one["embedding"], atol=1e-5)
