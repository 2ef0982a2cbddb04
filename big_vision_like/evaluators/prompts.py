"""Class names and prompts of zero-shot classifiers: files, lists, and their embeddings."""

import importlib.resources
import json
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from big_vision_like import axes
from big_vision_like.config import Config, UserError
from big_vision_like.evaluators import need, need_numbers, whole_on_mesh
from big_vision_like.input import ops

PACKAGES = ("big_vision_like.evaluators", "big_vision_like.input")
TEMPLATE = "a photo of a {}."
"""Of lists that bring no templates of their own (Radford et al. 2021, Sec. 3.1.4)."""
SOURCE = "source"
"""In the place of a list's name: the classes that the data set itself names."""


class ClassList(NamedTuple):
  """`texts`: of each class every template filled in; `ids`: what else the classes are called."""

  names: list[str]
  texts: list[list[str]]
  ids: list[str]


def load_classes(
  name: str,
  where: str,
  templates: str | Sequence[str] | None = None,
  own: Sequence[str] = (),
) -> ClassList:
  """The list `name`: a data file of the package, or a path to .json or .txt (a class a line).

  JSON is a list of classes or `{"classes": [...], "templates": [...]}`, or part of another list:
  `{"subset_of": name, "indices": [...]}`. A class is a name, a list of synonyms (both for `{}`) or
  a dict (for `{key}`). `own` are the data set's names, which "source" stands for.

  Args:
    templates: in place of the list's own: the name or path of a list that has some, a path to
      .txt (one a line), or the templates themselves.

  Raises:
    UserError: no such file, or one of another form.
  """
  data = {"classes": list(own)} if name == SOURCE else _read(name, where)
  if name == SOURCE and not own:
    raise UserError(f"{where} = 'source', but the source has no names of classes")
  if templates is not None:
    data = {**data, "templates": _templates(templates, where.rpartition(".")[0] + ".templates")}
  filled = data.get("templates", [TEMPLATE])
  try:
    classes = data["classes"]
    texts = [[_fill(t, n) for n in _synonyms(c) for t in filled] for c in classes]
  except (ValueError, KeyError, TypeError, IndexError, AttributeError) as e:
    raise UserError(f"{where}: {name!r} is not {{classes, templates}}: {e!r}") from None
  if not texts or not all(texts):
    raise UserError(f"{where}: {name!r} has {len(texts)} classes and no text for them")
  names = [
    " ".join(map(str, c.values())) if isinstance(c, dict) else str(_synonyms(c)[0]) for c in classes
  ]
  return ClassList(names, texts, list(data.get("ids", ())))


def load_indices(mask: Any, where: str) -> list[list[int]]:
  """Classes of a subset: a data file's name, a path to JSON, or a list; of each the classes it is.

  A member is a class's number, or a list of numbers: a class of the subset that several classes of
  the model belong to, as in ObjectNet.

  Raises:
    UserError: no such file, or no list of whole numbers >= 0.
  """
  data = _read(mask, where) if isinstance(mask, str) else {"classes": mask}
  found = data.get("indices", data.get("classes"))
  try:
    out = [[int(i) for i in (m if isinstance(m, (list, tuple)) else [m])] for m in found]
  except (TypeError, ValueError):
    out = []
  if not out or not all(m and min(m) >= 0 for m in out):
    raise UserError(f"{where} = {mask!r}; expected a list of classes' numbers, or a file with one")
  return out


def label_map(labels: Sequence[str], classes: ClassList) -> np.ndarray | None:
  """The class of each label, by the names a data set gives its labels; None where they differ.

  Case, `_` and `-` do not matter. OpenAI's Pets, say, are in another order than the data set's.
  Names that are whole numbers are the classes' numbers: folders "0", "1", "10", ... of ImageNet-V2,
  whose sorted order is not that of the numbers.
  """
  if labels and all(re.fullmatch(r"\d{1,9}", n) for n in labels):
    numbers = np.array([int(n) for n in labels])
    return numbers if numbers.max() < len(classes.names) else None
  plain = lambda s: str(s).lower().replace("_", " ").replace("-", " ").strip()
  for names in (classes.names, classes.ids):
    at = {plain(n): i for i, n in enumerate(names)}
    if labels and len(at) == len(names) and all(plain(n) in at for n in labels):
      return np.array([at[plain(n)] for n in labels])
  return None


