"""Named architectures: pure functions of (parameters, inputs).

A method that works with any backbone takes it by file name and treats all alike: `stats` holds the
collections that are not parameters, `{}` for a transformer, `{"batch_stats": ...}` with batch norm.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from big_vision_like.config import UserError, find_module, unknown

Tree = Any


def make(cfg: Mapping[str, Any], where: str = "config.model") -> nn.Module:
  """`models/<cfg.name>.py` ("vit" by default); all other keys go to its `make`.

  Raises:
    UserError: an unknown name or key.
  """
  cfg = dict(cfg)
  return find_module("models", cfg.pop("name", "vit"), f"{where}.name").make(**cfg)


def of_size(
  variant: str | None,
  kwargs: Mapping[str, Any],
  sizes: Mapping[str, tuple],
  where: str,
  names: tuple[str, ...] = ("width", "depth", "mlp_dim", "num_heads"),
) -> dict[str, Any]:
  """`kwargs` and, where they do not say, the attributes that a size such as "B" stands for.

  Raises:
    UserError: an unknown size.
  """
  if variant is None:
    return dict(kwargs)
  if variant not in sizes:
    raise unknown(f"{where} variant", variant, list(sizes))
  return {**dict(zip(names, sizes[variant])), **kwargs}


def of_image(
  variant: str | None, kwargs: Mapping[str, Any], sizes: Mapping[str, tuple], where: str
) -> dict[str, Any]:
  """The same of a model of images: "B/16" also says the patch; one number stands for a square.

  Raises:
    UserError: an unknown size, or a patch that is not a number.
  """
  size, _, patch = (variant or "").partition("/")
  out = of_size(None if variant is None else size, kwargs, sizes, where)
  if patch and not patch.isdigit():
    raise UserError(f"{where} variant {variant!r}: the patch is not a number; write 'B/16'")
  out["patch_size"] = out.get("patch_size") or (int(patch) if patch else None)
  for key in ("patch_size", "image_size"):
    if out.get(key) is None:
      out.pop(key, None)
    else:
      out[key] = (out[key],) * 2 if isinstance(out[key], int) else tuple(out[key])
  return out


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
