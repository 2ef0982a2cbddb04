"""Instance retrieval: mean average precision, all of it and of the first k (Radenovic et al. 2018).

Every query ranks the gallery by cosine. What is relevant says the label, or a file of lists in the
manner of Revisited Oxford and Paris (arXiv:1803.11285), with its easy, medium and hard protocols.
"""

import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from big_vision_like.config import Config, UserError, unknown, whole_number
from big_vision_like.evaluators import Split, intervals, need

SCORES = 1 << 24  # ranked at a time
PROTOCOLS = {
  "easy": (("easy",), ("junk", "hard")),
  "medium": (("easy", "hard"), ("junk",)),
  "hard": (("hard",), ("junk", "easy")),
}
"""Lists of a query that are relevant, and lists that are ignored (Sec. 3.2 there)."""
RULES = ("step", "trapezoid")

Relevance = Iterator[tuple[slice, np.ndarray, np.ndarray]]
"""Chunks of queries: rows, relevant bool [q, N], ignored bool [q, N]."""


class Evaluator:
  """Keys: source (queries), source_gallery, pp (yields image and label), batch_size, k (100),
  ground_truth, rule, bootstrap (0).

  Without `source_gallery` every query is looked for among the others. By label: gallery items of
  the query's label are relevant, those of label -1 ignored, as is the query itself.

  With `ground_truth`, a path to JSON: a list, for each query in the order of the source, of
  `{"easy": [rows of the gallery], "hard": [...], "junk": [...]}`; labels are not needed, and the
  metrics come as `easy/mAP`, `medium/mAP@k`, ... A query without a relevant item in a protocol
  does not count.

  AP is the mean over relevant items of the precision at their place (`rule="step"`, scikit-learn's
  average_precision_score). `rule="trapezoid"`, the default with `ground_truth`, also averages with
  the precision just before, as the Oxford and Paris benchmarks do. `k` is a number or several;
  `mAP@k` divides by min(relevant items, k) (Google Landmarks, arXiv:2004.01804, Sec. 5.1).
  `bootstrap=1000` adds 95 % intervals over queries.
  """

  def __init__(self, config: Config, predict: Mapping[str, Callable], mesh: jax.sharding.Mesh):
    self.where = config.path
    self.embed = need(predict, "image_embed", config)
    file = config.get("ground_truth")
    needs = ("image",) if file else ("image", "label")
    self.queries = Split(config, mesh, needs=needs)
    self.gallery = None
    if config.get("source_gallery"):
      self.gallery = Split(config, mesh, needs=needs, source="source_gallery")
    ks = config.get("k", 100)
    ks = (ks,) if isinstance(ks, int) else ks
    self.ks = tuple(whole_number(k, f"{config.path}.k") for k in ks)
    self.rule = config.get("rule", "trapezoid" if file else "step")
    if self.rule not in RULES:
      raise unknown(f"{config.path}.rule", self.rule, RULES)
    self.lists = None
    if file:
      size = len(self.gallery or self.queries)
      self.lists = load_lists(file, f"{config.path}.ground_truth", len(self.queries), size)
    self.bootstrap = intervals.resamples(config)

  def run(self, state: Any) -> dict[str, float]:
    """`mAP` and `mAP@k`; with `ground_truth` these of each protocol, `medium/mAP`, ..."""
    features = lambda split: split.map(lambda b: {"z": self.embed(state.params, state.aux, b)})
    queries = features(self.queries)
    gallery = features(self.gallery) if self.gallery else queries
    z, items = (_unit(rows["z"]) for rows in (queries, gallery))
    out = {}
    for name in PROTOCOLS if self.lists else [""]:
      relevance = self._by_list(name, len(items)) if name else self._by_label(queries, gallery)
      out |= self._scores(z, items, relevance, f"{name}/" if name else "")
    return out

  def _scores(
    self, z: np.ndarray, items: np.ndarray, relevance: Relevance, prefix: str
  ) -> dict[str, float]:
    found: dict[str, list[np.ndarray]] = {f"{prefix}mAP{f'@{k}' if k else ''}": [] for k in self._k}
    for rows, relevant, junk in relevance:
      ranked = rank_items(z[rows] @ items.T, relevant, junk)
      ranked = ranked[ranked.any(axis=1)]
      for name, k in zip(found, self._k):
        found[name].append(average_precision(ranked, k, self.rule))
    values = {name: np.concatenate(parts) for name, parts in found.items()}
    if not all(map(len, values.values())):
      raise UserError(f"{self.where}: no query has a relevant item in the gallery")
    return intervals.scores(values, self.bootstrap)

  @property
  def _k(self) -> tuple[int | None, ...]:
    return (None, *self.ks)

  def _chunks(self, count: int) -> Iterator[slice]:
    size = max(1, SCORES // count)
    yield from (slice(s, s + size) for s in range(0, len(self.queries), size))

  def _by_label(self, queries: Mapping[str, Any], gallery: Mapping[str, Any]) -> Relevance:
    known = gallery["label"]
    for rows in self._chunks(len(known)):
      asked = queries["label"][rows]
      junk = np.broadcast_to(known == -1, (len(asked), len(known))).copy()
      if not self.gallery:
        junk[np.arange(len(asked)), np.arange(rows.start, rows.start + len(asked))] = True
      yield rows, (asked[:, None] == known) & ~junk, junk

  def _by_list(self, protocol: str, count: int) -> Relevance:
    good, ignored = PROTOCOLS[protocol]
    for rows in self._chunks(count):
      lists = self.lists[rows]
      relevant, junk = (np.zeros((len(lists), count), bool) for _ in range(2))
      for i, query in enumerate(lists):
        for table, keys in ((relevant, good), (junk, ignored)):
          table[i, [row for key in keys for row in query.get(key, ())]] = True
        if not self.gallery:
          junk[i, rows.start + i] = True
      yield rows, relevant & ~junk, junk


def load_lists(file: str, where: str, queries: int, gallery: int) -> list[dict[str, list[int]]]:
  """Of each query its easy, hard and junk rows of the gallery.

  Raises:
    UserError: no such file, a pickle, another number of queries, a row that is not there.
  """
  path = pathlib.Path(str(file)).expanduser()
  if not path.is_file():
    raise UserError(f"{where} = {file!r} is not a file")
  try:
    data = json.loads(path.read_text(encoding="utf-8"))
    lists = [{k: [int(r) for r in v] for k, v in q.items()} for q in data]
  except (ValueError, TypeError, AttributeError) as e:
    raise UserError(f"{where}: {file!r} is not a JSON list of {{easy, hard, junk}}: {e}") from None
  if len(lists) != queries:
    raise UserError(f"{where}: {file!r} has {len(lists)} queries, the source {queries}")
  for query in lists:
    for key, rows in query.items():
      if key not in ("easy", "hard", "junk"):
        raise unknown(f"{where}: list", key, ("easy", "hard", "junk"))
      if rows and not 0 <= min(rows) <= max(rows) < gallery:
        raise UserError(f"{where}: {key} has a row outside of the gallery's {gallery}")
  return lists


def rank_items(scores: np.ndarray, relevant: np.ndarray, junk: np.ndarray) -> np.ndarray:
  """Whether the item at each place of the ranking is relevant, junk taken out: [Q, N] -> [Q, N].

  Places that junk leaves empty are at the end and not relevant. Ties and NaN count against the
  relevant items, so that a collapsed model does not profit.
  """
  scores = np.where(np.isnan(scores), np.where(relevant, -np.inf, np.inf), scores)
  order = np.lexsort((relevant, -scores, junk), axis=-1)
  return np.take_along_axis(relevant & ~junk, order, axis=-1)


def average_precision(ranked: np.ndarray, k: int | None = None, rule: str = "step") -> np.ndarray:
  """AP, or AP@k, of rankings bool [Q, N] with at least one relevant item each: float64 [Q]."""
  total = ranked.sum(axis=1)
  ranked = ranked[:, :k]
  hits, places = np.cumsum(ranked, axis=1), np.arange(1, ranked.shape[1] + 1)
  precision = hits / places
  if rule == "trapezoid":
    # Before a hit at place p there were hits - 1 among p - 1; before the first place it is 1.
    before = np.where(places == 1, 1.0, (hits - 1) / np.maximum(places - 1, 1))
    precision = (precision + before) / 2
  return (precision * ranked).sum(axis=1) / np.minimum(total, k or ranked.shape[1])


def _unit(z: np.ndarray) -> np.ndarray:
  z = z.astype(np.float32)
  return z / np.maximum(np.linalg.norm(z, axis=-1, keepdims=True), 1e-12)