class Prompts:
  """A zero-shot classifier's texts as tokens. Keys: classes, templates, pp_txt.

  `own`: names of the classes by the data set.
  """

  def __init__(
    self,
    config: Config,
    predict: Mapping[str, Callable],
    mesh: jax.sharding.Mesh,
    own: Sequence[str] = (),
  ):
    self.mesh, self.text = mesh, need(predict, "text_embed", config)
    templates = config.get("templates")
    self.classes = load_classes(config.classes, f"{config.path}.classes", templates, own)
    self.tokens = tokens([t for row in self.classes.texts for t in row], config)

  def embed(self, state: Any, batch_size: int) -> np.ndarray:
    """float64 [K, E]: of each class the mean of its texts' embeddings, of length 1."""
    z = embed_tokens(self.text, state, self.tokens, batch_size, self.mesh).astype(np.float64)
    ends = np.cumsum([len(texts) for texts in self.classes.texts])
    z = np.stack([part.mean(axis=0) for part in np.split(z, ends[:-1])])
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def tokens(texts: Sequence[str], config: Config) -> np.ndarray:
  """int32 [n, L]: each text after the ops `config.pp_txt`.

  Raises:
    UserError: ops that leave a string.
  """
  op = ops.build(config.pp_txt, f"{config.path}.pp_txt")
  rng = np.random.default_rng(0)
  first = op({"text": texts[0]}, rng)["text"]
  need_numbers(first, "text", f"{config.path}.pp_txt = {config.pp_txt!r}")
  return np.stack([first, *(op({"text": t}, rng)["text"] for t in texts[1:])])


def embed_tokens(
  text: Callable, state: Any, tokens: np.ndarray, batch_size: int, mesh: jax.sharding.Mesh
) -> np.ndarray:
  """`text` of tokens [n, L] that every process holds: [n, E]."""
  with jax.set_mesh(mesh):
    parts = [
      axes.to_host(text(state.params, state.aux, batch))
      for batch in whole_on_mesh({"text": tokens}, batch_size, mesh)
    ]
  return np.concatenate(parts)[: len(tokens)]


def _synonyms(entry: Any) -> list[Any]:
  return list(entry) if isinstance(entry, (list, tuple)) else [entry]


def _fill(template: str, name: Any) -> str:
  return template.format(**name) if isinstance(name, dict) else template.format(str(name))


def _templates(templates: Any, where: str) -> list[str]:
  if isinstance(templates, str):
    data = _read(templates, where)
    templates = data.get("templates", data["classes"] if set(data) == {"classes"} else ())
  if not templates or not all(isinstance(t, str) for t in templates):
    raise UserError(f"{where} = {templates!r}; expected a list's name, a file or several strings")
  return list(templates)


def _read(name: str, where: str) -> dict[str, Any]:
  """A data file: what it has, and what the list that it is a subset of has."""
  places = [importlib.resources.files(p) / "data" / f"{name}.json" for p in PACKAGES]
  file = next((f for f in [*places, pathlib.Path(str(name)).expanduser()] if f.is_file()), None)
  if file is None:
    known = [f.name[:-5] for p in PACKAGES for f in _data(p)]
    raise UserError(f"{where} = {name!r} is not a file, nor one of {', '.join(sorted(known))}")
  try:
    text = file.read_text(encoding="utf-8")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    data = lines if file.name.endswith(".txt") else json.loads(text)
  except ValueError as e:
    raise UserError(f"{where}: {name!r} is no JSON: {e}") from None
  if isinstance(data, list):
    return {"classes": data}
  if not isinstance(data, dict):
    raise UserError(f"{where}: {name!r} is not {{classes, templates}}")
  if "subset_of" not in data:
    return data
  whole = _read(data["subset_of"], where)
  rows = data.get("indices", range(len(whole["classes"])))
  part = {k: [whole[k][i] for i in rows] for k in ("classes", "ids") if k in whole}
  return {"templates": whole.get("templates", [TEMPLATE]), **part, **data}


def _data(package: str) -> list[Any]:
  folder = importlib.resources.files(package) / "data"
  return [f for f in folder.iterdir() if f.name.endswith(".json")] if folder.is_dir() else []
