"""Weighted k-nearest-neighbour accuracy (Wu et al. 2018, Sec. 3.4, as in DINO), embedding health.

A query's class is the one with the most votes among its k most similar training images, by cosine;
each votes with exp(similarity / temperature). No parameter is fitted, so the score is the features'
own. Beside it: the same on raw pixels, and two numbers that show a collapse.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from big_vision_like.config import Config, UserError, number, whole_number
from big_vision_like.evaluators import Split, need, replicated, sharded

CHUNK = 1024  # queries compared at a time


class Evaluator:
  """Keys: source_train (the neighbours), source, pp (yields image and label), k, temperature.

  `k` is a number (20) or several: DINO's (10, 20, 100, 200). `pixels=False` leaves the baseline on
  raw pixels out: it holds all images of both splits in the host's memory.
  """

  def __init__(self, config: Config, predict: Mapping[str, Callable], mesh: jax.sharding.Mesh):
    self.embed = need(predict, "image_embed", config)
    k = config.get("k", 20)
    self.several = not isinstance(k, (int, float, str))
    self.ks = tuple(whole_number(n, f"{config.path}.k") for n in (k if self.several else (k,)))
    if not self.ks:
      raise UserError(f"{config.path}.k = {k!r}; expected a positive whole number or several")
    self.temperature = number(config, "temperature", 0.07, above=0)
    self.with_pixels = config.get("pixels", True)
    needs = ("image", "label")
    self.train = Split(config, mesh, needs=needs, source="source_train")
    self.test = Split(config, mesh, needs=needs)

  def _accuracy(
    self, train: Mapping[str, np.ndarray], test: Mapping[str, np.ndarray]
  ) -> dict[int, float]:
    mesh, args = self.test.mesh, (train["x"], train["label"], test["x"])
    found = vote(*args, self.ks, self.temperature, mesh)
    finite = np.isfinite(test["x"]).all(axis=1)
    return {k: float(((y == test["label"]) & finite).mean()) for k, y in zip(self.ks, found)}

  @functools.cached_property
  def _pixels(self) -> dict[int, float]:
    return self._accuracy(self.train.pixels(), self.test.pixels())

  def run(self, state: Any) -> dict[str, float]:
    """`accuracy` and `pixels` of the neighbours; `rank` and `std` of the test split's features.

    With several k these two are those of the best k, and `accuracy@k` that of each.
    """
    rows = lambda batch: {"x": self.embed(state.params, state.aux, batch)}
    train, test = self.train.map(rows), self.test.map(rows)
    scores = self._accuracy(train, test)
    out = {"accuracy": max(scores.values())}
    if self.several:
      out |= {f"accuracy@{k}": score for k, score in scores.items()}
    if self.with_pixels:
      out["pixels"] = max(self._pixels.values())
    return out | {"rank": effective_rank(test["x"]), "std": spread(test["x"])}


def normalized(z: np.ndarray) -> np.ndarray:
  """Rows of length 1, float32; a row of zeros stays."""
  z = z.astype(np.float32)
  return z / np.maximum(np.linalg.norm(z, axis=-1, keepdims=True), 1e-12)


def vote(
  train: np.ndarray,
  labels: np.ndarray,
  test: np.ndarray,
  ks: Sequence[int],
  temperature: float,
  mesh: jax.sharding.Mesh,
) -> list[np.ndarray]:
  """train [N, D] with int labels [N], test [Q, D] -> classes [Q] for each k.

  All neighbours vote where k > N.
  """
  similarity, near = most_similar(train, test, max(ks), mesh)
  classes, labels = np.unique(labels, return_inverse=True)
  weight = np.exp(similarity.astype(np.float64) / temperature)
  found = []
  for k in ks:
    votes = np.zeros((len(test), len(classes)))
    np.add.at(votes, (np.arange(len(test))[:, None], labels[near[:, :k]]), weight[:, :k])
    found.append(classes[votes.argmax(axis=1)])
  return found


def most_similar(
  items: np.ndarray, queries: np.ndarray, k: int, mesh: jax.sharding.Mesh
) -> tuple[np.ndarray, np.ndarray]:
  """Cosine and row of the min(k, N) most similar of items [N, D], of queries [Q, D]: [Q, k] each.

  Sorted, the best first. The items are split over all devices of the mesh, queries come in chunks:
  no device ever holds more than CHUNK x N / devices similarities, and only k of each travel. Rows
  that are not finite are last.
  """
  names, count = mesh.axis_names, len(items)
  finite = np.isfinite(items).all(axis=1)
  rows = -(-count // mesh.size)  # of a device
  pad = ((0, rows * mesh.size - count),)
  valid = sharded(np.pad(finite, pad), mesh)
  z = sharded(np.pad(normalized(np.where(finite[:, None], items, 0)), (*pad, (0, 0))), mesh)

  def best(z: jax.Array, valid: jax.Array, q: jax.Array) -> tuple[jax.Array, jax.Array]:
    scores = jnp.matmul(q, z.T, precision=jax.lax.Precision.HIGHEST)
    scores = jnp.where(valid[None], scores, -jnp.inf)
    value, row = jax.lax.top_k(scores, min(k, rows))
    row += jax.lax.axis_index(names) * rows
    gather = lambda x: jax.lax.all_gather(x, names, axis=1, tiled=True)
    value, at = jax.lax.top_k(gather(value), min(k, count))
    return value, jnp.take_along_axis(gather(row), at, axis=1)

  specs = dict(in_specs=(P(names), P(names), P()), out_specs=(P(), P()))
  best = jax.jit(jax.shard_map(best, mesh=mesh, check_vma=False, **specs))
  size, found = min(CHUNK, len(queries)), []
  for start in range(0, len(queries), size):
    chunk = normalized(np.nan_to_num(queries[start : start + size], posinf=0, neginf=0))
    full = np.pad(chunk, ((0, size - len(chunk)), (0, 0)))
    found.append([np.asarray(x)[: len(chunk)] for x in best(z, valid, replicated(full, mesh))])
  return tuple(np.concatenate(x) for x in zip(*found))


def effective_rank(z: np.ndarray) -> float:
  """exp of the entropy of the normalised singular values of the centred features [N, D].

  Roy and Vetterli 2007: D where all directions carry the same, 1 where one carries all, 0 where the
  features are constant or not finite.
  """
  z = z.astype(np.float64)
  if not np.isfinite(z).all():
    return 0.0
  z = z - z.mean(axis=0)
  # The smaller of the two Gram matrices: a split of a million rows stays cheap.
  gram = z.T @ z if len(z) > z.shape[1] else z @ z.T
  s = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0.0))
  if s.sum() <= 1e-6 * np.sqrt(z.size):
    return 0.0
  p = s[s > 0] / s.sum()
  return float(np.exp(-(p * np.log(p)).sum()))


def spread(z: np.ndarray) -> float:
  """Mean over dimensions of the deviation of the normalised features, times sqrt(D).

  SimSiam (arXiv:2011.10566), Fig. 2: 1 for features spread over the sphere, 0 for one point.
  """
  return float(normalized(z).std(axis=0).mean() * z.shape[1] ** 0.5)
