"""How well hidden parts of an image are filled in, by `predict["reconstruct"]`, and pictures of it.

The mean squared error over hidden pixels and channels, beside what is reached without learning:

    mean_fill    each image's hidden pixels take the mean of its visible ones, channel by channel
    mean_image   they take the mean over the split at that place (which has seen the answers)
    baseline     whatever the method names, where its reconstruction is told more than the visible
                 pixels (a masked autoencoder with normalised targets gets each patch's own mean
                 and spread: its baseline is that mean)

`sharpness` is the energy of the fill's edges over that of the real image's: squared differences of
neighbouring pixels, one of them at least hidden. A mean of several answers is blurred and stays
below 1, whatever its error.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from big_vision_like import axes
from big_vision_like.config import Config
from big_vision_like.evaluators import Split, need


def _edges(image: jax.Array, hidden: jax.Array) -> jax.Array:
  """Sum of the squared differences between neighbours of which one at least is hidden."""
  image = image.astype(jnp.float32)
  down = jnp.square(image[:, 1:] - image[:, :-1]) * jnp.maximum(hidden[:, 1:], hidden[:, :-1])
  across = jnp.square(image[:, :, 1:] - image[:, :, :-1])
  across *= jnp.maximum(hidden[:, :, 1:], hidden[:, :, :-1])
  return jnp.sum(down) + jnp.sum(across)


@jax.jit
def _sums(out: Mapping[str, jax.Array], real: jax.Array) -> dict[str, jax.Array]:
  """Sums over the rows of a batch that are no padding; `place_*` stay [H, W, C]."""
  target = out["target"].astype(jnp.float32)
  real = real[:, None, None, None]
  hidden = jnp.broadcast_to(out["mask"] * real, target.shape).astype(jnp.float32)
  seen = 1.0 - jnp.broadcast_to(out["mask"], target.shape).astype(jnp.float32)
  total = lambda x, keep: jnp.sum(x * keep, axis=(1, 2), keepdims=True)
  mean = total(target, seen) / jnp.maximum(total(1.0, seen), 1.0)
  error = lambda x: jnp.sum(jnp.square(x.astype(jnp.float32) - target) * hidden)
  fills = {"mse": out["image"], "mean_fill": jnp.broadcast_to(mean, target.shape)}
  if "baseline" in out:
    fills["baseline"] = out["baseline"]
  return {name: error(x) for name, x in fills.items()} | {
    "edges": _edges(out["image"], hidden),
    "edges_real": _edges(target, hidden),
    "rows": jnp.sum(real, dtype=jnp.float32),
    "place": jnp.sum(target * real, axis=0),
    "place_0": jnp.sum(hidden, axis=0),
    "place_1": jnp.sum(hidden * target, axis=0),
    "place_2": jnp.sum(hidden * jnp.square(target), axis=0),
  }


class Evaluator:
  """Keys: source, pp (yields image), batch_size, seed (of the masks), rows (of the picture).

  `predict["reconstruct"](params, aux, batch, rng)` gives `image` and `target` [B, H, W, C], `mask`
  [B, H, W, 1], 1 where a pixel was hidden, and, where it applies, `baseline` [B, H, W, C].
  """

  def __init__(self, config: Config, predict: Mapping[str, Callable], mesh: jax.sharding.Mesh):
    self.fn = need(predict, "reconstruct", config)
    self.split = Split(config, mesh, needs=("image",))
    self.seed, self.rows = config.get("seed", 0), config.get("rows", 12)

  def _outputs(self, state: Any):
    key = jax.random.key(self.seed)
    for i, batch in enumerate(self.split.batches()):
      yield batch, self.fn(state.params, state.aux, batch, jax.random.fold_in(key, i))

  def run(self, state: Any) -> dict[str, float]:
    """`{"mse", "mean_fill", "mean_image", "sharpness", and "baseline" where there is one}`."""
    sums: dict[str, Any] = {}
    with jax.set_mesh(self.split.mesh):
      for batch, out in self._outputs(state):
        for name, x in axes.to_host(_sums(out, batch["_mask"])).items():
          sums[name] = sums.get(name, 0.0) + np.asarray(x, np.float64)
    hidden = sums["place_0"].sum()
    mean = sums["place"] / sums["rows"]
    found = {k: sums[k] for k in ("mse", "mean_fill", "baseline") if k in sums}
    # sum of hidden (x - mean)^2, expanded so that one pass is enough
    found["mean_image"] = np.sum(
      sums["place_2"] - 2 * mean * sums["place_1"] + mean**2 * sums["place_0"]
    )
    found = {name: float(x / hidden) for name, x in found.items()}
    return found | {"sharpness": float(sums["edges"] / sums["edges_real"])}

  def pictures(self, state: Any) -> dict[str, np.ndarray]:
    """`reconstruction`: a row an image, original | hidden part grey | reconstruction."""
    with jax.set_mesh(self.split.mesh):
      out = axes.to_host(next(iter(self._outputs(state)))[1])
    target, image, mask = (
      np.asarray(out[k][: self.rows], np.float32) for k in ("target", "image", "mask")
    )
    low, high = target.min(), target.max()
    shown = np.stack([target, np.where(mask > 0, (low + high) / 2, target), image], axis=1)
    shown = np.clip((shown - low) * (255 / ((high - low) or 1.0)), 0, 255).round().astype(np.uint8)
    shown = shown[..., :3] if shown.shape[-1] >= 3 else shown[..., :1]
    scale = max(1, 64 // shown.shape[2])
    shown = shown.repeat(scale, 2).repeat(scale, 3)
    edge = ((0, 0), (0, 0), (2, 2), (2, 2), (0, 0))
    shown = np.pad(shown, edge, constant_values=255)
    return {"reconstruction": rearrange(shown, "b k h w c -> (b h) (k w) c")}
