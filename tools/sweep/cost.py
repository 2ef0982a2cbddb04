"""What a run will cost, before it runs: parameters and FLOPs, counted from its own step."""

from typing import NamedTuple

from big_vision_like.config import UserError
from tools.plan.chips import CHIPS
from tools.sweep.plan import Run, resolved

PEAKS = {name: CHIPS[name].peak for name in ("v4", "v5e", "v5p", "v6e", "h100", "h200")}
"""Dense bfloat16 FLOP/s of a chip."""


class Cost(NamedTuple):
  """Of a whole run."""

  params: int
  examples: int
  flops: float

  def chip_hours(self, chip: str, mfu: float) -> float:
    """On that chip, at that share of its peak."""
    if chip not in PEAKS:
      raise UserError(f"--chip {chip!r}; known: {', '.join(PEAKS)}")
    return self.flops / (PEAKS[chip] * mfu) / 3600


def of(run: Run) -> Cost:
  """By shapes alone; the sources are opened where an epoch is what the length is counted in."""
  from big_vision_like import train, tree
  from big_vision_like.config import wrap
  from big_vision_like.input import pipeline

  config = wrap(resolved(run.config, run.overrides))
  in_epochs = "total_epochs" in config
  count = pipeline.Input(config.input, seed=config.seed).num_examples if in_epochs else None
  built = train.build(config, num_examples=count)
  return Cost(
    tree.num_params(built.abstract.params),
    built.total_steps * config.input.batch_size,
    float(train.model_flops(built) * built.total_steps),
  )
