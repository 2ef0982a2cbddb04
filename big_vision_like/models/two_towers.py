"""Two towers into one space, with a learned temperature and bias (SigLIP, CLIP and kin)."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_vision_like.config import Config
from big_vision_like.models import text_transformer, vit


class TwoTowers(nn.Module):
  """Parameters: image, text, logit_scale (t', the log of the temperature), logit_bias (b)."""

  image: nn.Module
  text: nn.Module
  temperature_init: float = 10.0
  bias_init: float | None = -10.0

  @nn.compact
  def __call__(
    self, image: jax.Array | None, text: jax.Array | None, *, train: bool = False
  ) -> tuple[jax.Array | None, jax.Array | None, dict[str, jax.Array]]:
    """image [B, H, W, C], text [B, L] int32 -> embeddings [B, E], float32 of length 1, and `out`.

    Either may be None. `out` has `logit_scale`, `logit_bias` (where there is one) and the towers'
    intermediates as `image/...` and `text/...`.
    """
    out, embeddings = {}, []
    for name, tower, x in (("image", self.image, image), ("text", self.text, text)):
      if x is None:
        embeddings.append(None)
        continue
      z, tower_out = tower(x, train=train)
      z = z.astype(jnp.float32)
      embeddings.append(z / (jnp.linalg.norm(z, axis=-1, keepdims=True) + 1e-8))
      out |= {f"{name}/{k}": v for k, v in tower_out.items()}
    constant = nn.initializers.constant
    out["logit_scale"] = self.param("logit_scale", constant(math.log(self.temperature_init)), ())
    if self.bias_init is not None:
      out["logit_bias"] = self.param("logit_bias", constant(self.bias_init), ())
    return *embeddings, out


def make(cfg: Config) -> TwoTowers:
  """From `config.model`: image and text (keywords of the towers), temperature_init, bias_init.

  As in SigLIP's released models the image tower has no projection unless it sets `num_classes`;
  the text tower projects to the image tower's output.

  Raises:
    UserError: an unknown key, size, or pooling.
  """
  image = vit.make(**cfg.image)
  size = image.num_classes or image.width
  text = text_transformer.make(**{"num_classes": size, **cfg.text})
  bias = cfg.get("bias_init", -10.0)
  return TwoTowers(image, text, cfg.get("temperature_init", 10.0), bias)
