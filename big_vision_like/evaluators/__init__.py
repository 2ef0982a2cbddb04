"""One score family, one file: `Evaluator(config, predict, mesh)`, `run(state) -> {metric: value}`.

Evaluators are handed jitted `predict` functions and a state; they never see a method. What all of
them need is here: walking over a split exactly, each example once, on any number of devices.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from big_vision_like import axes
from big_vision_like.config import Config, UserError
from big_vision_like.input import ops, pipeline
from big_vision_like.input.sources import open_source


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


class Split:
  """A split of a data set as batches on the mesh; strings of the examples stay on the host.

  `cfg` has source, pp and batch_size; rounded up to a multiple of the batch shards. `needs` names
  the arrays the evaluator cannot do without; `source` is the key that names the split, for
  evaluators that look at several.

  Raises:
    UserError: an unknown source or op, an empty source, a key that `pp` does not yield as numbers.
  """

  def __init__(
    self,
    cfg: Config,
    mesh: jax.sharding.Mesh,
    needs: tuple[str, ...] = (),
    source: str = "source",
  ):
    shards = axes.num_batch_shards(mesh)
    self.mesh = mesh
    self.batch_size = -(-cfg.get("batch_size", 128) // shards) * shards
    self.source, self.pp, self.where = cfg[source], cfg.pp, cfg.path
    self._batches()  # opens the source and parses the ops: mistakes show before any compile
    if not len(open_source(self.source, self.where)):
      raise UserError(f"{cfg.path}.{source} = {self.source!r} has no examples")
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
    return len(open_source(self.source, self.where))

  def _examples(self, rows: Sequence[int]) -> list[dict[str, Any]]:
    source, op = open_source(self.source, self.where), ops.build(self.pp, self.where)
    rng = lambda i: np.random.Generator(np.random.Philox(key=0, counter=i << 64))
    return [op(dict(source[int(i)]), rng(int(i))) for i in rows]

  def _batches(self) -> Iterator[dict[str, np.ndarray]]:
    return pipeline.eval_batches(
      self.source,
      self.pp,
      batch_size=self.batch_size,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      where=self.where,
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

  def texts(self, key: str) -> list[list[str]]:
    """The strings under `key` of all rows, in order: a list for each, of one or of several."""
    rows = (example[key] for example in self._examples(range(len(self))))
    rows = (list(x) if isinstance(x, (list, tuple)) else [x] for x in rows)
    return [[t.decode() if isinstance(t, bytes) else str(t) for t in x] for x in rows]

  def images(self, rows: list[int]) -> list[np.ndarray]:
    """Those rows' images as uint8 [H, W, 1 or 3], for people: stretched to their own range."""
    out = []
    for example in self._examples(rows):
      image = example["image"].astype(np.float32)
      out.append(np.round((image - image.min()) * (255 / (np.ptp(image) or 1.0))).astype(np.uint8))
    return out
