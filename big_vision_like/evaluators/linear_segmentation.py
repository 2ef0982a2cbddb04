"""Linear segmentation: a linear layer on frozen patch tokens (DINOv2, arXiv:2304.07193, Sec. 7.4).

    logits = upsample(W norm(tokens) + b)       bilinear, to the size of the segmentation

norm standardises each channel by its mean and deviation over the training split. The layer is
trained here, from a fixed seed, with AdamW and a cosine to zero; the score is

    mIoU = mean over classes c of |pred = c and true = c| / |pred = c or true = c|

over all pixels of the split at once, those with the ignore label left out; classes that neither
occur nor are predicted do not count.
"""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from big_vision_like import axes
from big_vision_like.config import Config, UserError, number, whole_number
from big_vision_like.evaluators import Split, need, replicated
from big_vision_like.input import pipeline

Head = dict[str, jax.Array]
LossSum = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


class Evaluator:
  """Keys: source_train, source, pp (yields image and segmentation), pp_train (as pp), batch_size,
  classes (ids 0 to classes - 1), ignore (255; ids from `classes` on and below 0 are an error but
  for it), and those of `Trained`: epochs, lr, weight_decay, seed.

  `predict["image_tokens"]` gives [B, h, w, D].
  """

  def __init__(self, config: Config, predict: Mapping[str, Callable], mesh: jax.sharding.Mesh):
    self.where = config.path
    self.classes = whole_number(config.classes, f"{config.path}.classes", 2)
    self.ignore = whole_number(config.get("ignore", 255), f"{config.path}.ignore", -1)
    self.test = Split(config, mesh, needs=("image", "segmentation"))
    self.trained = Trained(config, predict, mesh, "segmentation")

  def _loss(self, logits: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The sum over pixels of the cross entropy, and their number."""
    label = label[..., 0]
    keep = (label != self.ignore) & (label >= 0) & (label < self.classes)
    xent = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(keep, label, 0))
    return jnp.sum(xent * keep), jnp.sum(keep)

  def run(self, state: Any) -> dict[str, float]:
    """`miou`, `accuracy` of pixels, `mean_accuracy` of classes that occur.

    Raises:
      UserError: an id that is neither a class nor the ignore label.
    """
    bias = np.zeros(self.classes, np.float32)
    head = self.trained.fit(state, bias, self._loss)

    @jax.jit
    def count(head: Head, tokens: jax.Array, label: jax.Array, rows: jax.Array) -> jax.Array:
      found = jnp.argmax(apply(head, tokens, label.shape[1:3]), axis=-1)
      label = jnp.where(rows[:, None, None], label[..., 0], self.ignore)
      wrong = (label != self.ignore) & ((label < 0) | (label >= self.classes))
      keep = (label != self.ignore) & ~wrong
      return confusion(label, found, keep, self.classes), jnp.sum(wrong)

    table, wrong = np.zeros((self.classes, self.classes), np.int64), 0
    with jax.set_mesh(self.test.mesh):
      for batch in self.test.batches():
        tokens = self.trained.tokens(state, batch)
        counts, bad = axes.to_host(count(head, tokens, batch["segmentation"], batch["_mask"]))
        table, wrong = table + counts, wrong + int(bad)
    if wrong:
      raise UserError(
        f"{self.where}: {wrong} pixels of source have an id that is none of the {self.classes} "
        f"classes and not ignore = {self.ignore}"
      )
    return scores(table)


def confusion(label: jax.Array, found: jax.Array, keep: jax.Array, classes: int) -> jax.Array:
  """int32 [true, predicted] counts of the pixels with `keep`; exact up to 2^31 pixels a batch."""
  cell = jnp.where(keep, label * classes + found, classes**2)
  counts = jnp.zeros(classes**2 + 1, jnp.int32).at[cell.reshape(-1)].add(1)
  return counts[:-1].reshape(classes, classes)


def scores(table: np.ndarray) -> dict[str, float]:
  """Counts [true, predicted] -> the three scores."""
  hit, true, found = np.diag(table), table.sum(axis=1), table.sum(axis=0)
  union = true + found - hit
  mean = lambda part, whole: float((part[whole > 0] / whole[whole > 0]).mean())
  if not true.sum():
    return {"miou": 0.0, "accuracy": 0.0, "mean_accuracy": 0.0}
  return {
    "miou": mean(hit, union),
    "accuracy": float(hit.sum() / true.sum()),
    "mean_accuracy": mean(hit, true),
  }


# ------------------------------------------------------------------- a linear layer on the tokens


class Trained:
  """A linear layer on frozen tokens, trained on `source_train`.

  Keys: source_train, pp_train (default: pp), epochs (10), lr (1e-3), weight_decay (1e-4), seed (0),
  batch_size (128).
  """

  def __init__(
    self, cfg: Config, predict: Mapping[str, Callable], mesh: jax.sharding.Mesh, target: str
  ):
    self.predict = need(predict, "image_tokens", cfg)
    self.mesh, self.target, self.where = mesh, target, cfg.path
    pp = cfg.get("pp_train", cfg.pp)
    split = {"source_train": cfg.source_train, "pp": pp, "batch_size": cfg.get("batch_size", 128)}
    split = Config(split, self.where)
    self.split = Split(split, mesh, needs=("image", target), source="source_train")
    self.epochs = number(cfg, "epochs", 10, above=0)
    self.lr, self.decay = number(cfg, "lr", 1e-3, above=0), number(cfg, "weight_decay", 1e-4)
    self.seed = whole_number(cfg.get("seed", 0), f"{self.where}.seed", 0)
    # A batch no larger than the split: an epoch has one step at least.
    shards = axes.num_batch_shards(mesh)
    self.batch_size = min(self.split.batch_size, -(-len(self.split) // shards) * shards)
    self.input = pipeline.Input({"source": cfg.source_train, "pp": pp}, seed=self.seed)

  def tokens(self, state: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
    """[B, h, w, D] float32."""
    x = self.predict(state.params, state.aux, batch)
    if x.ndim != 4:
      raise UserError(
        f"{self.where}: predict 'image_tokens' gives {x.shape}; expected [B, h, w, D]"
      )
    return x.astype(jnp.float32)

  def _statistics(self, state: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation [D] of the tokens of the split, each example once."""

    @jax.jit
    def sums(x: jax.Array, rows: jax.Array, shift: jax.Array) -> tuple[jax.Array, ...]:
      x = (x - shift[None, None, None]) * rows[:, None, None, None]
      count = jnp.sum(rows) * x.shape[1] * x.shape[2]
      return jnp.sum(x, axis=(0, 1, 2)), jnp.sum(x**2, axis=(0, 1, 2)), count, jnp.sum(x[0], (0, 1))

    total, shift = None, None
    for batch in self.split.batches():
      x = self.tokens(state, batch)
      if shift is None:  # the first image's mean, so that nothing cancels
        zero = replicated(np.zeros(x.shape[-1], np.float32), self.mesh)
        first = axes.to_host(sums(x, batch["_mask"], zero))[3] / (x.shape[1] * x.shape[2])
        shift = replicated(np.nan_to_num(np.asarray(first, np.float32)), self.mesh)
      parts = [np.asarray(v, np.float64) for v in axes.to_host(sums(x, batch["_mask"], shift))[:3]]
      total = parts if total is None else [a + b for a, b in zip(total, parts)]
    first, second, count = total
    mean = first / count
    std = np.sqrt(np.maximum(second / count - mean**2, 0.0))
    return mean + np.asarray(shift, np.float64), np.where(std > 1e-6, std, 1.0)

  def fit(self, state: Any, bias: np.ndarray, loss: LossSum) -> Head:
    """`loss(outputs [B, H, W, K], target [B, H, W, 1]) -> sum, count`; the layer that minimises
    sum / count of the batches. It begins with zeros and the bias [K]."""
    steps = max(1, round(self.epochs * len(self.split) / self.batch_size))
    tx = optax.adamw(optax.cosine_decay_schedule(self.lr, steps), weight_decay=self.decay)

    def value(w: Head, fixed: Head, x: jax.Array, target: jax.Array) -> jax.Array:
      total, count = loss(apply({**w, **fixed}, x, target.shape[1:3]), target)
      return total / jnp.maximum(count, 1)

    @jax.jit
    def update(w: Head, opt: Any, fixed: Head, x: jax.Array, target: jax.Array) -> Any:
      grads = jax.grad(value)(w, fixed, x, target)
      updates, opt = tx.update(grads, opt, w)
      return optax.apply_updates(w, updates), opt

    whole = lambda tree: jax.tree.map(lambda v: replicated(np.asarray(v), self.mesh), tree)
    stream = self.input.batches(
      batch_size=self.batch_size,
      start_step=0,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )
    with jax.set_mesh(self.mesh):
      mean, std = self._statistics(state)
      fixed = whole({"mean": mean.astype(np.float32), "std": std.astype(np.float32)})
      w = {"kernel": np.zeros((len(mean), len(bias)), np.float32), "bias": bias}
      w, opt = whole((w, tx.init(w)))
      with contextlib.closing(stream):
        for _, host in zip(range(steps), stream):
          host = {k: v for k, v in host.items() if k not in self.split.strings}
          batch = axes.put_batch(self.mesh, host)
          w, opt = update(w, opt, fixed, self.tokens(state, batch), batch[self.target])
    return {**w, **fixed}


def apply(head: Head, tokens: jax.Array, size: tuple[int, int]) -> jax.Array:
  """[B, h, w, D] -> [B, H, W, K], interpolated bilinearly between the patches' centres."""
  row = lambda name: head[name][None, None, None]
  x = jnp.einsum("bhwd,dk->bhwk", (tokens - row("mean")) / row("std"), head["kernel"])
  x += row("bias")
  return jax.image.resize(x, (x.shape[0], *size, x.shape[-1]), "bilinear")
