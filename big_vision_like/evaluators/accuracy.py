"""Classification accuracy of `predict["logits"]`: top 1, and top 5 with more than 5 classes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from big_vision_like.config import Config, UserError
from big_vision_like.evaluators import Mistake, Split, hardest, intervals, nearest, need


class Evaluator:
  """Keys: source, pp (yields image and label), batch_size, heads, source_train, bootstrap.

  `label` is [B], or [B, K] with several right classes, of which any counts. With `heads=("a", "b")`
  the method has several classifiers, asked for by `head=`: the metrics are those of the best and,
  as `a/accuracy`, of each. With `source_train` there is `pixels`: the accuracy of the nearest
  neighbour by Euclidean distance of raw pixels, what a trained model has to beat. `bootstrap=1000`
  adds 95 % intervals, `accuracy/low` and `accuracy/high`.
  """

  def __init__(self, config: Config, predict: Mapping[str, Callable], mesh: jax.sharding.Mesh):
    self.where = config.path
    self.logits = need(predict, "logits", config)
    self.bootstrap = intervals.resamples(config)
    self.split = Split(config, mesh, needs=("image", "label"))
    self.heads = config.get("heads", ())
    if isinstance(self.heads, str) or not isinstance(self.heads, Sequence):
      raise UserError(f"{config.path}.heads = {self.heads!r}; expected a tuple of names")
    self.train = self.pixels = None
    if config.get("source_train"):
      self.train = Split(config, mesh, needs=("image", "label"), source="source_train")

  def _accuracy(self, state: Any, **options: Any) -> dict[str, float]:
    classes = 0

    def ranks(batch: Any) -> dict[str, jax.Array]:
      nonlocal classes
      logits = self.logits(state.params, state.aux, batch, **options)
      classes = logits.shape[-1]
      return {"rank": rank(logits, batch["label"])}

    rows = self.split.map(ranks)
    if "label" in rows and not 0 <= rows["label"].min() <= rows["label"].max() < classes:
      raise UserError(
        f"{self.where}: the method has {classes} classes, but labels of the split go from "
        f"{rows['label'].min()} to {rows['label'].max()}"
      )
    values = {"accuracy": rows["rank"] < 1} | ({"top5": rows["rank"] < 5} if classes > 5 else {})
    return intervals.scores(values, self.bootstrap)

  def run(self, state: Any) -> dict[str, float]:
    """`{"accuracy": top 1, "top5": ..., "<head>/accuracy": ..., "pixels": ...}`."""
    if self.heads:
      each = {head: self._accuracy(state, head=head) for head in self.heads}
      out = max(each.values(), key=lambda scores: scores["accuracy"])
      out |= {f"{head}/accuracy": scores["accuracy"] for head, scores in each.items()}
    else:
      out = self._accuracy(state)
    if self.train and self.pixels is None:
      self.pixels = nearest_neighbour(self.train, self.split)
    return out | ({"pixels": self.pixels} if self.train else {})

  def mistakes(self, state: Any, n: int) -> list[Mistake]:
    """The largest margins of a wrong class over the right one, in logits; of the best head."""
    options = {}
    if self.heads:
      best = max(self.heads, key=lambda head: self._accuracy(state, head=head)["accuracy"])
      options["head"] = best
    logits = lambda batch: self.logits(state.params, state.aux, batch, **options)
    rows = self.split.map(lambda batch: margin(logits(batch), batch["label"]))
    worst = hardest(rows["margin"], n)
    return [
      Mistake(i, image, str(rows["wrong"][i]), str(rows["right"][i]), float(rows["margin"][i]))
      for i, image in zip(worst, self.split.images(worst))
    ]


def _right(label: jax.Array, classes: int) -> jax.Array:
  """[B] or [B, K] -> bool [B, K]."""
  return jax.nn.one_hot(label, classes) > 0 if label.ndim == 1 else label > 0


@jax.jit
def rank(logits: jax.Array, label: jax.Array) -> jax.Array:
  """How many wrong classes score no less than the best right one: [B, K], [B] or [B, K] -> [B].

  Ties and NaN count against the right class, so that a collapsed model scores zero.
  """
  right = _right(label, logits.shape[-1])
  best = jnp.max(jnp.where(right, logits, -jnp.inf), axis=-1, keepdims=True)
  return jnp.sum(~(logits < best) & ~right, axis=-1)


@jax.jit
def margin(logits: jax.Array, label: jax.Array) -> dict[str, jax.Array]:
  """The best `wrong` and the best `right` class, and the first's `margin` over the second: [B]."""
  logits, right = logits.astype(jnp.float32), _right(label, logits.shape[-1])
  of_right, of_wrong = jnp.where(right, logits, -jnp.inf), jnp.where(right, -jnp.inf, logits)
  return {
    "margin": jnp.max(of_wrong, axis=-1) - jnp.max(of_right, axis=-1),
    "wrong": jnp.argmax(of_wrong, axis=-1),
    "right": jnp.argmax(of_right, axis=-1),
  }


def nearest_neighbour(train: Split, test: Split) -> float:
  """Accuracy of the label of the training image that is nearest in pixels."""
  known, asked = train.pixels(), test.pixels()
  _, row = nearest(asked["x"], known["x"])
  return float((known["label"][row] == asked["label"]).mean())
