"""Accuracy on several test sets of one task, and effective robustness (Taori et al. 2020).

The natural shifts of ImageNet: V2 and Sketch are plain sets; ImageNet-A and -R have 200 of the
classes (Hendrycks et al., arXiv:1907.07174, arXiv:2006.16241), so that only their logits compete;
ReaL has several right labels an image (Beyer et al., arXiv:2006.07159).
"""

import json
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from big_vision_like.config import Config, UserError, unknown
from big_vision_like.evaluators import Split, intervals, need
from big_vision_like.evaluators.accuracy import rank
from big_vision_like.evaluators.prompts import Prompts, label_map, load_indices
from big_vision_like.evaluators.testbed import effective_robustness, load_testbed

KEYS = ("source", "pp", "batch_size", "mask", "labels", "real", "reference")
LABELS = ("mask", "all", "names")


class Evaluator:
  """Keys: sets, pp (yields image and label), batch_size; classes, pp_txt, templates (as `zeroshot`;
  without `classes` the classifier is `predict["logits"]`), reference, testbed, bootstrap (0).

  `sets` are `{name: source}` or `{name: dict}`, of keys

    source      of this set
    pp, batch_size   in place of the evaluator's
    mask        a subset of the classes: "imagenet_a", "imagenet_r", a path to JSON, or the numbers;
                a member may be a list of numbers, whose best counts (ObjectNet)
    labels      "mask": the set's labels count within the mask (folders of the subset; default);
                "all": they are the model's classes, images of classes outside are left out;
                "names": the names of the folders are the model's classes, as ImageNet-V2's "0",
                "1", "10", ..., which a sorted list puts in another order
    real        path of real.json: a list of right labels for each image; images with none are left
                out. Image folders are matched by the names of the validation files
                (ILSVRC2012_val_00000001.JPEG), other sources have to be in that order
    reference   the set that this one is a shift of, in place of the evaluator's `reference`

  `testbed` is a path to JSON, a list of `{set: accuracy}` of other models, or to CSV with a column
  for each set; accuracies are shares, not per cent. Through them goes the line
  logit(shifted) = slope * logit(reference) + intercept, and `effective_robustness` is how far this
  model's accuracy lies above it (arXiv:2007.00644, Sec. 3.1).
  """

  def __init__(self, config: Config, predict: Mapping[str, Callable], mesh: jax.sharding.Mesh):
    self.where = config.path
    sets = config.sets
    if not isinstance(sets, Mapping) or not sets:
      raise UserError(f"{config.path}.sets = {sets!r}; expected {{name: source}}")
    self.prompts = None
    if "classes" in config:
      self.prompts = Prompts(config, predict, mesh)
    self.predict = need(predict, "image_embed" if self.prompts else "logits", config)
    self.reference = config.get("reference")
    self.sets = {name: _Set(name, config, mesh, self.prompts) for name in sets}
    for name, one in self.sets.items():
      if one.reference is not None and one.reference not in self.sets:
        raise unknown(f"{config.path}: reference of {name}", one.reference, list(self.sets))
    self.bootstrap = intervals.resamples(config)
    file = config.get("testbed")
    self.testbed = load_testbed(file, f"{config.path}.testbed") if file else {}
    if file:
      self._residuals(dict.fromkeys(self.sets, 0.5))  # mistakes show before any compile

  def run(self, state: Any) -> dict[str, float]:
    """`<set>/accuracy`, `<set>/top5`, and `<set>/effective_robustness` with a testbed."""
    size = next(iter(self.sets.values())).split.batch_size
    classes = self.prompts.embed(state, size).astype(np.float32).T if self.prompts else None

    def scores(batch: Any) -> jax.Array:
      out = self.predict(state.params, state.aux, batch)
      return out if classes is None else _similarity(out, classes)

    out = {}
    for name, one in self.sets.items():
      values = {f"{name}/{k}": v for k, v in one.hits(scores).items()}
      out |= intervals.scores(values, self.bootstrap)
    found = self._residuals({name: out[f"{name}/accuracy"] for name in self.sets})
    return out | {f"{name}/effective_robustness": v for name, v in found.items()}

  def _residuals(self, accuracy: Mapping[str, float]) -> dict[str, float]:
    """Of each shifted set that the testbed knows."""
    out = {}
    for name, one in self.sets.items():
      base = one.reference
      if not self.testbed or base is None or name == base:
        continue
      for column in (base, name):
        if column not in self.testbed:
          raise unknown(f"{self.where}.testbed: set", column, list(self.testbed))
      x, y = self.testbed[base], self.testbed[name]
      out[name] = effective_robustness(accuracy[base], accuracy[name], x, y, self.where)
    return out


