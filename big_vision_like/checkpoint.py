"""Checkpoints: Orbax, asynchronous and atomic, with a checksum manifest per step.

    checkpoints/120/                the step, as Orbax wrote it: a nested dict by path
    checkpoints/120.manifest.0      what process 0 hashed of it: {file: [bytes, blake2b]}
    checkpoints/bad-120/            a step that failed its checksums, set aside, never deleted

Orbax restores flipped bits without a word, so a step counts only when every file of it matches its
manifest. A step without a manifest was killed in the middle of a save; the step before is used.
"""

import concurrent.futures
import hashlib
import json
import logging
import pathlib
import re
import shutil
import signal
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from big_vision_like import tree
from big_vision_like.config import UserError

REQUEUE_EXIT_CODE = 85  # preempted, saved, to be started again with the same command


class Checkpointer:
  """Saves and restores states under `directory`; a context manager.

  Args:
    directory: made when the first step is saved.
    keep_last: how many of the newest steps stay.
    keep_every: steps that are a multiple of it stay for ever; None keeps none of them.
  """

  def __init__(
    self, directory: str | pathlib.Path, *, keep_last: int = 3, keep_every: int | None = None
  ):
    self.directory = pathlib.Path(directory).absolute()
    self.keep_last, self.keep_every = keep_last, keep_every
    self._pool = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
    self._pending: concurrent.futures.Future | None = None

  def __enter__(self) -> "Checkpointer":
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()

  def steps(self) -> list[int]:
    """Committed steps that have a manifest of every process that wrote one, oldest first."""
    if not self.directory.is_dir():
      return []
    return sorted(int(d.name) for d in self.directory.iterdir() if d.name.isdigit())

  def latest(self) -> int | None:
    """The newest step, verified or not; None where there is none."""
    return max(self.steps(), default=None)

  def save(self, step: int, state: Any) -> None:
    """Starts saving; returns once the arrays are copied, so donating them is safe.

    A step that is there already stays as it is. An error of the save before is raised here.
    """
    from orbax.checkpoint import v1 as ocp

    self.wait()
    if step in self.steps():
      return
    self.directory.mkdir(parents=True, exist_ok=True)
    response = ocp.save_async(
      self.directory / str(step), tree.nest(tree.flatten(state)), overwrite=True
    )
    self._pending = self._pool.submit(self._finish, step, response)

  def _finish(self, step: int, response: Any) -> None:
    """In the background: waits for the commit, writes the manifest, removes old steps."""
    response.result()
    _write_manifest(self.directory, step)
    if jax.process_index() == 0:
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
    steps = self.steps()
    if step is not None and step not in steps:
      found = ", ".join(map(str, steps)) or "none"
      raise UserError(f"{self.directory} has no step {step}; steps there: {found}")
    candidates = steps[::-1] if step is None else [step]
    problems = []
    for candidate in candidates:
      problem = verify(self.directory, candidate)
      if problem is None:
        for bad, why in problems:
          logging.warning("checkpoint %s is bad (%s): set aside as bad-%d", bad, why, bad)
          self._set_aside(bad)
        return _load(self.directory / str(candidate), abstract), candidate
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
    if jax.process_count() > 1:
      from jax.experimental import multihost_utils

      multihost_utils.sync_global_devices(f"set aside {step}")


# -------------------------------------------------------------------------------------- manifests


def _files(folder: pathlib.Path) -> list[str]:
  return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())


def _hash(file: pathlib.Path) -> list[Any]:
  with file.open("rb") as f:
    return [file.stat().st_size, hashlib.file_digest(f, "blake2b").hexdigest()]


def _write_manifest(directory: pathlib.Path, step: int) -> None:
  """Process i of n hashes the files i, i + n, ... of the step, once all of them are committed."""
  folder, n, i = directory / str(step), jax.process_count(), jax.process_index()
  entries = {name: _hash(folder / name) for name in _files(folder)[i::n]}
  body = json.dumps({"processes": n, "files": entries}, sort_keys=True)
  file = directory / f"{step}.manifest.{i}"
  part = file.with_name(f".{file.name}.part")
  part.write_text(json.dumps({"sum": hashlib.blake2b(body.encode()).hexdigest(), "body": body}))
  part.replace(file)


