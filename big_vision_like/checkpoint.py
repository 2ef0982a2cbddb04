"""Checkpoints: Orbax, asynchronous and atomic, with a checksum manifest per step.

    checkpoints/120/                the step, as Orbax wrote it: a nested dict by path
    checkpoints/120.manifest.0      what process 0 hashed of it: {file: [bytes, [crc32, ...]]}
    checkpoints/saving-120/         not there yet: written by Orbax, hashed, then renamed to 120
    checkpoints/bad-120/            a step that failed its checksums, set aside, never deleted

Orbax restores flipped bits without a word, so a step counts only when every file of it matches its
manifest. The rename is the last act of a save: a process killed at any moment before it leaves a
`saving-` folder, which nothing reads and the next save of that step replaces.
"""

import concurrent.futures
import hashlib
import json
import logging
import pathlib
import shutil
import signal
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from big_vision_like import tree
from big_vision_like.config import UserError

REQUEUE_EXIT_CODE = 85  # preempted, saved, to be started again with the same command
_FILE_BYTES = 1 << 27  # of a file of a step, about
_PIECE_BYTES, _HASH_THREADS = 1 << 24, 4
_PEER_SECONDS = 1800.0  # how long a process waits for the others to hash their share


class Checkpointer:
  """Saves and restores states under `directory`; a context manager.

  Args:
    directory: made when the first step is saved.
    keep_last: how many of the newest steps stay.
    keep_every: steps that are a multiple of it stay for ever; None keeps none of them.

  Raises:
    UserError: `keep_last` or `keep_every` below 1.
  """

  def __init__(
    self, directory: str | pathlib.Path, *, keep_last: int = 3, keep_every: int | None = None
  ):
    for key, value in (("keep_last", keep_last), ("keep_every", keep_every)):
      if value is not None and value < 1:
        raise UserError(f"config.checkpoint.{key} = {value}; expected a number >= 1")
    self.directory = pathlib.Path(directory).absolute()
    self.keep_last, self.keep_every = keep_last, keep_every
    import orbax.checkpoint  # noqa: F401  not when the training loop stands still for the first save

    self._pool = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
    self._pending: concurrent.futures.Future | None = None
    self._newest: int | None = None  # what this object saved last

  def __enter__(self) -> "Checkpointer":
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()

  def steps(self) -> list[int]:
    """Steps saved to the end, verified or not, oldest first; none that were set aside."""
    return _steps(self.directory)

  def latest(self) -> int | None:
    """The newest step, verified or not; None where there is none."""
    return max(self.steps(), default=None)

  def save(self, step: int, state: Any, block: bool = False) -> None:
    """Starts saving; returns once the arrays are copied, so donating them is safe.

    With `block` it returns when the step is on disk. A step that is there already stays as it is.
    An error of the save before is raised here.
    """
    from orbax.checkpoint import v1 as ocp

    self.wait()
    # `_newest` needs no look at the disk, on which processes could disagree for a moment.
    if step == self._newest or step in self.steps():
      return
    self._newest = step
    self.directory.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:  # of a killed save; no process hashes before Orbax commits
      for file in self.directory.glob(f"{step}.manifest.*"):
        file.unlink()
    context = ocp.Context()
    context.array.saving.use_compression = False  # a tenth smaller, but several times as slow
    context.array.saving.ocdbt_target_data_file_size = _FILE_BYTES  # written side by side
    with context:
      response = ocp.save_async(
        self.directory / f"saving-{step}", tree.nest(tree.flatten(state)), overwrite=True
      )
    self._pending = self._pool.submit(self._finish, step, response)
    if block:
      self.wait()

  def _finish(self, step: int, response: Any) -> None:
    """In the background: waits for the commit, hashes, renames, removes old steps.

    Processes wait for each other by looking at the files: a collective in a second thread could
    meet those of the training step in another order on every process.
    """
    response.result()
    goal, staging = self.directory / str(step), self.directory / f"saving-{step}"
    _write_manifest(self.directory, step, staging)
    if jax.process_index() != 0:
      _until(goal.exists, f"process 0 to commit {goal}")
      return
    wanted = [self.directory / f"{step}.manifest.{i}" for i in range(jax.process_count())]
    _until(lambda: all(f.exists() for f in wanted), f"the manifests of {goal}")
    staging.rename(goal)
    kept = set(self.steps()[-self.keep_last :])
    for old in self.steps():
      if old not in kept and not (self.keep_every and old % self.keep_every == 0):
        # The manifest goes first: a half-deleted step must not look whole.
        for file in self.directory.glob(f"{old}.manifest.*"):
          file.unlink()
        shutil.rmtree(self.directory / str(old))

  def wait(self) -> None:
    """Returns when nothing is being saved; raises what the save raised."""
    if self._pending is not None:
      pending, self._pending = self._pending, None
      pending.result()

  def close(self) -> None:
    """Waits, and ends the background thread."""
    try:
      self.wait()
    finally:
      self._pool.shutdown()

  def restore(self, abstract: Any, step: int | None = None) -> tuple[Any, int] | None:
    """The newest good step (or `step`) in the structure and shardings of `abstract`.

    A step that fails its checksums is logged by name and renamed to `bad-<step>`; the one before
    is tried. Returns (state, step), or None where nothing was ever saved.

    Raises:
      UserError: every step is bad, `step` is bad or not there, or the shapes are not the state's.
    """
    self.wait()
    _sync("restore")  # process 0 may still be removing old steps, and all must see the same ones
    steps = self.steps()
    if step is not None and step not in steps:
      found = ", ".join(map(str, steps)) or "none"
      raise UserError(f"{self.directory} has no step {step}; steps there: {found}")
    candidates = steps[::-1] if step is None else [step]
    problems = []
    for candidate in candidates:
      problem = verify(self.directory, candidate)
      if problem is None:
        # Loaded first: where that fails, nothing has been moved.
        state = _load(self.directory / str(candidate), abstract)
        for bad, why in problems:
          logging.warning("checkpoint %d is bad (%s): set aside as bad-%d", bad, why, bad)
          self._set_aside(bad)
        return state, candidate
      problems.append((candidate, problem))
    if problems:
      told = "; ".join(f"step {bad}: {why}" for bad, why in problems)
      raise UserError(f"{self.directory} holds no good checkpoint ({told}); nothing was changed")
    return None

  def _set_aside(self, step: int) -> None:
    if jax.process_index() == 0:
      goal = self.directory / f"bad-{step}"
      number = 1
      while goal.exists():
        goal, number = self.directory / f"bad-{step}-{number}", number + 1
      (self.directory / str(step)).rename(goal)
      for file in self.directory.glob(f"{step}.manifest.*"):
        file.rename(self.directory / f"{goal.name}.{file.name.split('.', 1)[1]}")
    _sync(f"set aside {step}")


