"""Linear depth: one linear layer on frozen patch tokens (DINOv2, arXiv:2304.07193, Sec. 7.4).

With `head="bins"` the layer gives the shares of `bins` depths, evenly spaced, and the prediction is
their mean (AdaBins, arXiv:2011.14141, with fixed bins); with `head="linear"` it gives the log of
the depth. Both minimise, over pixels with a known depth,

    sqrt(mean(g^2) - 0.85 mean(g)^2),  g = log pred - log true   (arXiv:1406.2283, as in AdaBins)

Scores are means over images of, within an image, over pixels with min_depth <= true <= max_depth,

    rmse = sqrt(mean (pred - true)^2)    absrel = mean |pred - true| / true
    delta1 = share with max(pred / true, true / pred) < 1.25
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from big_vision_like.config import Config, UserError, number, unknown, whole_number
from big_vision_like.evaluators import Split
from big_vision_like.evaluators.linear_segmentation import Trained, apply

HEADS = ("bins", "linear")


class Evaluator:
  """Keys: source_train, source, pp (yields image and depth in metres, 0 where unknown), pp_train
  (as pp), batch_size, head (bins), bins (256), min_depth (0.001), max_depth (10: NYUv2; 80 for
  KITTI), and those of `linear_segmentation.Trained`: epochs, lr, weight_decay, seed.

  `predict["image_tokens"]` gives [B, h, w, D]. Predictions are clipped to the two depths.
  """

  def __init__(self, config: Config, predict: Mapping[str, Callable], mesh: jax.sharding.Mesh):
    self.where = config.path
    self.low = number(config, "min_depth", 1e-3, above=0)
    self.high = number(config, "max_depth", 10.0, above=self.low)
    head, bins = config.get("head", "bins"), config.get("bins", 256)
    if head not in HEADS:
      raise unknown(f"{config.path}.head", head, HEADS)
    self.bins = whole_number(bins, f"{config.path}.bins", 2) if head == "bins" else None
    self.test = Split(config, mesh, needs=("image", "depth"))
    self.trained = Trained(config, predict, mesh, "depth")

  def _depth(self, out: jax.Array) -> jax.Array:
    """[B, H, W, K] of the layer -> [B, H, W] metres."""
    if self.bins:
      edges = np.linspace(self.low, self.high, self.bins + 1)
      centres = jnp.asarray((edges[1:] + edges[:-1]) / 2, jnp.float32)
      return jnp.einsum("bhwk,k->bhw", jax.nn.softmax(out), centres)
    return jnp.exp(jnp.clip(out[..., 0], np.log(self.low), np.log(self.high)))

  def _known(self, depth: jax.Array) -> jax.Array:
    return (depth >= self.low) & (depth <= self.high)

  def _loss(self, out: jax.Array, depth: jax.Array) -> tuple[jax.Array, jax.Array]:
    known = self._known(depth[..., 0])
    pred = self._depth(out) if self.bins else jnp.exp(out[..., 0])  # a clip has no gradient
    g = jnp.log(pred) - jnp.log(jnp.where(known, depth[..., 0], 1.0))
    count = jnp.maximum(jnp.sum(known), 1)
    mean, square = jnp.sum(g * known) / count, jnp.sum(g**2 * known) / count
    return jnp.sqrt(jnp.maximum(square - 0.85 * mean**2, 1e-8)), jnp.ones(())

  def run(self, state: Any) -> dict[str, float]:
    """`rmse`, `absrel`, `delta1`.

    Raises:
      UserError: no pixel of the split has a depth in the range.
    """
    bias = np.zeros(self.bins or 1, np.float32)
    if not self.bins:
      bias += np.log((self.low + self.high) / 2)
    head = self.trained.fit(state, bias, self._loss)

    @jax.jit
    def of_images(head: Any, tokens: jax.Array, depth: jax.Array) -> dict[str, jax.Array]:
      depth = depth[..., 0]
      return errors(self._depth(apply(head, tokens, depth.shape[1:])), depth, self._known(depth))

    fn = lambda batch: of_images(head, self.trained.tokens(state, batch), batch["depth"])
    rows = self.test.map(fn)
    some = rows["pixels"] > 0
    if not some.any():
      raise UserError(
        f"{self.where}: no pixel of source has a depth from {self.low} to {self.high}; "
        "min_depth and max_depth are in metres"
      )
    return {k: float(rows[k][some].mean(dtype=np.float64)) for k in ("rmse", "absrel", "delta1")}


def errors(pred: jax.Array, true: jax.Array, known: jax.Array) -> dict[str, jax.Array]:
  """[B, H, W] each -> rmse, absrel, delta1 and the number of known `pixels`, [B] each."""
  true = jnp.where(known, true, 1.0)
  count = jnp.sum(known, axis=(1, 2))
  mean = lambda x: jnp.sum(jnp.where(known, x, 0.0), axis=(1, 2)) / jnp.maximum(count, 1)
  return {
    "rmse": jnp.sqrt(mean((pred - true) ** 2)),
    "absrel": mean(jnp.abs(pred - true) / true),
    "delta1": mean((jnp.maximum(pred / true, true / pred) < 1.25).astype(jnp.float32)),
    "pixels": count,
  }