def verify(directory: pathlib.Path, step: int) -> str | None:
  """None where every file of the step has the bytes it was saved with, else what is wrong.

  Each process checks its share; all processes get the same answer.
  """
  problem = _verify(directory, step, jax.process_index(), jax.process_count())
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
  for name in names[index::count]:
    if _hash(folder / name) != expected[name]:
      return f"{name} has changed since it was saved"
  return None


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
  """Host arrays `{path below prefix: array}` of a workdir's newest good step, or of `step`.

  Raises:
    UserError: no folder, no good step, or nothing below `prefix`.
  """
  from orbax.checkpoint import v1 as ocp

  directory = pathlib.Path(path).absolute() / "checkpoints"
  checkpointer = Checkpointer(directory)
  steps = [s for s in checkpointer.steps()[::-1] if step in (None, s)]
  good = next((s for s in steps if verify(directory, s) is None), None)
  if good is None:
    raise UserError(f"{path}: no good checkpoint below {directory}")
  folder = directory / str(good)
  wanted = {k: v for k, v in saved_shapes(folder).items() if k.startswith(prefix)}
  if not wanted:
    raise UserError(f"{path} step {good}: nothing below {prefix!r}")
  one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  abstract = {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=one) for k, v in wanted.items()}
  context = ocp.Context()
  context.pytree.loading.partial_load = True
  with context:
    loaded = tree.flatten(ocp.load(folder, tree.nest(abstract)))
  return {k.removeprefix(prefix).lstrip("/"): np.asarray(v) for k, v in loaded.items()}


def init_from(state: Any, spec: Mapping[str, Any]) -> tuple[Any, str]:
  """Starts parts of a fresh state from saved runs: `config.init_from`.

      {"params/image": "runs/a::params/image",                   # one part from another run
       "params": dict(path="runs/b", rename=[("old/(.*)", r"new/\\1")], reinit=["head/.*"])}

  Keys are paths in the state, values a workdir, after `::` a path in it (the key where left out).
  `rename` is applied to the saved names, first match wins. What matches `reinit` stays as it is.

  Returns:
    The state, and a table of what was taken, left at its initialisation, and not used.

  Raises:
    UserError: a shape that differs and is not under `reinit`, or nothing was taken.
  """
  flat, lines = dict(tree.flatten(state)), []
  for target, value in spec.items():
    value = {"path": value} if isinstance(value, str) else value
    path, _, prefix = value["path"].partition("::")
    rename: Sequence = value.get("rename", ())
    reinit: Sequence = value.get("reinit", ())
    saved = {_renamed(k, rename): v for k, v in load(path, prefix or target).items()}
    names = {n.removeprefix(target).lstrip("/"): n for n in flat if n.startswith(target)}
    taken = 0
    for short, name in names.items():
      old = flat[name]
      if tree.first_match(reinit, short) is not None:
        lines.append(f"left   {name} (reinit)")
      elif short not in saved:
        lines.append(f"left   {name} (not in {path})")
      elif saved[short].shape != old.shape:
        raise UserError(
          f"config.init_from: {name} has shape {old.shape}, {path} has {saved[short].shape}; "
          f"add {short!r} to reinit, or change the model"
        )
      else:
        flat[name] = jax.device_put(saved[short].astype(old.dtype), old.sharding)
        taken += 1
        lines.append(f"taken  {name}")
    if not taken:
      raise UserError(f"config.init_from: nothing of {path}::{prefix or target} fits {target}")
    lines += [f"unused {path}: {k}" for k in sorted(saved.keys() - names.keys())]
  return tree.unflatten(state, flat), "\n".join(lines)


def _renamed(name: str, rules: Sequence[tuple[str, str]]) -> str:
  for pattern, replacement in rules:
    if re.fullmatch(pattern, name):
      return re.sub(pattern, replacement, name)
  return name


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
