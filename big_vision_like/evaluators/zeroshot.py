"""Zero-shot classification by captions, with prompt ensembles (Radford et al. 2021, Sec. 3.1.4)."""

import importlib.resources
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from big_vision_like import axes
from big_vision_like.config import Config, UserError
from big_vision_like.evaluators import (
  Mistake,
  Split,
  enlarged,
  hardest,
  need,
  need_numbers,
  ranks,
  whole_on_mesh,
)
from big_vision_like.input import ops

PACKAGES = ("big_vision_like.evaluators", "big_vision_like.input")


def load_classes(name: str, where: str) -> tuple[list[str], list[list[str]]]:
  """Class names, and for each class its texts: every template filled in.

  `name` is a data file of the package or a path to JSON: `{"classes": [...], "templates": [...]}`;
  a class is a name (for `{}`) or a dict (for `{key}`).

  Raises:
    UserError: no such file, or JSON of another form.
  """
  places = [importlib.resources.files(p) / "data" / f"{name}.json" for p in PACKAGES]
  file = next((f for f in [*places, pathlib.Path(name)] if f.is_file()), None)
  if file is None:
    known = [f.name[:-5] for p in PACKAGES for f in _data(p)]
    raise UserError(f"{where} = {name!r} is not a file, nor one of {', '.join(sorted(known))}")
  try:
    data = json.loads(file.read_text())
    classes = [c if isinstance(c, dict) else {"": str(c)} for c in data["classes"]]
    fill = lambda t, c: t.format(c[""]) if "" in c else t.format(**c)
    texts = [[fill(t, c) for t in data["templates"]] for c in classes]
  except (ValueError, KeyError, TypeError, IndexError, AttributeError) as e:
    raise UserError(f"{where}: {name!r} is not {{classes, templates}}: {e!r}") from None
  if not texts or not texts[0]:
    raise UserError(f"{where}: {name!r} has {len(texts)} classes and no text for them")
  return [" ".join(map(str, c.values())) for c in classes], texts


def _data(package: str) -> list[Any]:
  folder = importlib.resources.files(package) / "data"
  return [f for f in folder.iterdir() if f.name.endswith(".json")] if folder.is_dir() else []


class Evaluator:
  """Keys: source, pp (yields image and label), pp_txt (ops on `text`), classes, batch_size.

  A class is the normalised mean of the normalised embeddings of its texts.
  """

  def __init__(self, config: Config, predict: Mapping[str, Callable], mesh: jax.sharding.Mesh):
    self.mesh = mesh
    self.where = f"{config.path}.classes"
    self.image = need(predict, "image_embed", config)
    self.text = need(predict, "text_embed", config)
    self.split = Split(config, mesh, needs=("image", "label"))
    self.classes, texts = load_classes(config.classes, self.where)
    op = ops.build(config.pp_txt, f"{config.path}.pp_txt")
    rng = np.random.default_rng(0)
    tokens = [op({"text": t}, rng)["text"] for row in texts for t in row]
    need_numbers(tokens[0], "text", f"{config.path}.pp_txt = {config.pp_txt!r}")
    self.tokens = np.stack(tokens)

  def class_embeddings(self, state: Any) -> np.ndarray:
    """[K, E], of length 1."""
    with jax.set_mesh(self.mesh):
      parts = [
        axes.to_host(self.text(state.params, state.aux, batch))
        for batch in whole_on_mesh({"text": self.tokens}, self.split.batch_size, self.mesh)
      ]
    z = np.concatenate(parts)[: len(self.tokens)].astype(np.float64)
    z = z.reshape(len(self.classes), -1, z.shape[-1]).mean(axis=1)
    return z / np.linalg.norm(z, axis=-1, keepdims=True)

  def _scores(self, state: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    rows = self.split.map(lambda b: {"z": self.image(state.params, state.aux, b)})
    low, high = rows["label"].min(), rows["label"].max()
    if low < 0 or high >= len(self.classes):
      raise UserError(
        f"{self.where} holds {len(self.classes)} classes, but labels of the split go from {low} "
        f"to {high}"
      )
    return rows["z"].astype(np.float64) @ self.class_embeddings(state).T, rows

  def run(self, state: Any) -> dict[str, float]:
    """`{"accuracy": top 1, "top5": top 5 (with more than 5 classes)}`."""
    scores, rows = self._scores(state)
    rank = ranks(scores, rows["label"][:, None] == np.arange(len(self.classes))[None, :])
    out = {"accuracy": float((rank < 1).mean())}
    return out | ({"top5": float((rank < 5).mean())} if len(self.classes) > 5 else {})

  def examples(self, state: Any, count: int = 12) -> list[dict[str, Any]]:
    """The first mistakes, then right answers: image (uint8), label, predictions [(name, score)]."""
    scores, rows = self._scores(state)
    wrong = scores.argmax(axis=1) != rows["label"]
    chosen = [*np.flatnonzero(wrong)[: count // 2], *np.flatnonzero(~wrong)[:count]][:count]
    images = self.split.images(chosen)
    out = []
    for i, image in zip(chosen, images):
      top = np.argsort(-scores[i])[:3]
      predictions = [(self.classes[k], float(scores[i, k])) for k in top]
      label = self.classes[rows["label"][i]]
      out.append({"image": image, "label": label, "predictions": predictions})
    return out

  def pictures(self, state: Any) -> dict[str, np.ndarray]:
    """`similarity`: mean score of the images of each class (rows) with each class (columns)."""
    scores, rows = self._scores(state)
    present = np.unique(rows["label"])
    means = np.stack([scores[rows["label"] == k].mean(axis=0) for k in present])[:, present]
    return {"similarity": heatmap(means)}

  def mistakes(self, state: Any, n: int) -> list[Mistake]:
    """The largest margins of a wrong class over the right one, in cosines."""
    scores, rows = self._scores(state)
    at, label = np.arange(len(scores)), rows["label"]
    wrong = scores.copy()
    wrong[at, label] = -np.inf
    said = wrong.argmax(axis=1)
    margin = wrong[at, said] - scores[at, label]
    worst = hardest(margin, n)
    return [
      Mistake(i, image, self.classes[said[i]], self.classes[label[i]], float(margin[i]))
      for i, image in zip(worst, self.split.images(worst))
    ]


def heatmap(values: np.ndarray) -> np.ndarray:
  """[H, W] -> uint8 [H', W', 3], low blue to high yellow, at least 400 pixels wide."""
  from matplotlib import colormaps

  span = np.ptp(values) or 1.0
  colours = colormaps["viridis"]((values - values.min()) / span)[..., :3]
  return enlarged(np.round(colours * 255).astype(np.uint8))
