"""Reading, counting what is bad, and writing shard after shard."""

import math
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from big_vision_like.config import UserError
from big_vision_like.input import ops, pipeline
from big_vision_like.input.bad import Bad, Counter, describe
from big_vision_like.input.reader import Example, Part, Trace, each_good, sampled
from big_vision_like.input.sources import open_source
from tools.convert_data import formats, tfds
from tools.convert_data.manifest import Manifest, Plan
from tools.convert_data.progress import Progress

CHUNK = 16
"""Examples that a thread or process takes at once."""
KEY = 0  # of the ops' random numbers
BAD = "--max-bad-fraction"


class Encoded(NamedTuple):
  """Payloads of a chunk, and what was left out of it."""

  payloads: list[Any]
  bad: tuple[Bad, ...] = ()
  error: str | None = None


class Encoder:
  """`(first, count) -> Encoded`, as `pipeline.read_ahead` wants it; pickled as its specs."""

  def __init__(self, spec: str, pp: str, to: str, features: Any = None, trace: str = ""):
    self._made_of = (spec, pp, to, features, trace)
    self.parts = [Part(spec, pp, "--from")]
    self.source = open_source(spec, "--from")
    self.ops = [ops.build(pp, "--pp")]
    self.format = formats.make(to, features)
    self.trace = Trace(trace, self.ops) if trace else None

  def __reduce__(self) -> Any:
    return Encoder, self._made_of

  def traced(self, folder: str) -> "Encoder":
    """The same, which notes in `folder` what it is at."""
    return Encoder(*self._made_of[:-1], folder)

  def __call__(self, first: int, count: int) -> Encoded:
    """Examples first to first + count, encoded; an error of the user's is a value."""
    payloads, found = [], []
    try:
      for index, example in self.examples(range(first, first + count), found):
        try:
          payloads.append(self.format.encode(index, example))
        except UserError:
          raise
        except Exception as e:
          found.append(describe(e, self.parts[0].source, index))
    except UserError as e:
      return Encoded([], tuple(found), str(e))
    return Encoded(payloads, tuple(found))

  def examples(self, indices: Iterable[int], found: list[Bad]) -> Iterator[tuple[int, Example]]:
    """Those that can be read, after the ops; appends the others to `found`."""
    how = dict(key=KEY, spec=self.parts[0].source, found=found, trace=self.trace)
    for index, _, example in each_good(self.source, self.ops[0], indices, **how):
      yield index, example


def make_plan(
  spec: str,
  to: str,
  out: pathlib.Path,
  *,
  name: str,
  split: str,
  pp: str = "",
  shards: int | None = None,
  shard_mb: float = 256,
) -> Plan:
  """Opens the source, and reads a few examples to see how large they are.

  Raises:
    UserError: an empty source, more shards than examples, or what the format cannot hold.
  """
  plan = Plan(spec, pp, to, name, split, 0, 0)
  features = tfds.of_other_splits(out, plan._asdict())
  # The records of all formats are about as large, and these need no features.
  encoder = Encoder(spec, pp, "arrayrecord" if to == "tfds" else to)
  if not (n := len(encoder.source)):
    raise UserError(f"--from {spec!r} has no examples")
  found: list[Bad] = []
  at = sampled(n)
  sample = list(encoder.examples(at, found))
  if not sample:
    raise UserError(f"--from {spec!r}: none of {len(at)} examples can be read; {found[-1]}")
  if to == "tfds":
    features = features or tfds.infer([example for _, example in sample])
  if shards is None:
    sizes = [_size(encoder.format.encode(i, e)) for i, e in sample]
    shards = min(n, max(1, math.ceil(n * float(np.mean(sizes)) / (shard_mb * 2**20))))
  if shards > n:
    raise UserError(f"--shards {shards}: --from {spec!r} has only {n} examples")
  return plan._replace(examples=n, shards=shards, features=features)


def _size(payload: Any) -> int:
  if isinstance(payload, bytes):
    return len(payload)
  # A member of a tar: its header, and content to whole blocks.
  return sum(512 + -(-len(data) // 512) * 512 for _, data in payload)


def convert(plan: Plan, out: pathlib.Path, *, workers: int = 0, max_bad: float = 0.01) -> Manifest:
  """Writes the shards of `plan` that are not there yet.

  Args:
    workers: processes that read and preprocess; threads of this one where 0.
    max_bad: larger fractions of bad examples end it.

  Raises:
    UserError: a folder of another plan, too many bad examples, a shard without any good one.
  """
  manifest = Manifest(out, plan)
  manifest.keep_whole_shards()
  todo = [k for k in range(plan.shards) if k not in manifest.shards]
  counter = Counter(max_bad, BAD)
  for row in manifest.shards.values():
    counter.seen += row["stop"] - row["first"]
    counter.kinds.update(row["bad"])
  encoder = Encoder(plan.source, plan.pp, plan.to, plan.features)
  chunks = pipeline.Ranges([chunk for k in todo for chunk in _chunks(plan.range(k))])
  settings = pipeline.Settings(num_workers=workers, prefetch=4 * max(workers, 2))
  stream = pipeline.read_ahead(encoder, chunks, settings, 0, len(chunks.ranges)) if todo else None
  try:
    with Progress(plan.examples, counter.seen) as progress:
      for shard in todo:
        _write_shard(encoder.format, manifest, shard, stream, counter, progress)
  finally:
    if stream is not None:
      stream.close()
  manifest.done()
  encoder.format.finish(out)
  return manifest


def _write_shard(
  form: Any,
  manifest: Manifest,
  shard: int,
  stream: Iterator[Encoded],
  counter: Counter,
  progress: Progress,
) -> None:
  """One shard, under its name when it is whole."""
  plan, before = manifest.plan, counter.kinds.copy()
  file = form.file(plan, shard)
  part, written = manifest.out / f".{file}.part", 0
  try:
    writer = form.open(part)
    try:
      for _, count in _chunks(plan.range(shard)):
        chunk = next(stream)
        counter.add(count, chunk.bad)
        if chunk.error:
          raise UserError(chunk.error)
        for payload in chunk.payloads:
          writer.write(payload)
        written += len(chunk.payloads)
        said = f"shard {shard + 1}/{plan.shards}"
        bad_said = f"  bad {counter.kinds.total()} ({counter})" if counter.kinds else ""
        progress.update(counter.seen, said + bad_said)
    finally:
      writer.close()
    if not written:
      raise UserError(f"shard {shard} has no good example ({counter}); take fewer --shards")
    part.replace(manifest.out / file)
  except OSError as e:
    raise UserError(f"--out {manifest.out}: {part.name} cannot be written: {e.strerror}") from None
  finally:
    part.unlink(missing_ok=True)
  manifest.add(shard, file, written, dict(counter.kinds - before))


def _chunks(whole: range) -> list[tuple[int, int]]:
  """(first, count) of at most CHUNK examples each."""
  return [(i, min(CHUNK, whole.stop - i)) for i in range(whole.start, whole.stop, CHUNK)]
