"""Batches of all processes through the model: each reads, and writes, parts of its own."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from big_vision_like import axes
from big_vision_like.config import UserError
from big_vision_like.evaluators import need_numbers
from big_vision_like.input import pipeline
from big_vision_like.input.bad import Bad, Counter
from big_vision_like.input.batching import Batch, stack
from tools.convert_data.progress import Progress
from tools.embed.parts import Parts, Plan, Rows
from tools.embed.reading import Loader, Row, names_of

CHUNK = 16
"""Examples that a thread takes at once."""
BAD = "--max-bad-fraction"


class Item(NamedTuple):
  """This process's rows of a global batch; `part` is None where it has nothing left to do."""

  arrays: Batch
  rows: list[Row]
  bad: tuple[Bad, ...]
  part: int | None
  is_last: bool  # of the part
  covered: int  # examples of all processes in this batch


def inputs(row: Row, pp: str, key: str | None) -> Batch:
  """A batch of one with what the model gets: `key`, or all numbers that `pp` yields.

  Raises:
    UserError: `key` is not there, or is not made of numbers.
  """
  if key is not None:
    if key not in row.arrays:
      raise UserError(f"--pp {pp!r} yields {', '.join(row.arrays) or 'nothing'}; expected {key}")
    need_numbers(row.arrays[key], key, f"--pp {pp!r}")
  batch = stack([{k: v for k, v in row.arrays.items() if key in (None, k)}], "--pp")
  return {k: v for k, v in batch.items() if v.dtype.kind not in "OUS"}


def size_of(fn: Callable, state: Any, one: Batch, mesh: jax.sharding.Mesh, name: str) -> int:
  """D of `predict[name]`, which gives [B, D].

  Raises:
    UserError: it gives something else, or needs what is not in the batch.
  """
  rows = axes.num_batch_shards(mesh)
  batch = {k: jax.ShapeDtypeStruct((rows, *v.shape[1:]), v.dtype) for k, v in one.items()}
  batch["_mask"] = jax.ShapeDtypeStruct((rows,), bool)
  try:
    with jax.set_mesh(mesh):
      out = jax.eval_shape(fn, state.params, state.aux, batch)
  except KeyError as e:
    raise UserError(f"--predict {name} needs {e}; --pp yields {', '.join(one)}") from None
  if getattr(out, "ndim", 0) != 2:
    shapes = jax.tree.map(lambda x: x.shape, out)
    raise UserError(f"--predict {name} gives {shapes}; expected one vector an example")
  return out.shape[1]


def batches(
  loader: Loader, plan: Plan, todo: list[int], local: int, one: Batch, threads: int
) -> Iterator[Item]:
  """Of process i: the parts i, i + n, ... of `todo`, `local` rows at a time.

  All processes make equally many batches; who has no part, or a shorter one, adds empty ones.
  """
  me, count = jax.process_index(), jax.process_count()
  rounds = [todo[i : i + count] for i in range(0, len(todo), count)]
  mine = [plan.range(r[me]) for r in rounds if me < len(r)]
  chunks = [
    (first, min(CHUNK, stop - first))
    for part in mine
    for start in range(part.start, part.stop, local)
    for stop in (min(start + local, part.stop),)
    for first in range(start, stop, CHUNK)
  ]
  ahead = max(2 * threads, 2 * math.ceil(local / CHUNK))
  settings = pipeline.Settings(num_threads=threads, prefetch=ahead)
  stream = pipeline.read_ahead(loader, pipeline.Ranges(chunks), settings, 0, len(chunks))
  with contextlib.closing(stream):
    for parts in rounds:
      ranges = [plan.range(k) for k in parts]
      own = ranges[me] if me < len(parts) else range(0)
      for start in range(0, max(map(len, ranges)), local):
        rows, bad = [], ()
        here = own[start : start + local]
        for _ in range(0, len(here), CHUNK):
          loaded = next(stream)
          if loaded.error:
            raise UserError(loaded.error)
          rows, bad = rows + loaded.rows, bad + loaded.bad
        yield Item(
          _padded(rows, one, local),
          [row._replace(arrays={}) for row in rows],
          bad,
          parts[me] if len(here) else None,
          len(here) > 0 and start + local >= len(own),
          sum(len(r[start : start + local]) for r in ranges),
        )


