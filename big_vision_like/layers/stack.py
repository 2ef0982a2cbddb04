"""A stack of equal blocks, scanned or unrolled, and what of it the backward pass keeps."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from big_vision_like.config import unknown

# What the backward pass keeps of a block beside its input; the rest is computed again.
# experiments/performance/remat.md has bytes and FLOPs of each, and which to choose when.
_keep = jax.checkpoint_policies
REMAT = {
  # All that autodiff asks for: also norms, the softmax and what lies between its casts.
  "none": None,
  # All products, also the N x N scores of attention.
  "dots": _keep.dots_saveable,
  # Products with parameters: query, key, value, out, up. No norm, no gelu, no N x N scores.
  "dots_no_batch": _keep.dots_with_no_batch_dims_saveable,
  # The MLP's hidden layer before its gelu.
  "up": _keep.save_only_these_names("up"),
  # Nothing.
  "full": _keep.nothing_saveable,
}


def rematted(block: Any, policy: str, *, scan: bool, static: tuple[int, ...]) -> Any:
  """`block` whose backward pass keeps what `policy` says; `static` arguments are not traced.

  Raises:
    UserError: an unknown policy.
  """
  if policy not in REMAT:
    raise unknown("remat policy", policy, list(REMAT))
  if policy == "none":
    return block
  # Argument 0 is the module itself.
  static = tuple(i + 1 for i in static)
  return nn.remat(block, policy=REMAT[policy], prevent_cse=not scan, static_argnums=static)


def stacked(
  block: Callable[..., nn.Module],
  args: tuple[Any, ...],
  x: jax.Array,
  *rest: Any,
  depth: int,
  scan: bool,
  remat: str,
  drop_path: float,
  train: bool,
  static: tuple[int, ...] = (),
) -> jax.Array:
  """x [B, N, D] through `depth` blocks `block(*args)`: (x, drop_path, *rest, train) -> (x, None).

  Called in a module's compact method, whose children the blocks become. `scan` compiles one block
  and stacks its parameters on a leading axis (`blocks/...`); otherwise they are `block_0`,
  `block_1`, ... Stochastic depth grows linearly to `drop_path`; a block gets its rate, or None
  where nothing is dropped.

  Args:
    block, args: see above.
    x: tokens.
    *rest: the same for all blocks; those at `static` are not traced.
    depth, scan, remat, drop_path, train, static: see above, and `rematted`.
  """
  static = (*(2 + i for i in static), 2 + len(rest))  # train
  block = rematted(block, remat, scan=scan, static=static)
  rates = np.linspace(0, drop_path, depth, dtype=np.float32)
  drops = bool(drop_path) and train
  if scan:
    scanned = nn.scan(
      block,
      variable_axes={"params": 0, "intermediates": 0},
      split_rngs={"params": True, "dropout": True},
      in_axes=(0 if drops else nn.broadcast, *[nn.broadcast] * (1 + len(rest))),
      length=depth,
    )
    rate = jnp.asarray(rates) if drops else None
    return scanned(*args, name="blocks")(x, rate, *rest, train)[0]
  for i in range(depth):
    rate = float(rates[i]) if drops else None
    x, _ = block(*args, name=f"block_{i}")(x, rate, *rest, train)
  return x


class Stack(nn.Module):
  """`stacked` as a module of its own."""

  block: Callable[..., nn.Module]
  args: tuple[Any, ...]
  depth: int
  scan: bool = True
  remat: str = "none"
  drop_path: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array, *rest: Any, train: bool = False) -> jax.Array:
    """[B, N, D] -> [B, N, D]; `rest`, arrays or None, is the same for all blocks."""
    how = dict(depth=self.depth, scan=self.scan, remat=self.remat, drop_path=self.drop_path)
    return stacked(self.block, self.args, x, *rest, train=train, **how)
