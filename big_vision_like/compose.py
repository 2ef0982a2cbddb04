"""From a config to a method: the paper's file, the transforms around it, the batch it will see."""

import json
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from big_vision_like import config as config_lib
from big_vision_like import transforms, tree
from big_vision_like.config import Config, Durations, UserError
from big_vision_like.input import pipeline
from big_vision_like.method import Method


def batch_spec(cfg: Config) -> dict[str, Any]:
  """The global batch of `config.input`: `spec = {"image": "float32(224, 224, 3)"}` plus `index`.

  Several batches by name, each with its `spec` and perhaps a `batch_size`, make a dict of these.
  """
  out = {}
  for name, own in pipeline.named(cfg).items():
    size = own.get("batch_size", cfg.batch_size)
    out[name] = {"index": jax.ShapeDtypeStruct((size,), jnp.int32)}
    for key, text in own.spec.items():
      where = f"{own.path}.spec.{key}"
      calls = config_lib.parse_spec(text, where)
      try:
        [(dtype, shape, _)] = calls
        out[name][key] = jax.ShapeDtypeStruct((size, *shape), jnp.dtype(dtype))
      except (ValueError, TypeError):
        raise UserError(
          f"{where} = {text!r}; expected a dtype and a shape: 'float32(224, 224, 3)'"
        ) from None
  return out.get("", out)


def saved_config(workdir: str | pathlib.Path, where: str = "--workdir") -> dict[str, Any]:
  """`config.json` of a run, or a `UserError` that begins with `where`."""
  file = pathlib.Path(workdir) / "config.json"
  if not file.is_file():
    raise UserError(f"{where} {workdir}: {file} is missing; it is the folder that train wrote")
  return json.loads(file.read_text())


def distil(method: Method, workdir: str, **options: Any) -> Method:
  """`transforms.distil` from the run in `workdir`, whose own config says what the teacher is.

  `teacher_from` says where its weights come from.
  """
  config = config_lib.wrap(saved_config(workdir, "config.distil.workdir"))
  # Only `predict` of the teacher runs: how long its schedules were does not matter.
  teacher = make_method(config.timed(Durations(config.input.batch_size, 1, 1)))
  one = jax.tree.map(lambda x: jnp.zeros((1, *x.shape[1:]), x.dtype), batch_spec(config.input))
  teacher = teacher._replace(init=lambda rng, batch, init=teacher.init: init(rng, one))
  return config_lib.call(transforms.distil, options, "config.distil", method, teacher)


# Key of the config -> transform, from the inside out: the loss, the weights, the gradient, what
# predictions see, and around all of them the batch. `config.<key>` holds the transform's keywords,
# or its one argument.
TRANSFORMS: tuple[tuple[str, Callable[..., Method]], ...] = (
  ("distil", distil),
  ("freeze", transforms.freeze),
  ("lora", transforms.lora),
  ("grad_cache", transforms.grad_cache),
  ("sam", transforms.sam),
  ("ema", transforms.ema),
  ("augment", transforms.augment),
)


def make_method(config: Config) -> Method:
  """`methods/<config.method>.py`, and around it the `TRANSFORMS` that the config asks for.

  A new transform is a function `(method, options) -> method` in `transforms.py` and a line above,
  inside of those that must see its result.
  """
  method = config_lib.find_module("methods", config.method, "config.method").make(config)
  for key, transform in TRANSFORMS:
    value = config.get(key)
    if isinstance(value, Mapping):
      method = config_lib.call(transform, value, f"config.{key}", method)
    elif value:
      method = transform(method, value)
  return method


def teacher_from(config: Config, state: Any) -> dict[str, str]:
  """What `init_from` has to load where `config.distil` names a teacher's run."""
  if "distil" not in config:
    return {}
  # Outermost first: a momentum teacher of the method itself lies deeper.
  names = list(tree.flatten(state))
  found = (re.match(r"aux/(method/)*teacher/(?=params/)", name) for name in names)
  root = min((match[0] for match in found if match), key=len)
  parts = {name.removeprefix(root).split("/")[0] for name in names if name.startswith(root)}
  return {f"{root}{part}": f"{config.distil.workdir}::{part}" for part in sorted(parts)}