def _padded(rows: list[Row], one: Batch, local: int) -> Batch:
  """Arrays of the rows, then zeros; `_row` is the place in the global batch."""
  out = {k: np.zeros((local, *v.shape[1:]), v.dtype) for k, v in one.items()}
  if rows:
    found = stack([{k: row.arrays[k] for k in one} for row in rows], "--pp")
    for key, value in found.items():
      if value.shape[1:] != out[key].shape[1:]:
        shapes = " and ".join(str(x.shape[1:]) for x in (out[key], value))
        raise UserError(f"--pp: {key} is {shapes}; resize, crop or pad it")
      out[key][: len(rows)] = value
  out["index"] = np.zeros(local, np.int32)
  out["index"][: len(rows)] = [row.index & 0x7FFF_FFFF for row in rows]
  out["_mask"] = np.arange(local) < len(rows)
  out["_row"] = np.arange(local, dtype=np.int32) + jax.process_index() * local
  return out


def embed(
  loader: Loader,
  plan: Plan,
  parts: Parts,
  fn: Callable,
  state: Any,
  mesh: jax.sharding.Mesh,
  *,
  one: Batch,
  batch_size: int,
  threads: int = 8,
  max_bad: float = 0.01,
) -> None:
  """Writes the parts of `plan` that are not there yet.

  Args:
    one: a batch of one, see `inputs`.
    batch_size: of all devices; rounded up to what they divide.
    max_bad: larger fractions of bad examples end it.

  Raises:
    UserError: too many bad examples, or shapes that differ.
  """
  count = jax.process_count()
  multiple = math.lcm(axes.num_batch_shards(mesh), count)
  local = math.ceil(batch_size / multiple) * multiple // count
  todo = agreed(parts.todo(), plan.parts)
  done = sum(len(plan.range(k)) for k in set(range(plan.parts)) - set(todo))
  counter = Counter(max_bad, BAD)
  for k in sorted(set(range(plan.parts)) - set(todo)):
    counter.seen += len(plan.range(k))
    counter.kinds.update(row["kind"] for row in parts.bad(k))
  if not todo:
    return
  lead = jax.process_index() == 0
  progress = Progress(plan.examples, done, name="embed") if lead else contextlib.nullcontext()
  # Read on threads, put on the devices on another one, while a batch before is computed.
  put = lambda item: (item, axes.put_batch(mesh, item.arrays))
  stream = batches(loader, plan, todo, local, one, threads)
  with (
    progress,
    jax.set_mesh(mesh),
    pipeline.prefetch_to_device(stream, put) as ready,
    contextlib.closing(_outputs(ready, fn, state, local)) as outputs,
  ):
    rows, bad, found = [], [], []
    for item, z in outputs:
      counter.add(len(item.rows) + len(item.bad), item.bad)
      rows, bad, found = rows + item.rows, bad + _listed(item.bad, loader), [*found, z]
      if item.is_last:
        columns = {k: [row.columns[k] for row in rows] for k in plan.columns}
        whole = Rows([row.index for row in rows], columns, np.concatenate(found), bad)
        parts.write(item.part, whole)
        rows, bad, found = [], [], []
      done += item.covered
      if lead:
        progress.update(done, f"bad {counter.kinds.total()} ({counter})" if counter.kinds else "")


def _outputs(
  ready: Iterator[Any], fn: Callable, state: Any, local: int
) -> Iterator[tuple[Item, np.ndarray]]:
  """Items and their embeddings, float32; the devices work on the next while one is fetched."""
  me = jax.process_index()

  def fetched(item: Item, out: Mapping[str, jax.Array]) -> tuple[Item, np.ndarray]:
    found = axes.to_host(out)
    mine = np.argsort(found["row"])[me * local : (me + 1) * local]
    return item, np.asarray(found["z"], np.float32)[mine][: len(item.rows)]

  pending = None
  for item, batch in ready:
    row = batch.pop("_row")
    out = {"z": fn(state.params, state.aux, batch), "row": row}
    if pending is not None:
      yield fetched(*pending)
    pending = item, out
  if pending is not None:
    yield fetched(*pending)


def _listed(bad: tuple[Bad, ...], loader: Loader) -> list[dict[str, Any]]:
  """As they are written beside the embeddings."""
  names = names_of(loader.source)
  path = lambda index: {} if names is None else {"path": names[index]}
  return [dict(index=b.index, **path(b.index), kind=b.kind, message=b.message) for b in bad]


def agreed(todo: list[int], parts: int) -> list[int]:
  """What process 0 sees: another one may see a part earlier or later."""
  if jax.process_count() == 1:
    return todo
  from jax.experimental import multihost_utils

  mask = np.isin(np.arange(parts), todo)
  return np.flatnonzero(multihost_utils.broadcast_one_to_all(mask)).tolist()


def barrier(name: str) -> None:
  """Until all processes are here."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)
