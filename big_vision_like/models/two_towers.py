"""Two towers into one space, with a learned temperature and bias (SigLIP, CLIP and kin)."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_vision_like import models
from big_vision_like.config import UserError, call
from big_vision_like.models import naflex, vit


def unit(z: jax.Array) -> jax.Array:
  """[..., E] -> float32 of length 1."""
  z = z.astype(jnp.float32)
  return z / (jnp.linalg.norm(z, axis=-1, keepdims=True) + 1e-8)


def pictures(batch: Mapping[str, Any]) -> Any:
  """What an image tower takes of a batch: `image`, or the patches of `patchify_native`."""
  return naflex.inputs(batch) if "patches" in batch else batch["image"]


class TwoTowers(nn.Module):
  """Parameters: image, text, logit_scale (t', the log of the temperature), logit_bias (b)."""

  image: nn.Module
  text: nn.Module
  temperature_init: float = 10.0
  bias_init: float | None = -10.0

  @nn.compact
  def __call__(
    self, image: Any | None, text: jax.Array | None, *, train: bool = False
  ) -> tuple[jax.Array | None, jax.Array | None, dict[str, jax.Array]]:
    """image [B, H, W, C], text [B, L] int32 -> embeddings [B, E], float32 of length 1, and `out`.

    Image is what its tower takes, see `pictures`. Either may be None. `out` has `logit_scale`,
    `logit_bias` (where there is one) and the towers' intermediates as `image/...` and `text/...`.
    """
    out, embeddings = {}, []
    for name, tower, x in (("image", self.image, image), ("text", self.text, text)):
      if x is None:
        embeddings.append(None)
        continue
      z, tower_out = tower(x, train=train)
      embeddings.append(unit(z))
      out |= {f"{name}/{k}": v for k, v in tower_out.items()}
    constant = nn.initializers.constant
    out["logit_scale"] = self.param("logit_scale", constant(math.log(self.temperature_init)), ())
    if self.bias_init is not None:
      out["logit_bias"] = self.param("logit_bias", constant(self.bias_init), ())
    return *embeddings, out


class Functions(NamedTuple):
  """What every method with two towers does with them, `(params, aux, batch, rng)` each.

  Attributes:
    init: `(rng, batch) -> params, aux`, with an empty aux.
    represent: training embeddings, {"image": [B, E], "text": [B, E]}.
    embed: the same without dropout, and the intermediates.
    predict: image_embed and text_embed [B, E], l2-normalised, features, all intermediates, and what
      `vit.predict` has of the image tower.
  """

  init: Callable[..., tuple[Any, dict]]
  represent: Callable[..., dict[str, jax.Array]]
  embed: Callable[..., tuple[jax.Array, jax.Array, dict[str, jax.Array]]]
  predict: dict[str, Callable[..., Any]]


def functions(model: TwoTowers) -> Functions:
  """The pure functions of `model` that SigLIP and CLIP share.

  Batches have `text` and `image`, or the patches of op `patchify_native`.
  """

  def towers(params, image, text, **kwargs):
    return model.apply({"params": params}, image, text, **kwargs)

  def init(rng, batch):
    return model.init(rng, pictures(batch), batch["text"])["params"], {}

  def represent(params, aux, batch, rng):
    both = pictures(batch), batch["text"]
    image, text, _ = towers(params, *both, train=True, rngs={"dropout": rng})
    return {"image": image, "text": text}

  def embed(params, aux, batch, rng=None):
    return towers(params, pictures(batch), batch["text"])

  def features(params, aux, batch, rng=None):
    image = pictures(batch) if batch.keys() & {"image", "patches"} else None
    return towers(params, image, batch.get("text"))[2]

  predict = {
    "image_embed": lambda p, aux, batch, rng=None: towers(p, pictures(batch), None)[0],
    "text_embed": lambda p, aux, batch, rng=None: towers(p, None, batch["text"])[1],
    "features": features,
    **vit.predict(model.image, lambda p, aux: p["image"]),
  }
  return Functions(init, represent, embed, predict)


def make(cfg: Mapping[str, Any]) -> TwoTowers:
  """From `config.model`: image, text (keywords of the towers), embed_dim and the initial values.

  `image.name` is the file of the image tower: vit (the default), or naflex.

  Without `embed_dim`, as in SigLIP's released models, the image tower has no projection and the
  text tower projects to the image tower's width. With it, as in CLIP, both project to that size.
  `text.name` is another text tower than `text_transformer`, such as "bert" or "t5".
  A tower's own `num_classes` wins over either.

  Raises:
    UserError: a missing or unknown key, size or pooling, or towers that end in different sizes.
  """
  return call(_make, dict(cfg), "config.model")


def _make(
  image: Mapping[str, Any],
  text: Mapping[str, Any],
  embed_dim: int | None = None,
  temperature_init: float = 10.0,
  bias_init: float | None = -10.0,
) -> TwoTowers:
  image_tower = models.make({"num_classes": embed_dim, **image}, "config.model.image")
  size = image_tower.num_classes or image_tower.width
  text_tower = models.make(
    {"name": "text_transformer", "num_classes": size, **text}, "config.model.text"
  )
  text_size = text_tower.num_classes or text_tower.width
  if size != text_size:
    raise UserError(
      f"config.model: image ends in {size} and text in {text_size} dimensions; "
      "set embed_dim, or num_classes of one of them"
    )
  for name, tower in (("image", image_tower), ("text", text_tower)):
    if tower.pool == "none":
      raise UserError(f"config.model.{name}.pool = 'none'; two towers need one vector per example")
  if temperature_init <= 0:
    raise UserError(f"config.model.temperature_init = {temperature_init}; expected a number > 0")
  return TwoTowers(image_tower, text_tower, temperature_init, bias_init)
