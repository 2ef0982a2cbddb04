"""Health of an embedding: does it use its space, and do views of one example meet?

On features of length 1 (Wang and Isola, arXiv:2005.10242):

    alignment    mean over examples of |z - z'|^2, z' of another draw of `pp`'s random numbers
    uniformity   log of the mean over pairs i != j of exp(-2 |z_i - z_j|^2); lower is more uniform:
                 -4 for many points over a sphere of many dimensions, 0 for one point
    entropy      mean over examples of the log of the distance to the nearest other (that of
                 Kozachenko and Leonenko up to a factor D and a constant: minus the KoLeo loss of
                 arXiv:1806.03198); distances below 1e-8 count as 1e-8

and of the features themselves `rank`, the effective rank, beside `dim` the most it can be; and
`std`, the spread over the sphere (both as in `knn`).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from big_vision_like import axes
from big_vision_like.config import Config, number, unknown
from big_vision_like.evaluators import Split, need, replicated, sharded
from big_vision_like.evaluators.knn import effective_rank, most_similar, normalized, spread

KEYS = {"image_embed": "image", "text_embed": "text"}
CHUNK = 1024


class Evaluator:
  """Keys: source, pp (yields image or text), batch_size, embed (image_embed, or text_embed), t (2,
  of uniformity).

  Where `pp` draws nothing at random, the two views are the same and alignment is 0.
  """

  def __init__(self, config: Config, predict: Mapping[str, Callable], mesh: jax.sharding.Mesh):
    name = config.get("embed", "image_embed")
    if name not in KEYS:
      raise unknown(f"{config.path}.embed", name, list(KEYS))
    self.embed = need(predict, name, config)
    self.t = number(config, "t", 2.0, above=0)
    self.split, self.again = (Split(config, mesh, needs=(KEYS[name],), view=v) for v in (0, 1))

  def run(self, state: Any) -> dict[str, float]:
    """The numbers above; features that are not finite score rank 0 and nothing else."""
    fn = lambda batch: {"x": self.embed(state.params, state.aux, batch)}
    x = self.split.map(fn)["x"].astype(np.float32)
    other = self.again.map(fn)["x"].astype(np.float32)
    if not (np.isfinite(x).all() and np.isfinite(other).all()):
      return {"rank": 0.0}
    mesh = self.split.mesh
    return {
      "rank": effective_rank(x),
      "dim": float(x.shape[1]),
      "std": spread(x),
      "alignment": alignment(x, other),
      "uniformity": uniformity(x, mesh, self.t),
      "entropy": nearest_entropy(x, mesh),
    }


def alignment(x: np.ndarray, other: np.ndarray) -> float:
  """Mean squared distance of two views [N, D] on the sphere."""
  difference = normalized(x).astype(np.float64) - normalized(other)
  return float((difference**2).sum(axis=1).mean())


def uniformity(x: np.ndarray, mesh: jax.sharding.Mesh, t: float = 2.0) -> float:
  """log mean_{i != j} exp(-t |z_i - z_j|^2) of [N, D]; the pairs are split over the devices."""
  z, count = normalized(x), len(x)
  if count < 2:
    return 0.0
  rows = -(-count // mesh.size) * mesh.size
  items = sharded(np.pad(z, ((0, rows - count), (0, 0))), mesh)
  valid = sharded(np.arange(rows) < count, mesh)

  @jax.jit
  def sums(items: jax.Array, valid: jax.Array, queries: jax.Array) -> jax.Array:
    similarity = jnp.matmul(queries, items.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.sum(jnp.where(valid[None], jnp.exp(-2 * t * (1 - similarity)), 0.0), axis=1)

  total, size = 0.0, min(CHUNK, count)
  for start in range(0, count, size):
    queries = z[start : start + size]
    full = np.pad(queries, ((0, size - len(queries)), (0, 0)))
    found = axes.to_host(sums(items, valid, replicated(full, mesh))).astype(np.float64)
    total += found[: len(queries)].sum()
  self_pairs = np.exp(-2 * t * (1 - (z.astype(np.float64) ** 2).sum(axis=1))).sum()
  return float(np.log(max(total - self_pairs, 1e-300) / (count * (count - 1))))


def nearest_entropy(x: np.ndarray, mesh: jax.sharding.Mesh) -> float:
  """Mean log distance to the nearest other point of [N, D] on the sphere."""
  z = normalized(x)
  if len(z) < 2:
    return float(np.log(1e-8))
  near = most_similar(z, z, 2, mesh)[1]
  near = np.where(near[:, 0] == np.arange(len(z)), near[:, 1], near[:, 0])
  distance = np.linalg.norm(z.astype(np.float64) - z[near], axis=1)
  return float(np.log(np.maximum(distance, 1e-8)).mean())
