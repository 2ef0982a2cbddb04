"""Sums over all pairs of a batch that is split over devices, one small tile at a time.

Every device keeps its rows; the columns go round the devices, and with them what the rows add to
them. After as many hops as there are devices each column is at home again and has met every row.
Only tiles of pairs exist, never a block of the B x B matrix:

    hop 0        hop 1        hop 2        hop 3       device d holds rows d; columns
    0 1 2 3      3 0 1 2      2 3 0 1      1 2 3 0     come from the left (and from the right)

Exchange and product overlap: a tile of columns sets off before it is used, for the product does not
change it, and what a tile collected sets off while the next one is computed. The buffers are filled
in place, so the memory is one copy of the local columns, whatever the number of devices.

Half of the tiles go to the right and half to the left: each direction of a link carries half of
the bytes. Going only half of the way round in both directions would halve the hops as well, but
what the columns collect would have to travel back.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from big_vision_like import axes

# Rows and columns of a tile: small for the cache and the memory, large for the matrix unit. 256 is
# measured (`tools.bench --suite loss`); 512 is a guess for accelerators, whose smallest is 128.
TILE = {"cpu": 256, "gpu": 512, "tpu": 512}


class Monoid(NamedTuple):
  """How shares of a sum are put together, and the sum of none."""

  merge: Callable[[jax.Array, jax.Array], jax.Array]
  neutral: float


ADD = Monoid(jnp.add, 0.0)
# The smallest finite number, not -inf: what no pair contributes to stays finite.
LOGADDEXP = Monoid(jnp.logaddexp, float(jnp.finfo(jnp.float32).min))

Tree = Any
Sums = Mapping[str, Monoid]


def all_pairs(
  shares: Callable[[Tree, Tree], tuple[dict[str, jax.Array], dict[str, jax.Array]]],
  rows: Tree,
  columns: Tree,
  row_sums: Sums,
  column_sums: Sums,
  *,
  names: tuple[str, ...] = (),
  tile: int | None = None,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
  """Sums of every row over all columns, and of every column over all rows, both float32.

  Called where `rows` and `columns` are what one device holds: inside a `shard_map` over `names`,
  or with names = () on whole arrays. Autodiff does not go through it; its callers have rules.

  Args:
    shares: (a tile of rows, a tile of columns) -> what the pairs of the tile add to `row_sums` of
      its rows [R, ...] and to `column_sums` of its columns [C, ...].
    rows, columns: pytrees of arrays [b, ...].
    row_sums, column_sums: the names of the sums, and how shares are put together.
    names: mesh axes over which the batch is split.
    tile: wanted rows and columns of a tile; the divisor of b nearest to it is taken. None: `TILE`
      of this backend, less for small b.

  Returns:
    {name: [b, ...]} of this device's rows, and of its columns.
  """
  count = axes.size(names)
  local = jax.tree.leaves(rows)[0].shape[0]
  if tile is None:  # few rows have smaller tiles, or the tiles would be most of the memory
    tile = min(TILE.get(axes.platform(), TILE["gpu"]), max(local // 4, 128))
  ways = 2 if count > 1 and local % 2 == 0 else 1
  height, width = divisor_near(local, tile), divisor_near(local // ways, tile)
  laps = local // ways // width  # tiles of a hop that go one way

  take = lambda tree, i, size: jax.tree.map(
    lambda x: lax.dynamic_slice_in_dim(x, i * size, size), tree
  )
  put = lambda tree, new, i, size: jax.tree.map(
    lambda x, y: lax.dynamic_update_slice_in_dim(x, y, i * size, axis=0), tree, new
  )
  merge = lambda how, a, b: {k: how[k].merge(a[k], b[k]) for k in how}

  like = jax.eval_shape(shares, take(rows, 0, height), take(columns, 0, width))

  def empty(how: Sums, like: Tree, size: int) -> dict[str, jax.Array]:
    out = {k: jnp.full((size, *like[k].shape[1:]), how[k].neutral, jnp.float32) for k in how}
    return lax.pcast(out, names, to="varying") if names else out

  route = axes.ring(names)

  def send(tree: Tree, way: int) -> Tree:
    """To the next device on the right (way 0) or on the left."""
    if count == 1:
      return tree
    there = [(route[i], route[(i + (-1 if way else 1)) % count]) for i in range(count)]
    return jax.tree.map(lambda x: lax.ppermute(x, names, there), tree)

  def meet(sums: dict[str, jax.Array], column: Tree) -> tuple[dict, dict]:
    """All rows and one tile of columns."""

    def body(i: jax.Array, carry: tuple[dict, dict]) -> tuple[dict, dict]:
      sums, collected = carry
      of_rows, of_columns = shares(take(rows, i, height), column)
      sums = put(sums, merge(row_sums, take(sums, i, height), of_rows), i, height)
      return sums, merge(column_sums, collected, of_columns)

    start = (sums, empty(column_sums, like[1], width))
    return lax.fori_loop(0, local // height, body, start)

  def lap(step: jax.Array, carry: Any) -> Any:
    sums, columns, collected, last = carry
    at, before = step % laps, (step - 1) % laps
    tiles, arriving = [], []
    for way in range(ways):
      tiles.append(take(columns[way], at, width))
      arriving.append(send(tiles[way], way))
      collected = put(collected, send(last[way], way), way * laps + before, width)
    done = []
    for way in range(ways):
      sums, new = meet(sums, tiles[way])
      old = take(collected, way * laps + at, width)
      done.append(merge(column_sums, old, new))
    if count > 1:
      columns = tuple(put(columns[way], arriving[way], at, width) for way in range(ways))
    return sums, columns, collected, tuple(done)

  collected = empty(column_sums, like[1], local)
  last = tuple(empty(column_sums, like[1], width) for _ in range(ways))
  columns = tuple(take(columns, way, local // ways) for way in range(ways))
  start = (empty(row_sums, like[0], local), columns, collected, last)
  sums, _, collected, last = lax.fori_loop(0, count * laps, lap, start)
  for way in range(ways):
    collected = put(collected, send(last[way], way), way * laps + laps - 1, width)
  return sums, collected


def divisor_near(n: int, wanted: int) -> int:
  """The divisor of n that is nearest to `wanted` in ratio."""
  divisors = [d for d in range(1, n + 1) if n % d == 0]
  return min(divisors, key=lambda d: abs(math.log(d / wanted)))
