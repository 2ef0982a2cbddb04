"""Mean loss over a held-out split, by `predict["loss_per_example"]`."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from big_vision_like.config import Config
from big_vision_like.evaluators import Split, intervals, need


class Evaluator:
  """Keys: source, pp, batch_size, seed (of methods whose loss draws random numbers), bootstrap.

  For losses that look at the whole batch (contrastive ones) the batch size is part of the metric.
  """

  def __init__(self, config: Config, predict: Mapping[str, Callable], mesh: jax.sharding.Mesh):
    self.split = Split(config, mesh)
    self.fn = need(predict, "loss_per_example", config)
    self.bootstrap = intervals.resamples(config)
    self.seed = config.get("seed", 0)

  def run(self, state: Any) -> dict[str, float]:
    """`{"loss": mean}`; with `bootstrap=1000` also its 95 % interval, `loss/low`, `loss/high`."""
    rng = jax.random.key(self.seed)
    rows = self.split.map(lambda b: {"loss": self.fn(state.params, state.aux, b, rng)})
    return intervals.scores({"loss": rows["loss"]}, self.bootstrap)
