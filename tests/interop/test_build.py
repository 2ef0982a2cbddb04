"""Every family builds a model of ours from its config, and its config from the model."""

import jax
import numpy as np
import pytest

from big_vision_like import tree
from big_vision_like.interop import build, families, tables
from tests.parity import cases, weights


def theirs(hf):
  """Name-seeded tensors with the names and shapes of the family."""
  family = families.family(hf)
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), build.like(hf))
  shapes = tables.to_theirs(family.rules(hf), zeros, sizes=family.sizes(hf))
  return {k: weights.tensor(k, v.shape) for k, v in shapes.items()} | dict(family.constants(hf))


@pytest.mark.parametrize(
  "name", [n for n, hf in cases.CONFIGS.items() if families.family(hf).config]
)
def test_there_and_back(name):
  hf = cases.CONFIGS[name]
  tensors = theirs(hf)
  model = build.make(hf, tensors)
  params = tree.nest(build.leaves(hf, tensors))
  config, back = build.export(hf["model_type"], model, params)
  assert config["model_type"] == hf["model_type"]
  assert {k for k in back if "num_batches" not in k} == tensors.keys()
  for key, value in tensors.items():
    np.testing.assert_array_equal(back[key], value, err_msg=key)
  assert build.make(config, back) == model
