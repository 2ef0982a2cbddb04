"""Linear probing: linear classifiers on the features of a frozen backbone, many at once.

    L = sum_h 1/B sum_i cross_entropy(W_h norm(f(x_i)) + b_h, y_i)

Heads h share the backbone's forward pass and nothing else: each has its own leaves
`heads/<name>/{kernel, bias}`, and so its own rate and decay by `optim.lr_mults` and `optim.groups`.
The sum, not the mean, so that a head trains as if it were alone (no `clip_norm`: it would couple
them). norm is the identity, or batch norm without parameters (MAE, arXiv:2111.06377, Appendix A.1).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_vision_like import models
from big_vision_like.config import Config, UserError, unknown
from big_vision_like.layers.batch_norm import BatchNorm
from big_vision_like.losses import classification
from big_vision_like.method import Aux, Batch, Method, Metrics, Params
from big_vision_like.models import vit
from big_vision_like.tree import first_match


class Heads(nn.Module):
  """One Dense for each name in `heads`; batch norm, where wanted, once for each feature.

  Attributes:
    heads: (name, feature) pairs; a feature is an intermediate of the backbone, or "a+b" for two.
    classes: K.
    batch_norm: statistics in `batch_stats`, no parameters.
  """

  heads: tuple[tuple[str, str], ...]
  classes: int
  batch_norm: bool

  @nn.compact
  def __call__(self, out: dict[str, jax.Array], *, train: bool = False) -> dict[str, jax.Array]:
    """Intermediates -> name -> logits [B, K]."""
    x = {feature: select(out, feature) for _, feature in self.heads}
    if self.batch_norm:
      norm = lambda feature: BatchNorm(affine=False, name=f"norm_{feature}")
      x = {feature: norm(feature)(z, train=train) for feature, z in x.items()}
    init = nn.initializers.normal(0.01)
    dense = lambda name: nn.Dense(self.classes, kernel_init=init, name=name)
    return {name: dense(name)(x[feature]) for name, feature in self.heads}


def select(out: dict[str, jax.Array], feature: str) -> jax.Array:
  """`"pooled"` or `"prefix+tokens"` of the intermediates -> [B, D] float32, means over positions.

  Raises:
    UserError: an intermediate the backbone does not have.
  """
  parts = []
  for name in feature.split("+"):
    if name not in out:
      raise unknown("config.probe.features: intermediate", name, list(out))
    x = out[name].astype(jnp.float32)
    parts.append(jnp.mean(x, axis=tuple(range(1, x.ndim - 1))))
  return jnp.concatenate(parts, axis=1)


def make(config: Config) -> Method:
  """`config.model` is the frozen backbone, `aux/frozen/backbone` and `aux/frozen/stats`.

  `config.probe`: classes, heads (a tuple of names), features ("pooled", or pairs (regex of heads,
  feature), first match wins) and batch_norm (False).
  """
  model, cfg = models.make(config.model), config.probe
  if model.num_classes is not None:
    raise UserError("config.model.num_classes is set; a probe brings its own heads, leave it out")
  names, wanted = cfg.heads, cfg.get("features", "pooled")
  if not names or isinstance(names, str) or len(set(names)) < len(names):
    raise UserError(f"config.probe.heads = {names!r}; expected a tuple of different names")
  pairs = ((".*", wanted),) if isinstance(wanted, str) else wanted

  def feature_of(head: str) -> str:
    if (found := first_match([regex for regex, _ in pairs], head)) is None:
      raise UserError(f"config.probe.features: no pattern matches head {head!r}")
    return pairs[found][1]

  heads = Heads(tuple((n, feature_of(n)) for n in names), cfg.classes, cfg.get("batch_norm", False))

  def init(rng: jax.Array, batch: Batch) -> tuple[Params, Aux]:
    frozen, stats = models.init(model, rng, batch["image"])
    aux = {"frozen": {"backbone": frozen, "stats": stats}}
    params, stats = models.init(heads, jax.random.fold_in(rng, 1), features(None, aux, batch))
    return {"heads": params}, {**aux, "stats": stats}

  def features(params: Params, aux: Aux, batch: Batch, rng: jax.Array | None = None):
    """Every named intermediate of the backbone, which never trains."""
    frozen = aux["frozen"]
    return models.apply(model, frozen["backbone"], frozen["stats"], batch["image"])[0][1]

  def apply(params: Params, aux: Aux, batch: Batch, train: bool = False) -> tuple[Any, Any]:
    out = features(params, aux, batch)
    variables = {"params": params["heads"], **aux["stats"]}
    moved = list(aux["stats"]) if train else False
    scores = heads.apply(variables, out, train=train, mutable=moved)
    return scores if train else (scores, aux["stats"])

  def loss(
    params: Params, aux: Aux, batch: Batch, rng: jax.Array, step: jax.Array
  ) -> tuple[jax.Array, tuple[Aux, Metrics]]:
    del rng, step
    scores, stats = apply(params, aux, batch, train=True)
    label, metrics, total = batch["label"], {}, 0.0
    best = label if label.ndim == 1 else jnp.argmax(label, axis=1)
    for name, z in scores.items():
      metrics[f"{name}/loss"] = jnp.mean(classification.softmax_xent(z, label))
      metrics[f"{name}/accuracy"] = jnp.mean(jnp.argmax(z, axis=1) == best)
      total += metrics[f"{name}/loss"]
    return total, ({**aux, "stats": stats}, metrics)

  def logits(
    params: Params,
    aux: Aux,
    batch: Batch,
    rng: jax.Array | None = None,
    *,
    head: str = names[0],
  ):
    """[B, H, W, C] -> [B, K] of one head, the first by default."""
    if head not in names:
      raise unknown("head", head, names)
    return apply(params, aux, batch)[0][head]

  def image_embed(params: Params, aux: Aux, batch: Batch, rng: jax.Array | None = None):
    """[B, H, W, C] -> [B, D]: the features of the first head, before batch norm."""
    return select(features(params, aux, batch), heads.heads[0][1])

  def loss_per_example(
    params: Params, aux: Aux, batch: Batch, rng: jax.Array | None = None, **options: str
  ):
    """[B]; `head=` as in logits."""
    return classification.softmax_xent(logits(params, aux, batch, **options), batch["label"])

  return Method(
    init=init,
    loss=loss,
    predict={
      "logits": logits,
      "image_embed": image_embed,
      "features": features,
      "loss_per_example": loss_per_example,
      **vit.predict(model, lambda params, aux: aux["frozen"]["backbone"]),
    },
  )
