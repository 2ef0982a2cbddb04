"""Every config: the full-scale default lowers for a pod, by shapes alone; smoke is read whole."""

import importlib
import itertools
import json
import math
import pathlib

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType

from big_vision_like import axes, evaluators, sharding, step, tree
from big_vision_like import train as trainer
from big_vision_like.models import vit

ROOT = pathlib.Path(__file__).parents[1]
NAMES = sorted(f.stem for f in (ROOT / "configs").glob("*.py") if f.stem != "common")

# Published parameter counts of the defaults (all of `params`).
PARAMETERS = {
  "classify": 21_974_632,
  "clip": 151_277_313,
  "coca": 2_260_197_121,
  "context_encoder": 73_890_112,
  "ddpm": 35_746_307,
  "dino": 43_951_872,
  "dreamfusion": 173_828,
  "finetune": 304_124_904,
  "linear_probe": 2_695_000,
  "mae": 329_239_296,
  "moco": 27_966_656,
  "siglip": 203_155_970,
}


def get(name, arg=None):
  return importlib.import_module(f"configs.{name}").get_config(arg)


@pytest.mark.parametrize("name", NAMES)
def test_default_lowers_on_256_devices(name):
  config = get(name)
  rows = math.gcd(256, config.input.batch_size)  # a paper's batch may be smaller than the pod
  mesh = AbstractMesh((1, rows, 256 // rows, 1), axes.ALL, axis_types=(AxisType.Auto,) * 4)
  built = trainer.build(config, num_examples=None, mesh=mesh)
  assert tree.num_params(built.abstract.params) == PARAMETERS[name]
  train_step = step.make_train_step(
    built.method, built.tx, seed=0, shardings=built.shardings, accumulate=built.config.grad_accum
  )
  with jax.sharding.use_abstract_mesh(mesh):
    lowered = train_step.trace(built.abstract, built.batch).lower(lowering_platforms=("tpu",))
  assert "sdy.sharding_constraint" in lowered.as_text()


# Minutes of compiling samplers and renderers: their steps are in test_methods every day.
SLOW = ("ddpm", "dreamfusion")


@pytest.mark.parametrize(
  "name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in NAMES]
)
def test_smoke_takes_two_steps_and_reads_every_key(name, tmp_path, monkeypatch):
  """Through the training loop, evaluators on the first batch of their splits.

  On one device: that eight give the same is `test_methods`'s, and costs a larger compile.
  """
  make_mesh = sharding.make_mesh
  monkeypatch.setattr(sharding, "make_mesh", lambda cfg: make_mesh(cfg, jax.devices()[:1]))
  whole = evaluators.Split._batches
  monkeypatch.setattr(evaluators.Split, "_batches", lambda self: itertools.islice(whole(self), 1))
  config = get(name, "smoke")
  config.total_steps = 2
  config.optim.schedule = dict(name="constant")
  if "init_from" in config:  # what an earlier stage leaves is not here
    del config.init_from
  trainer.train(config, tmp_path)
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  scores = {k.split("/")[1] for line in lines for k in line if k.startswith("eval/")}
  assert scores == set(config.evals)


@pytest.mark.parametrize("name", NAMES)
def test_golden(name):
  """tests/golden shows how far an edit to a shared default reaches; rewrite it when it is meant."""
  file = ROOT / "tests" / "golden" / f"{name}.json"
  now = json.loads(get(name).to_json())
  assert json.loads(file.read_text()) == now, f"if meant: write configs/{name}.py's JSON to {file}"


def test_arguments():
  config = get("siglip", "variant=L/16,res=384,batch_size=512,data=coco_captions")
  assert config.model.image.image_size == (384, 384) and config.input.batch_size == 512
  assert "coco_captions" in config.input.source and config.model.text.variant == "L"
  with pytest.raises(ValueError, match="'rse' is unknown; this config takes variant, res"):
    get("siglip", "rse=3")
  with pytest.raises(ValueError, match="res='big' is not of type int"):
    get("siglip", "res=big")


@pytest.mark.parametrize(
  "variant, pool, millions",
  [
    ("B/16", "cls", 85.8),
    ("L/16", "cls", 303.3),
    ("So400m/14", "map", 427.7),
    ("H/14", "cls", 630.8),
    ("g/14", "cls", 1011),
    ("G/14", "cls", 1843),
  ],
)
def test_published_sizes_of_image_towers(variant, pool, millions):
  """Without a head; published: B 86 M, L 304 M, So 428 M, H 632 M, g 1.01 B, G 1.84 B."""
  image = jax.ShapeDtypeStruct((1, 224, 224, 3), "float32")
  model = vit.make(variant, pool=pool)
  params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
  assert math.isclose(tree.num_params(params) / 1e6, millions, rel_tol=2e-3)
