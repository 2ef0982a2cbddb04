"""What is embedded: a folder of images or a source, and the preprocessing of the training run."""

import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from big_vision_like.config import UserError, parse_spec, unknown
from big_vision_like.input import ops, paths
from big_vision_like.input.bad import Bad, BadExample, describe
from big_vision_like.input.ops import keys, text, text_masks
from big_vision_like.input.pipeline import EVAL_KEY
from big_vision_like.input.reader import each_good, sampled
from big_vision_like.input.sources import functions, open_source
from big_vision_like.input.sources.folders import IMAGES

COLUMNS = ("path", "key", "label", "text", "image_id")
"""Of an example as its source has it; those that are there are written beside the embedding."""
KINDS = {"i": "int", "u": "int", "b": "int", "f": "float", "U": "str", "S": "str"}
Example = dict[str, Any]


class Folder:
  """Every image below a folder, at any depth, sorted by path: image (encoded), path.

  Where all of them lie in folders, the first one is the class, as in source `image_folder`: label
  and text. Names that begin with a dot and links to folders are left out.
  """

  def __init__(self, root: str):
    self.root = root
    hidden = lambda name: any(part[0] == "." for part in name.split("/"))
    self.paths = [n for n in paths.listed(root, "--input", IMAGES) if not hidden(n)]
    if not self.paths:
      raise UserError(f"--input {root}: no images there; known: {', '.join(IMAGES)}")
    in_folders = all("/" in p for p in self.paths)
    self.classes = sorted({p.split("/")[0] for p in self.paths}) if in_folders else []
    self._labels = {name: i for i, name in enumerate(self.classes)}

  def __len__(self) -> int:
    return len(self.paths)

  def __getitem__(self, index: int) -> Example:
    name = self.paths[index]
    file = paths.inside(self.root, name)
    data = paths.read_bytes(file, where="--input")
    if not data:
      raise BadExample("empty file", file)
    out: Example = {"image": data, "path": name}
    if self.classes:
      folder = name.split("/")[0]
      out |= {"label": self._labels[folder], "text": folder}
    return out


def open_input(value: str) -> Any:
  """A folder or a source.

  Raises:
    UserError: neither of them, or nothing in it.
  """
  folder = os.path.expanduser(value)
  if os.path.isdir(folder):
    return Folder(folder)
  if "(" not in value:
    raise UserError(f"--input {value}: no such folder, and no source such as digits(split='test')")
  source = open_source(value, "--input")
  if not len(source):
    raise UserError(f"--input {value!r} has no examples")
  return source


def evaluation_pp(config: Mapping[str, Any], key: str, name: str | None = None) -> str:
  """The ops that the run's evaluations apply to `key`, "image" or "text".

  Those of the first of `config.evals` that has a `pp` (or of `name`); for an image without the ops
  on texts and the choice of keys (`ops/text.py`, `ops/text_masks.py`, `ops/keys.py`), for a text
  only those of `ops/text.py`. So an image needs no caption, and a caption no image.

  Raises:
    UserError: no evaluation with a `pp`, or none that has an op for a text.
  """
  evals = {n: cfg for n, cfg in config["evals"].items() if "pp" in cfg}
  if name is not None and name not in evals:
    raise unknown("--eval", name, list(evals))
  if not evals:
    raise UserError("no evaluation of the run has preprocessing; give --pp")
  on_text, others = functions((text,)), functions((text_masks, keys))

  def calls(name: str) -> str:
    kept = [
      call
      for call in parse_spec(evals[name]["pp"], f"config.evals.{name}.pp")
      if (call.name in on_text if key == "text" else call.name not in on_text | others)
    ]
    return "|".join(map(str, kept))

  names = [name] if name else list(evals)
  if key == "image":
    return calls(names[0])
  if not (found := next((pp for pp in map(calls, names) if pp), "")):
    raise UserError(f"no op on texts in config.evals.{', '.join(names)}; give --pp")
  return found


def names_of(source: Any) -> list[str] | None:
  """Paths of the images of a folder; None of a source."""
  return source.paths if isinstance(source, Folder) else None


class Row(NamedTuple):
  """A good example: its number, arrays for the model, and values of the columns."""

  index: int
  arrays: Example
  columns: dict[str, Any]


class Loaded(NamedTuple):
  """What became of a chunk."""

  rows: list[Row]
  bad: tuple[Bad, ...] = ()
  error: str | None = None


class Loader:
  """`(first, count) -> Loaded`, as `pipeline.read_ahead` wants it for threads.

  Args:
    value: a folder or a source.
    pp: the ops; what they yield as numbers is there for the model.

  Attributes:
    columns: name -> kind, see `kinds_of`; empty at first.
  """

  def __init__(self, value: str, pp: str):
    self.columns: dict[str, str] = {}
    self.spec, self.source, self.ops = value, open_input(value), ops.build(pp, "--pp")

  def __call__(self, first: int, count: int) -> Loaded:
    """Examples first to first + count; an error of the user's is a value."""
    rows: list[Row] = []
    found: list[Bad] = []
    try:
      # The key of an evaluation: the same numbers as an evaluator's.
      how = dict(key=EVAL_KEY, spec=self.spec, found=found)
      for index, raw, example in each_good(
        self.source, self.ops, range(first, first + count), **how
      ):
        try:
          columns = {k: value(raw.get(k), kind) for k, kind in self.columns.items()}
        except (TypeError, ValueError) as e:
          found.append(describe(e, self.spec, index))
          continue
        rows.append(Row(index, example, columns))
    except UserError as e:
      return Loaded([], tuple(found), str(e))
    return Loaded(rows, tuple(found))

  def sample(self) -> tuple[Row, dict[str, Any]]:
    """The first example that can be read among some of all, and as its source has it.

    Raises:
      UserError: none can be read; the last reason.
    """
    n, loaded = len(self.source), Loaded([])
    tried = sampled(n)
    for index in tried:
      loaded = self(index, 1)
      if loaded.error:
        raise UserError(loaded.error)
      if loaded.rows:
        return loaded.rows[0], dict(self.source[index])
    raise UserError(f"none of {len(tried)} examples can be read; {loaded.bad[-1]}")


def kinds_of(raw: Mapping[str, Any], wanted: list[str]) -> dict[str, str]:
  """Columns of an example, and their kinds: `COLUMNS` that it has, and those `wanted`.

  Raises:
    UserError: a wanted one is not there, or is an array.
  """
  out = {}
  for key in [*COLUMNS, *wanted]:
    x = raw.get(key)
    kind = "str" if isinstance(x, list) else KINDS.get(np.asarray(x).dtype.kind)
    if x is not None and np.ndim(x) == (1 if isinstance(x, list) else 0) and kind:
      out[key] = kind
    elif key in wanted:
      raise unknown("--key", key, [k for k, v in raw.items() if np.ndim(v) == 0])
  return out


def value(x: Any, kind: str) -> Any:
  """As it is written: a str, an int, a float, or None. Several texts become JSON."""
  if x is None:
    return None
  if kind == "str":
    if isinstance(x, (list, tuple)):
      return json.dumps([value(t, "str") for t in x], ensure_ascii=False)
    return x.decode() if isinstance(x, bytes) else str(x)
  return int(x) if kind == "int" else float(x)