# -------------------------------------------------------------------------------------- manifests


def _until(done: Callable[[], bool], what: str) -> None:
  deadline = time.monotonic() + _PEER_SECONDS
  while not done():
    if time.monotonic() > deadline:
      raise RuntimeError(f"waited {_PEER_SECONDS:.0f} s for {what}")
    time.sleep(0.05)


def _sync(name: str) -> None:
  """All processes come here before any goes on."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)


def _steps(directory: pathlib.Path) -> list[int]:
  if not directory.is_dir():
    return []
  return sorted(int(d.name) for d in directory.iterdir() if d.name.isdecimal() and d.is_dir())


def _files(folder: pathlib.Path) -> list[str]:
  return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())


def _checksums(folder: pathlib.Path, names: Sequence[str]) -> dict[str, list[Any]]:
  """`{name: [bytes, CRC-32 of every 16 MiB]}`, in several threads.

  Any flipped bit and any damage within 4 bytes in a row changes a CRC-32, other damage all but one
  time in 2^32. It keeps up with a fast disk, which a cryptographic hash does not.
  """

  def crc(piece: tuple[str, int]) -> int:
    name, start = piece
    with (folder / name).open("rb") as f:
      f.seek(start)
      return zlib.crc32(f.read(_PIECE_BYTES))

  sizes = {name: (folder / name).stat().st_size for name in names}
  pieces = [(name, start) for name in names for start in range(0, sizes[name], _PIECE_BYTES)]
  with concurrent.futures.ThreadPoolExecutor(_HASH_THREADS) as pool:
    found = iter(list(pool.map(crc, pieces)))
  count = lambda size: -(-size // _PIECE_BYTES)
  return {name: [size, [next(found) for _ in range(count(size))]] for name, size in sizes.items()}


def _write_manifest(directory: pathlib.Path, step: int, folder: pathlib.Path) -> None:
  """Process i of n hashes the files i, i + n, ... of the step, once all of them are committed."""
  n, i = jax.process_count(), jax.process_index()
  entries = _checksums(folder, _files(folder)[i::n])
  body = json.dumps({"processes": n, "files": entries}, sort_keys=True)
  file = directory / f"{step}.manifest.{i}"
  part = file.with_name(f".{file.name}.part")
  part.write_text(json.dumps({"sum": hashlib.blake2b(body.encode()).hexdigest(), "body": body}))
  part.replace(file)


def verify(directory: pathlib.Path, step: int) -> str | None:
  """None where every file of the step has the bytes it was saved with, else what is wrong.

  Each process checks its share; all processes get the same answer.
  """
  try:
    problem = _verify(directory, step, jax.process_index(), jax.process_count())
  except OSError as e:  # a disk that cannot be read; the other processes wait for an answer
    problem = f"{e.filename} cannot be read: {e.strerror}"
  if jax.process_count() == 1:
    return problem
  from jax.experimental import multihost_utils

  bad = multihost_utils.process_allgather(np.array(problem is not None))
  return problem or ("found bad by another process" if bad.any() else None)


def _verify(directory: pathlib.Path, step: int, index: int, count: int) -> str | None:
  manifests = sorted(directory.glob(f"{step}.manifest.*"))
  expected: dict[str, list[Any]] = {}
  processes = None
  for file in manifests:
    try:
      outer = json.loads(file.read_text())
      if hashlib.blake2b(outer["body"].encode()).hexdigest() != outer["sum"]:
        return f"{file.name} does not match its own checksum"
      body = json.loads(outer["body"])
    except (ValueError, KeyError, TypeError, AttributeError):
      return f"{file.name} is damaged"
    processes = body["processes"]
    expected |= body["files"]
  if processes is None or len(manifests) != processes:
    return "no manifest: it was not saved to the end"
  folder = directory / str(step)
  names = _files(folder)
  if missing := sorted(expected.keys() - set(names)):
    return f"{missing[0]} is missing"
  if extra := sorted(set(names) - expected.keys()):
    return f"{extra[0]} is not in the manifest"
  found = _checksums(folder, names[index::count])
  changed = [name for name, sums in found.items() if sums != expected[name]]
  return f"{changed[0]} has changed since it was saved" if changed else None


# --------------------------------------------------------------------------------------- loading


def _load(folder: pathlib.Path, abstract: Any) -> Any:
  from orbax.checkpoint import v1 as ocp

  wanted = tree.flatten(abstract)
  saved = saved_shapes(folder)
  if wrong := _differences(saved, wanted):
    raise UserError(f"{folder} does not fit this config: {'; '.join(wrong[:3])}")
  loaded = ocp.load(folder, tree.nest(wanted))
  return tree.unflatten(abstract, tree.flatten(loaded))


def _differences(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
  out = [f"{k} is not in it" for k in wanted.keys() - saved.keys()]
  out += [f"{k} is not in the state" for k in saved.keys() - wanted.keys()]
  for name in wanted.keys() & saved.keys():
    if tuple(saved[name].shape) != tuple(wanted[name].shape):
      out.append(f"{name} has shape {tuple(saved[name].shape)}, not {tuple(wanted[name].shape)}")
  return sorted(out)


def saved_shapes(folder: pathlib.Path) -> dict[str, jax.ShapeDtypeStruct]:
  """`{path: shape and dtype}` of a saved step, without reading its arrays."""
  from orbax.checkpoint import v1 as ocp

  found = tree.flatten(ocp.metadata(folder).metadata)
  return {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in found.items()}


def load(path: str | pathlib.Path, prefix: str = "", step: int | None = None) -> dict[str, Any]:
  """Host arrays `{path below prefix: array}` of a run, without its config.

  Args:
    path: a workdir (its newest good step, or `step`), or the folder of one step.
    prefix: whole path components, `params/image`; a leaf's own path gives `{"": array}`.
    step: of a workdir, this step.

  Raises:
    UserError: no folder, no good step, or nothing below `prefix`.
  """
  from orbax.checkpoint import v1 as ocp

  path = pathlib.Path(path).absolute()
  directory = path / "checkpoints"
  if path.name.isdecimal() and not directory.is_dir():
    directory, step = path.parent, int(path.name)
  good, told = None, []
  for candidate in [s for s in _steps(directory)[::-1] if step in (None, s)]:
    if (problem := verify(directory, candidate)) is None:
      good = candidate
      break
    told.append(f"step {candidate}: {problem}")
    logging.warning("%s: checkpoint %d is bad (%s)", directory, candidate, problem)
  if good is None:
    which = "" if step is None else f" of step {step}"
    raise UserError(f"{path} has no good checkpoint{which} ({'; '.join(told) or 'none saved'})")
  folder = directory / str(good)
  wanted = {k: v for k, v in saved_shapes(folder).items() if below(prefix, k) is not None}
  if not wanted:
    raise UserError(f"{path} step {good}: nothing below {prefix!r}")
  # NumPy leaves ask Orbax for host arrays: no device need hold what is only read.
  abstract = {k: np.broadcast_to(np.empty((), v.dtype), v.shape) for k, v in wanted.items()}
  context = ocp.Context()
  context.pytree.loading.partial_load = True
  with context:
    loaded = tree.flatten(ocp.load(folder, tree.nest(abstract)))
  return {below(prefix, k): np.asarray(v) for k, v in loaded.items()}


def below(prefix: str, name: str) -> str | None:
  """`("a/b", "a/b/c")` -> `"c"`; None where `name` is not below: `a/b2` is not below `a/b`."""
  prefix = prefix.rstrip("/")
  if not prefix or name == prefix:
    return name if not prefix else ""
  return name.removeprefix(f"{prefix}/") if name.startswith(f"{prefix}/") else None


# ------------------------------------------------------------------------------------- preemption


class PreemptionGuard:
  """Turns SIGTERM into a question the loop asks after each step; a context manager."""

  def __enter__(self) -> "PreemptionGuard":
    self._flag = False
    self._before = None
    try:
      # With jax.distributed started, its own handler makes all processes agree on a step.
      self._agree = jax.process_count() > 1
      if not self._agree:
        self._before = signal.signal(signal.SIGTERM, self._note)
    except ValueError:  # not the main thread: somebody else owns the signals
      self._before = None
    return self

  def _note(self, *_: Any) -> None:
    self._flag = True

  def __exit__(self, *_: Any) -> None:
    if self._before is not None:
      signal.signal(signal.SIGTERM, self._before)

  def requested(self, step: int) -> bool:
    """Whether to save and stop after `step`; the same answer on every process."""
    if self._agree:
      from jax.experimental import multihost_utils

      return multihost_utils.reached_preemption_sync_point(step)
    return self._flag
