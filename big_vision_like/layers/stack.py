"""A stack of equal blocks, scanned or unrolled."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from big_vision_like.layers.transformer import rematted


class Stack(nn.Module):
  """`depth` blocks `block(*args)`, called as (x, drop_path, *rest, train) -> (x, None).

  `scan` compiles one block and stacks its parameters on a leading axis (`blocks/...`); otherwise
  they are `block_0`, `block_1`, ... Stochastic depth grows linearly to `drop_path`; a block gets
  its rate, or None where nothing is dropped.
  """

  block: Callable[..., nn.Module]
  args: tuple[Any, ...]
  depth: int
  scan: bool = True
  remat: str = "none"
  drop_path: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array, *rest: Any, train: bool = False) -> jax.Array:
    """[B, N, D] -> [B, N, D]; `rest`, arrays or None, is the same for all blocks."""
    train_at = 2 + len(rest)
    block = rematted(self.block, self.remat, scan=self.scan, static=(train_at,))
    rates = np.linspace(0, self.drop_path, self.depth, dtype=np.float32)
    drops = bool(self.drop_path) and train
    if self.scan:
      stack = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0 if drops else nn.broadcast, *[nn.broadcast] * (1 + len(rest))),
        length=self.depth,
      )
      rate = jnp.asarray(rates) if drops else None
      return stack(*self.args, name="blocks")(x, rate, *rest, train)[0]
    for i in range(self.depth):
      rate = float(rates[i]) if drops else None
      x, _ = block(*self.args, name=f"block_{i}")(x, rate, *rest, train)
    return x
