"""MoCo: momentum contrast (He et al., arXiv:1911.05722; v2 arXiv:2003.04297, v3 arXiv:2104.02057).

    L_q = -log exp(q.k+ / T) / sum_i exp(q.k_i / T)                                   Eq. 1
    k-encoder <- m k-encoder + (1 - m) q-encoder                                      Eq. 2

v1 and v2: the keys of earlier batches are the negatives, first in first out; the keys of a batch
are computed in another order than its queries, so that batch statistics of groups do not tell
which key belongs to which query (Sec. 3.3). v2 has an MLP head.

v3: no queue, the other keys of the batch are the negatives; a predictor on the queries' side; both
views are queries, each against the other's keys, and the loss is scaled by 2 T (Algorithm 1).
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_vision_like import axes, models, schedules, tree
from big_vision_like.config import Config, UserError, call, number, whole_number
from big_vision_like.layers.batch_norm import BatchNorm
from big_vision_like.losses.info_nce import info_nce
from big_vision_like.method import Aux, Batch, Method, Metrics, Params
from big_vision_like.models import vit


class Head(nn.Module):
  """Linear layers fc0, fc1, ... of `widths`, ReLU between them.

  With `batch_norm` each is without bias and followed by bn0, bn1, ..., the last one without scale
  and bias (v3).
  """

  widths: Sequence[int]
  batch_norm: bool = False
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """[B, D] -> [B, widths[-1]]."""
    dtype = jnp.dtype(self.dtype)
    for i, width in enumerate(self.widths):
      x = nn.relu(x) if i else x
      x = nn.Dense(width, use_bias=not self.batch_norm, dtype=dtype, name=f"fc{i}")(x)
      if self.batch_norm:
        last = i == len(self.widths) - 1
        x = BatchNorm(affine=not last, dtype=dtype, name=f"bn{i}")(x, train=train)
      x = axes.constrain_batch(x)
    return x


class Encoder(nn.Module):
  """Backbone, head and, on the queries' side, predictor; the output has length 1."""

  backbone: nn.Module
  head: nn.Module
  predictor: nn.Module | None = None

  def __call__(self, x: jax.Array, *, train: bool = False, predict: bool = False):
    embed, out = self.backbone(x, train=train)
    z = self.head(embed, train=train)
    if predict and self.predictor is not None:
      z = self.predictor(z, train=train)
    z = z.astype(jnp.float32)
    z = z / jnp.maximum(jnp.linalg.norm(z, axis=-1, keepdims=True), 1e-12)
    return z, out | {"embed": embed}


def shuffled(fn: Callable[[jax.Array], tuple], x: jax.Array, rng: jax.Array) -> tuple:
  """`fn(x)`, computed in a random order of the global batch; the first output is put back."""
  order = jax.random.permutation(rng, x.shape[0])
  first, *rest = fn(axes.constrain_batch(x[order]))
  return (axes.constrain_batch(first[jnp.argsort(order)]), *rest)


def enqueue(queue: dict[str, jax.Array], keys: jax.Array) -> dict[str, jax.Array]:
  """`keys` [B, E] take the places of the oldest of {"keys": [K, E], "at": where they begin}."""
  size, count = queue["keys"].shape[0], keys.shape[0]
  if count > size:
    raise UserError(f"config.loss.queue_size = {size}; expected at least the batch of {count}")
  places = (queue["at"] + jnp.arange(count)) % size
  return {"keys": queue["keys"].at[places].set(keys), "at": (queue["at"] + count) % size}


