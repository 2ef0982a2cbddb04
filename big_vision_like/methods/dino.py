"""DINO: self-distillation with no labels (Caron et al., arXiv:2104.14294).

    min_s  sum_{g global} sum_{v in views, v != g} H(P_t(g), P_s(v))                 Eq. 3
    P_t = softmax((g_t - c) / tau_t),  P_s = softmax(g_s / tau_s)                     Eq. 1
    c <- m c + (1 - m) mean g_t                                                       Eq. 4
    t <- l t + (1 - l) s,  l from 0.996 to 1 by half a cosine                         Sec. 3.1

The student sees all crops, the teacher the global ones (multi-crop of SwAV, arXiv:2006.09882). Here
the loss is the mean over the pairs of views, as in the authors' code.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from big_vision_like import axes, models, schedules, tree
from big_vision_like.config import Config, call, number
from big_vision_like.losses import self_distillation as sd
from big_vision_like.method import Aux, Batch, Method, Metrics, Params
from big_vision_like.models import vit


class Head(nn.Module):
  """fc0, fc1, fc2 with GELU between, l2-norm, and the linear `prototypes` without bias.

  The prototypes are weight-normalised with the gain kept at 1 (the authors' `norm_last_layer`): the
  outputs are the cosines between the bottleneck and K directions.
  """

  prototypes: int = 65_536
  hidden: int = 2048
  bottleneck: int = 256
  init_std: float = 0.02  # too small for narrow layers: the bottleneck must not be near zero
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, D] -> [B, K]."""
    init = nn.initializers.truncated_normal(self.init_std)
    args = dict(kernel_init=init, dtype=jnp.dtype(self.dtype))
    for i, width in enumerate((self.hidden, self.hidden, self.bottleneck)):
      x = nn.gelu(x, approximate=False) if i else x
      x = axes.constrain_batch(nn.Dense(width, name=f"fc{i}", **args)(x))
    norm = jnp.linalg.norm(x.astype(jnp.float32), axis=-1, keepdims=True)
    last = nn.Dense(self.prototypes, use_bias=False, name="prototypes", **args)
    x = nn.WeightNorm(last, use_scale=False)(x / jnp.maximum(norm, 1e-12))
    return axes.constrain_batch(x)


class Network(nn.Module):
  """g = h o f: parameters backbone and head."""

  backbone: nn.Module
  head: nn.Module

  def __call__(self, x: jax.Array, *, train: bool = False):
    z, out = self.backbone(x, train=train)
    return self.head(z), out | {"embed": z}


def make(config: Config) -> Method:
  """Keys beside `model` (a backbone with a pooled output):

      head   prototypes, hidden, bottleneck, init_std, dtype
      loss   student_temp, teacher_temp, teacher_temp_start with teacher_temp_warmup_*,
             center_momentum, teacher_momentum (at the start; 1 at the end), freeze_last_*

  `freeze_last_*` is how long no gradient reaches the prototypes. The authors skip them in the
  optimizer for that time; here their gradient is zero, so that Adam's second moment is still small
  when they begin to move, and weight decay shrinks them, which the weight normalisation undoes.

  The batch has `global` [B, 2, S, S, C] and, with local crops, `local` [B, n, s, s, C].
  """
  net = Network(models.make(config.model), call(Head, config.get("head", {}), "config.head"))
  cfg, durations = config.loss, config.durations
  student_temp = number(cfg, "student_temp", 0.1, above=0)
  end = number(cfg, "teacher_temp", 0.07, above=0)
  start = number(cfg, "teacher_temp_start", 0.04, above=0)
  temperature = schedules.linear(start, end, durations(cfg, "teacher_temp_warmup", 0))
  center_momentum = number(cfg, "center_momentum", 0.9)
  momentum = schedules.cosine(number(cfg, "teacher_momentum", 0.996), 1.0, durations.total_steps)
  freeze_last = durations(cfg, "freeze_last", 0)

  def init(rng: jax.Array, batch: Batch) -> tuple[Params, Aux]:
    params, stats = models.init(net, rng, batch["global"][:, 0])
    copy = lambda x: jax.tree.map(jnp.copy, x)
    center = jnp.zeros(net.head.prototypes, jnp.float32)
    stats = {"student": stats, "teacher": copy(stats)}
    return params, {"teacher": copy(params), "center": center, "stats": stats}

  def logits(params: Params, stats: Aux, crops: jax.Array, **kwargs) -> tuple[jax.Array, Aux]:
    """[B, V, H, W, C] -> [V, B, K]; the views of an example stay on its device."""
    views = rearrange(crops, "B V H W C -> (B V) H W C")
    (out, _), stats = models.apply(net, params, stats, views, **kwargs)
    return rearrange(out, "(B V) K -> V B K", V=crops.shape[1]), stats

  def hold_prototypes(params: Params, step: jax.Array) -> Params:
    hold = lambda x: jnp.where(step < freeze_last, jax.lax.stop_gradient(x), x)
    return tree.map_with_name(
      lambda name, x: hold(x) if tree.matches("head/prototypes/kernel", name) else x, params
    )

  def loss(
    params: Params, aux: Aux, batch: Batch, rng: jax.Array, step: jax.Array
  ) -> tuple[jax.Array, tuple[Aux, Metrics]]:
    params = hold_prototypes(params, step) if freeze_last else params
    student, of_student = [], aux["stats"]["student"]
    for i, key in enumerate(k for k in ("global", "local") if k in batch):
      draw = jax.random.fold_in(rng, i)
      out, of_student = logits(params, of_student, batch[key], train=True, rng=draw)
      student.append(out)
    # The teacher drops nothing, but normalises by its batch where it has batch norm.
    of_teacher = aux["stats"]["teacher"]
    teacher, of_teacher = logits(
      aux["teacher"], of_teacher, batch["global"], train=bool(of_teacher), rng=rng
    )
    probs = sd.teacher_probs(teacher, aux["center"], temperature(step))
    value = sd.cross_view_loss(jnp.concatenate(student), probs, student_temp)
    entropy = sd.entropy(probs)
    center = sd.update_center(aux["center"], teacher, center_momentum)
    aux = {**aux, "center": center, "stats": {"student": of_student, "teacher": of_teacher}}
    return value, (aux, {"teacher_entropy": entropy, "kl": value - entropy})

  def after_update(params: Params, aux: Aux, step: jax.Array) -> Aux:
    return {**aux, "teacher": tree.average(aux["teacher"], params, momentum(step))}

  def features(params: Params, aux: Aux, batch: Batch, rng: jax.Array | None = None):
    """Every named intermediate of the teacher's backbone, and `embed`."""
    image = batch["image"] if "image" in batch else batch["global"][:, 0]
    return models.apply(net, aux["teacher"], aux["stats"]["teacher"], image)[0][1]

  def image_embed(params: Params, aux: Aux, batch: Batch, rng: jax.Array | None = None):
    """[B, H, W, C] -> [B, D], of the teacher's backbone, not normalised."""
    return features(params, aux, batch)["embed"]

  return Method(
    init=init,
    loss=loss,
    predict={
      "image_embed": image_embed,
      "features": features,
      **vit.predict(net.backbone, lambda params, aux: aux["teacher"]["backbone"]),
    },
    after_update=after_update,
    progress="kl",
  )
