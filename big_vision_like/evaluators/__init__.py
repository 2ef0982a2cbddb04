"""One score family, one file: `Evaluator(config, predict, mesh)`, `run(state) -> {metric: value}`.

Evaluators are handed jitted `predict` functions and a state; they never see a method. What all of
them need is here: walking over a split exactly, each example once, on any number of devices.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from big_vision_like import axes
from big_vision_like.config import Config, UserError
from big_vision_like.input import pipeline


def need(predict: Mapping[str, Callable], name: str, cfg: Config) -> Callable:
  """`predict[name]`, or a `UserError` that says what the method has."""
  if name not in predict:
    raise UserError(f"{cfg.path}: the method has no predict {name!r}; it has {', '.join(predict)}")
  return predict[name]


def need_numbers(value: Any, key: str, where: str) -> None:
  """Raises `UserError` where `value` is a string: an op that makes numbers of it is missing."""
  if np.asarray(value).dtype.kind in "USO":
    op = "decode" if key == "image" else "tokenize(length)"
    raise UserError(f"{where} leaves {key} of type {type(value).__name__}; add {op}")


def whole_on_mesh(
  arrays: Mapping[str, np.ndarray], size: int, mesh: jax.sharding.Mesh
) -> Iterator[dict[str, jax.Array]]:
  """Global batches of `size` rows of arrays that every process holds whole.

  The last one is filled up with copies of the last row.
  """
  count = len(next(iter(arrays.values())))
  for start in range(0, count, size):
    rows = np.minimum(np.arange(start, start + size), count - 1)
    local = np.array_split(rows, jax.process_count())[jax.process_index()]
    yield axes.put_batch(mesh, {k: v[local] for k, v in arrays.items()})


def _placed(x: np.ndarray, mesh: jax.sharding.Mesh, *spec: Any) -> jax.Array:
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
  return jax.make_array_from_callback(x.shape, sharding, lambda at: x[at])


def sharded(x: np.ndarray, mesh: jax.sharding.Mesh) -> jax.Array:
  """An array that every process holds whole, its rows split over all devices of the mesh."""
  return _placed(x, mesh, mesh.axis_names)


def replicated(x: np.ndarray, mesh: jax.sharding.Mesh) -> jax.Array:
  """An array that every process holds whole, whole on every device of the mesh."""
  return _placed(x, mesh)


def ranks(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
  """How many wrong items score no less than the best right one: [Q, N], bool [Q, N] -> [Q].

  Ties and NaN count against the right item, so that a collapsed model scores zero and not one.
  """
  best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
  return (~(scores < best) & ~right).sum(axis=1)


def nearest(queries: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Euclidean distance to the nearest of items [N, D], and its row, of queries [Q, D]."""
  from sklearn.neighbors import NearestNeighbors

  index = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(items.astype(np.float64))
  distance, row = index.kneighbors(queries.astype(np.float64))
  return distance[:, 0], row[:, 0]