class _Set:
  """One test set: its split, and which of the scores compete for which label."""

  def __init__(self, name: str, config: Config, mesh: jax.sharding.Mesh, prompts: Prompts | None):
    own = config.sets[name]
    self.where = f"{config.path}.sets.{name}"
    own = own.read_all() if isinstance(own, Config) else {"source": own}
    for key in own:
      if key not in KEYS:
        raise unknown(f"{self.where}: key", key, KEYS)
    shared = {"pp": config.pp, "batch_size": config.get("batch_size", 128)}
    cfg = Config(shared | own, self.where)
    self.reference = cfg.get("reference", config.get("reference"))
    real, mask = cfg.get("real"), cfg.get("mask")
    self.split = Split(cfg, mesh, needs=("image",) if real else ("image", "label"))
    self.labels = cfg.get("labels", "mask")
    if self.labels not in LABELS:
      raise unknown(f"{self.where}.labels", self.labels, LABELS)
    if real and mask is not None:
      raise UserError(f"{self.where} has both mask and real; give one")
    self.mask = None if mask is None else load_indices(mask, f"{self.where}.mask")
    self.real = load_real(real, f"{self.where}.real", self.split) if real else None
    # Labels of a mask are known by their place in it; of a whole set also by name.
    named = self.mask is None or self.labels == "all"
    self.class_of = label_map(self.split.classes, prompts.classes) if prompts and named else None
    if self.labels == "names":
      self.class_of = _numbers(self.split.classes, self.where)
    self.ranks = jax.jit(self._ranks)

  def hits(self, scores: Callable[[Any], jax.Array]) -> dict[str, np.ndarray]:
    """Whether each image that counts is right: accuracy and, with more than 5 classes, top5."""
    keys = ("label", "index")
    small = lambda batch: {k: v for k, v in batch.items() if k in keys}
    rows = self.split.map(lambda batch: self.ranks(scores(batch), small(batch)))
    if self.real is None and rows["unknown"].any():
      wrong = rows["label"][rows["unknown"]]
      raise UserError(
        f"{self.where}: the split has label {wrong[0]}, but classes go from 0 to {self.last}"
      )
    found = rows["rank"][rows["counts"]]
    if not len(found):
      raise UserError(f"{self.where}: no image of the split counts")
    return {"accuracy": found < 1} | ({"top5": found < 5} if self.competing > 5 else {})

  def _ranks(self, scores: jax.Array, batch: Any) -> dict[str, jax.Array]:
    count = scores.shape[-1]
    if self.real is not None:
      if self.real.max() >= count:
        raise UserError(f"{self.where}.real has class {self.real.max()} of the model's {count}")
      self.competing, labels = count, jnp.asarray(self.real)[batch["index"]]
      right = jax.nn.one_hot(labels, count, dtype=jnp.int32).sum(axis=1)
      return {"rank": rank(scores, right), "counts": right.any(axis=1)}
    label, target = batch["label"], np.arange(count)
    if self.class_of is not None:
      target = self.class_of
      if target.max() >= count:
        raise UserError(f"{self.where}: class {target.max()} of the source, {count} of the model")
    if self.mask is not None:
      scores, place = masked(scores, self.mask, self.where)
      target = np.arange(len(self.mask)) if self.labels == "mask" else place[target]
    self.competing, self.last = scores.shape[-1], len(target) - 1
    unknown_label = (label < 0) | (label > self.last)
    label = jnp.asarray(target)[jnp.clip(label, 0, self.last)]
    return {"rank": rank(scores, label), "counts": label >= 0, "unknown": unknown_label}


def _numbers(names: list[str], where: str) -> np.ndarray:
  """Names of classes that are the classes' numbers."""
  if not names or not all(name.isdecimal() for name in names):
    raise UserError(f"{where}.labels = 'names', but the source's classes are {names[:3] or 'none'}")
  return np.array([int(name) for name in names])


@jax.jit
def _similarity(z: jax.Array, classes: jax.Array) -> jax.Array:
  return jnp.matmul(z.astype(jnp.float32), classes, precision=jax.lax.Precision.HIGHEST)


def masked(scores: jax.Array, mask: list[list[int]], where: str) -> tuple[jax.Array, np.ndarray]:
  """Scores [B, K] -> the mask's [B, M], the best of each member; and of each class its member.

  Classes outside of the mask have -1.
  """
  count = scores.shape[-1]
  last = max(max(m) for m in mask)
  if last >= count:
    raise UserError(f"{where}.mask has class {last} of the model's {count}")
  width = max(map(len, mask))
  members = np.array([m + m[:1] * (width - len(m)) for m in mask])
  place = np.full(count, -1)
  for i, m in enumerate(mask):
    place[m] = i
  return scores[:, members].max(axis=-1), place


def load_real(file: str, where: str, split: Split) -> np.ndarray:
  """Right labels of each image of the split: int32 [n, most], -1 where there are fewer.

  Raises:
    UserError: no such file, one of another form or length.
  """
  path = pathlib.Path(str(file)).expanduser()
  if not path.is_file():
    raise UserError(f"{where} = {file!r} is not a file")
  try:
    lists = [[int(k) for k in labels] for labels in json.loads(path.read_text(encoding="utf-8"))]
  except (ValueError, TypeError) as e:
    raise UserError(f"{where}: {file!r} is not a JSON list of lists of labels: {e}") from None
  order = _validation_order(split)
  fits = len(lists) == len(split) if order is None else max(order) < len(lists)
  if not fits:
    raise UserError(f"{where}: {file!r} has labels of {len(lists)} images, the split {len(split)}")
  order = range(len(split)) if order is None else order
  most = max(1, max(len(lists[i]) for i in order))
  return np.array([lists[i] + [-1] * (most - len(lists[i])) for i in order], np.int32)


def _validation_order(split: Split) -> list[int] | None:
  """The number of each validation file from 0, where the source has their names."""
  source = split.reader.sources[0]
  if not hasattr(source, "name"):
    return None
  found = [re.search(r"ILSVRC2012_val_(\d{8})", source.name(i)) for i in range(len(split))]
  return [int(n[1]) - 1 for n in found] if all(found) else None
