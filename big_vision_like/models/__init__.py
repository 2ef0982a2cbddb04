"""Named architectures: pure functions of (parameters, inputs).

A method that works with any backbone takes it by file name and treats all alike: `stats` holds the
collections that are not parameters, `{}` for a transformer, `{"batch_stats": ...}` with batch norm.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from big_vision_like.config import find_module

Tree = Any


def make(cfg: Mapping[str, Any], where: str = "config.model") -> nn.Module:
  """`models/<cfg.name>.py` ("vit" by default); all other keys go to its `make`.

  Raises:
    UserError: an unknown name or key.
  """
  cfg = dict(cfg)
  return find_module("models", cfg.pop("name", "vit"), f"{where}.name").make(**cfg)


def init(model: nn.Module, rng: jax.Array, *args: Any, **kwargs: Any) -> tuple[Tree, Tree]:
  """(params, stats) of `model(*args, **kwargs)`."""
  stats = dict(model.init(rng, *args, **kwargs))
  return stats.pop("params"), stats


def apply(
  model: nn.Module,
  params: Tree,
  stats: Tree,
  *args: Any,
  train: bool = False,
  rng: jax.Array | None = None,
  **kwargs: Any,
) -> tuple[Any, Tree]:
  """(what the model returns, stats): stats move in training, and are as given otherwise.

  `rng` serves dropout and stochastic depth.
  """
  variables = {"params": params, **stats}
  rngs = None if rng is None else {"dropout": rng}
  mutable = list(stats) if train else False
  out = model.apply(variables, *args, train=train, rngs=rngs, mutable=mutable, **kwargs)
  return out if train else (out, stats)