def enlarged(image: np.ndarray, width: int = 400) -> np.ndarray:
  """[H, W, C] with every pixel repeated, until it is at least `width` pixels wide."""
  scale = max(1, -(-width // image.shape[1]))
  return image.repeat(scale, 0).repeat(scale, 1)


class Mistake(NamedTuple):
  """A wrong answer, as `mistakes(state, n)` of an evaluator lists them, the worst first.

  Attributes:
    index: row of the split.
    image: uint8 [H, W, 1 or 3].
    predicted: what was said.
    right: what would have been right.
    score: how wrong it is, higher is worse: by how much the wrong answer beats the right one.
  """

  index: int
  image: np.ndarray
  predicted: str
  right: str
  score: float


def hardest(margin: np.ndarray, n: int) -> list[int]:
  """Rows of the `n` largest margins [N] of the best wrong answer over the right one, from 0 up.

  A tie is a mistake; NaN is one, and comes first.
  """
  order = np.argsort(-np.nan_to_num(margin, nan=np.inf), kind="stable")[: max(n, 0)]
  return [i for i in order.tolist() if not margin[i] < 0]


class Split:
  """A split of a data set as batches on the mesh; strings of the examples stay on the host.

  `cfg` has source, pp and batch_size; rounded up to a multiple of the batch shards. `needs` names
  the arrays the evaluator cannot do without; `source` is the key that names the split, for
  evaluators that look at several; a second `view` has other random numbers in `pp`.

  Raises:
    UserError: an unknown source or op, an empty source, a key that `pp` does not yield as numbers.
  """

  def __init__(
    self,
    cfg: Config,
    mesh: jax.sharding.Mesh,
    needs: tuple[str, ...] = (),
    source: str = "source",
    view: int = 0,
  ):
    shards = axes.num_batch_shards(mesh)
    self.mesh = mesh
    self.batch_size = -(-cfg.get("batch_size", 128) // shards) * shards
    self.pp = cfg.pp
    self.reader = pipeline.eval_reader(cfg[source], self.pp, cfg.path, source, view)
    self._batches()  # mistakes show before any compile
    first = self._examples([0])[0]
    self.strings = tuple(k for k, v in first.items() if np.asarray(v).dtype.kind in "USO")
    for key in needs:
      if key not in first:
        raise UserError(
          f"{cfg.path}.pp = {self.pp!r} yields {', '.join(first) or 'nothing'}; "
          f"{cfg.path}.type needs {key}"
        )
      need_numbers(first[key], key, f"{cfg.path}.pp = {self.pp!r}")

  def __len__(self) -> int:
    return len(self.reader.sources[0])

  @property
  def classes(self) -> list[str]:
    """Names the data set itself has for its labels, in their order; none where it has none."""
    return [str(name) for name in getattr(self.reader.sources[0], "classes", ())]

  def _examples(self, rows: Sequence[int]) -> list[dict[str, Any]]:
    return self.reader.examples(np.asarray(rows), [])

  def _batches(self) -> Iterator[dict[str, np.ndarray]]:
    return pipeline.eval_batches(
      self.reader,
      batch_size=self.batch_size,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )

  def batches(self) -> Iterator[dict[str, jax.Array]]:
    """Global batches on the mesh; `_mask` [B] is False in rows that only fill the last one up."""
    for host in self._batches():
      yield axes.put_batch(self.mesh, {k: v for k, v in host.items() if k not in self.strings})

  def map(self, fn: Callable[[Any], Any]) -> dict[str, np.ndarray]:
    """`fn(batch) -> dict of [B, ...]` over the split: all rows in order, no padding.

    The batch's own arrays of rank 1 (`label`, `index`, ...) are in the result too.
    """
    parts: list[dict[str, np.ndarray]] = []
    with jax.set_mesh(self.mesh):
      for batch in self.batches():
        small = {k: v for k, v in batch.items() if v.ndim == 1}
        rows = axes.to_host({**small, **fn(batch)})
        keep = rows.pop("_mask")
        parts.append({k: np.asarray(v)[keep] for k, v in rows.items()})
    return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}

  def pixels(self) -> dict[str, np.ndarray]:
    """As `map`, with `x` float32 [n, D]: the images themselves, the trivial features."""
    rows = self.map(lambda batch: {"x": batch["image"]})
    return {**rows, "x": rows["x"].reshape(len(rows["x"]), -1).astype(np.float32)}

  def texts(self, key: str, rows: Sequence[int] | None = None) -> list[list[str]]:
    """The strings under `key` of all rows, or of some: a list for each, of one or of several."""
    rows = range(len(self)) if rows is None else rows
    rows = (example[key] for example in self._examples(rows))
    rows = (list(x) if isinstance(x, (list, tuple)) else [x] for x in rows)
    return [[t.decode() if isinstance(t, bytes) else str(t) for t in x] for x in rows]

  def raw_text(self, row: int) -> str:
    """The text of a row as the source has it, before `pp`; the first of several."""
    index = int(self.reader.order(np.asarray([row]))[1][0])
    text = self.reader.sources[0][index].get("text", f"row {row}")
    text = text[0] if isinstance(text, (list, tuple)) else text
    return text.decode() if isinstance(text, bytes) else str(text)

  def images(self, rows: list[int]) -> list[np.ndarray]:
    """Those rows' images as uint8 [H, W, 1 or 3], for people: stretched to their own range."""
    out = []
    for example in self._examples(rows):
      image = example["image"].astype(np.float32)
      out.append(np.round((image - image.min()) * (255 / (np.ptp(image) or 1.0))).astype(np.uint8))
    return out
