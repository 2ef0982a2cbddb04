"""Training on what `config.input` can be beyond one source: mixtures, several batches a step."""

import json
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from big_vision_like import compose
from big_vision_like import train as trainer
from big_vision_like.config import UserError, wrap
from big_vision_like.methods import siglip
from tests import tiny

IMAGE = "float32(8, 16, 1)"


def pairs_and_images(config):
  """SigLIP on one batch, and a toy loss on images that have no text: a method of two schemas."""
  inner = siglip.make(config)

  def loss(params, aux, batch, rng, at):
    total, (aux, metrics) = inner.loss(params, aux, batch["pairs"], rng, at)
    brightness = jnp.mean(batch["images"]["image"]) * params["logit_bias"]
    return total + jnp.mean(brightness), (aux, {**metrics, "brightness": jnp.mean(brightness)})

  init = lambda rng, batch: inner.init(rng, batch["pairs"])
  return inner._replace(init=init, loss=loss, split=None)


@pytest.fixture
def method(monkeypatch):
  """As if it were a file of `methods/`."""
  find = compose.config_lib.find_module

  def found(package, name, what):
    return (
      types.SimpleNamespace(make=pairs_and_images) if name == "both" else find(package, name, what)
    )

  monkeypatch.setattr(compose.config_lib, "find_module", found)


def config(steps, **overrides):
  c = tiny.config(steps, method="both", **overrides)
  one = c.input.to_dict()
  images = dict(source="digit_pairs(split='val')", pp="value_range(-1, 1)|keep(image)")
  with c.unlocked():
    del c.input
    c.input = dict(
      pairs=dict(
        parts=dict(
          many=dict(source=one["source"], weight=3),
          few=dict(source="digit_pairs(split='train', size=20)", weight=1),
        ),
        pp=one["pp"],
        spec=one["spec"],
      ),
      images=dict(**images, spec=dict(image=IMAGE), batch_size=8),
      batch_size=16,
    )
  return c


def test_two_schemas_in_one_step(tmp_path, method):
  """Trained in two goes equals one go; the log says how many examples each part gave."""
  whole = trainer.train(config(4), tmp_path / "whole")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(trainer.checkpoint.PreemptionGuard, "requested", lambda self, at: at == 2)
    with pytest.raises(SystemExit):
      trainer.train(config(4), tmp_path / "parts")
  parts = trainer.train(config(4), tmp_path / "parts")
  for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(parts.params)):
    np.testing.assert_array_equal(a, b)
  logs = [(tmp_path / d / "metrics.jsonl").read_text() for d in ("whole", "parts")]
  assert logs[0] == logs[1]
  rows = [json.loads(line) for line in logs[0].splitlines()]
  key = "input/examples/pairs/"
  assert [(r[f"{key}many"], r[f"{key}few"]) for r in rows] == [(12, 4), (24, 8), (36, 12), (48, 16)]
  assert all(np.isfinite(r["train/brightness"]) for r in rows)
  _, _, state, _ = trainer.restore(tmp_path / "whole")
  assert int(state.step) == 4


def test_shapes_of_several_batches_are_checked(tmp_path, method):
  c = config(3)
  c.input.images.spec.image = "float32(8, 8, 1)"
  with pytest.raises(UserError, match=r"images.image: float32\(8, 16, 1\), but config.input.spec"):
    trainer.train(c, tmp_path)
  c = config(3)
  c.input.images.batch_size = 12
  with pytest.raises(UserError, match=r"config.input.images.batch_size = 12 does not divide"):
    trainer.train(c, tmp_path)
  c = config(3)
  with c.unlocked():
    c.input.images.colour = 1
  with pytest.raises(UserError, match=r"nothing reads config.input.images.colour"):
    trainer.train(c, tmp_path)


def test_a_batch_of_batches_lies_on_the_mesh(method):
  built = trainer.build(wrap(config(3)), num_examples=100)
  assert built.batch["pairs"]["image"].shape == (16, 8, 16, 1)
  assert built.batch["images"]["image"].shape == (8, 8, 16, 1)
  assert trainer.model_flops(built) > 0


def test_broken_data_is_counted_where_it_is_seen(tmp_path, capsys, caplog):
  """In the progress line, in TensorBoard, in the log with its place; fatal past the bound."""
  rows = [{"image": f"{i % 10}.png", "text": f"number {i}"} for i in range(40)]
  rows[3]["text"] = " "
  rows[5]["image"] = "../outside.png"
  for i in range(10):
    Image.fromarray(np.full((8, 16), 20 * i, np.uint8)).save(tmp_path / f"{i}.png")
  (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  c = tiny.config(3)
  source = f"jsonl(pattern='{tmp_path}/pairs.jsonl')"
  tokenize = c.input.pp.split("|")[-2]
  c.input.source = source
  c.input.pp = f"require_text|decode(1)|value_range(-1, 1)|{tokenize}|keep(image, text)"
  with c.unlocked():
    c.input.max_bad_fraction = 0.05
  trainer.train(c, tmp_path / "run")
  # How many depends on how far ahead was read.
  assert re.search(r"bad \d+ \(empty text \d, unsafe path \d\)", capsys.readouterr().out)
  assert f"bad example 5 of {source}: unsafe path" in caplog.text
  c.input.max_bad_fraction = 0.01
  with pytest.raises(UserError, match=r"2 of \d+ examples are bad \(.*\), more than input"):
    trainer.train(c, tmp_path / "strict")