def make(config: Config) -> Method:
  """Keys beside `model` (a backbone with a pooled output):

      head       widths, batch_norm, dtype
      predictor  the same, or left out
      loss       temperature, queue_size (0: the negatives are in the batch), momentum and
                 momentum_end (by half a cosine over the run; equal by default)

  The batch has `global` [B, 2, H, W, C]. Batch statistics of both sides are in `aux["stats"]`.
  """
  make_head = lambda key: call(Head, config[key].read_all(), f"config.{key}")
  net = Encoder(
    models.make(config.model),
    make_head("head"),
    make_head("predictor") if "predictor" in config else None,
  )
  cfg = config.loss
  temperature = number(cfg, "temperature", above=0)
  size = whole_number(cfg.queue_size, "config.loss.queue_size", 0)
  start = number(cfg, "momentum")
  end = number(cfg, "momentum_end", start)
  momentum = schedules.cosine(start, end, config.durations.total_steps)

  def encoder_of(params: Params) -> Params:
    """What the keys' side has too: all but the predictor."""
    return {k: params[k] for k in ("backbone", "head")}

  def init(rng: jax.Array, batch: Batch) -> tuple[Params, Aux]:
    params, stats = models.init(net, rng, batch["global"][:, 0], predict=True)
    aux = {
      "teacher": jax.tree.map(jnp.copy, encoder_of(params)),
      "stats": {"query": stats, "key": jax.tree.map(jnp.copy, stats)},
    }
    if size:
      keys = jax.random.normal(jax.random.fold_in(rng, 1), (size, net.head.widths[-1]))
      keys = keys / jnp.linalg.norm(keys, axis=1, keepdims=True)
      aux["queue"] = {"keys": keys, "at": jnp.zeros((), jnp.int32)}
    return params, aux

  def run(params: Params, stats: Aux, x: jax.Array, rng: jax.Array, predict: bool):
    """(embeddings of length 1, statistics)."""
    (z, _), stats = models.apply(net, params, stats, x, train=True, rng=rng, predict=predict)
    return z, stats

  def loss(
    params: Params, aux: Aux, batch: Batch, rng: jax.Array, step: jax.Array
  ) -> tuple[jax.Array, tuple[Aux, Metrics]]:
    del step
    views = batch["global"].swapaxes(0, 1)
    queue = aux["queue"]["keys"] if size else None
    of_query, of_key, found = aux["stats"]["query"], aux["stats"]["key"], []
    for a, b in [(0, 1)] if size else [(0, 1), (1, 0)]:
      order, left, right = jax.random.split(jax.random.fold_in(rng, a), 3)
      q, of_query = run(params, of_query, views[a], left, True)
      encode = functools.partial(run, aux["teacher"], of_key, rng=right, predict=False)
      k, of_key = shuffled(encode, views[b], order) if size else encode(views[b])
      k = jax.lax.stop_gradient(k)
      in_batch, _ = info_nce(q, k, temperature=temperature)
      found.append((*info_nce(q, k, queue, temperature=temperature), in_batch))
    aux = {**aux, "stats": {"query": of_query, "key": of_key}}
    if size:
      aux["queue"] = enqueue(aux["queue"], k)
    value, accuracy, in_batch = (sum(column) for column in zip(*found, strict=True))
    metrics = {"contrast_accuracy": accuracy / len(found), "in_batch_loss": in_batch / len(found)}
    return value * (1.0 if size else 2 * temperature), (aux, metrics)

  def after_update(params: Params, aux: Aux, step: jax.Array) -> Aux:
    return {**aux, "teacher": tree.average(aux["teacher"], encoder_of(params), momentum(step))}

  def features(params: Params, aux: Aux, batch: Batch, rng: jax.Array | None = None):
    """Every named intermediate of the queries' backbone, and `embed`."""
    image = batch["image"] if "image" in batch else batch["global"][:, 0]
    return models.apply(net, params, aux["stats"]["query"], image)[0][1]

  def image_embed(params: Params, aux: Aux, batch: Batch, rng: jax.Array | None = None):
    """[B, H, W, C] -> [B, D], of the queries' backbone, not normalised."""
    return features(params, aux, batch)["embed"]

  return Method(
    init=init,
    loss=loss,
    predict={
      "image_embed": image_embed,
      "features": features,
      **vit.predict(net.backbone, lambda params, aux: params["backbone"]),
    },
    after_update=after_update,
    # Against the keys of the batch alone: the loss itself rises while the queue fills with harder
    # negatives than it was drawn with.
    progress="in_batch_loss",
  )
