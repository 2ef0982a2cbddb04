"""Common to comparisons with references: weights into our model and back, and stored outputs."""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from big_vision_like.interop import families, tables
from tests.parity import weights

OUTPUTS = pathlib.Path(__file__).parent / "outputs"
TOLERANCE = 1e-4  # of the scale of the output, float32


def theirs(hf: Mapping[str, Any], like: Any) -> dict[str, np.ndarray]:
  """Name-seeded tensors with the names and shapes that the table says the family has."""
  family = families.family(hf)
  constants = family.constants(hf)
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
  shapes = tables.to_theirs(family.rules(hf), zeros, sizes=family.sizes(hf))
  return {k: weights.tensor(k, v.shape) for k, v in shapes.items()} | dict(constants)


def there_and_back(hf: Mapping[str, Any], like: Any) -> Any:
  """Those tensors as our variables; the way back is equal to the bit."""
  family, tensors = families.family(hf), theirs(hf, like)
  rules, constants = family.rules(hf), family.constants(hf)
  variables = tables.to_ours(rules, tensors, like, constants=constants)
  back = tables.to_theirs(rules, variables, sizes=family.sizes(hf), constants=constants)
  assert back.keys() == tensors.keys()
  for key in back:
    np.testing.assert_array_equal(back[key], tensors[key], err_msg=key)
  return variables


def with_stored(name: str, loss: Callable[[Any], tuple[Any, dict[str, Any]]], params: Any) -> float:
  """Compares outputs of `loss`, params -> (loss, outputs), and its gradient's norm, with the file.

  Returns the largest difference, of the output's scale.
  """
  (_, got), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  got["grad_norm"] = optax.tree.norm(grads)
  stored, worst = json.loads((OUTPUTS / f"{name}.json").read_text()), 0.0
  assert got.keys() == stored.keys()
  for key, value in got.items():
    want = np.asarray(stored[key])
    scale = np.abs(want).max()
    np.testing.assert_allclose(value, want, rtol=0, atol=TOLERANCE * scale, err_msg=key)
    worst = max(worst, float(np.abs(value - want).max() / scale))
  return worst
