"""Values that change over a run: functions `step -> value` of a Python or a traced number."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from big_vision_like.config import Durations, UserError, number, unknown, wrap

Schedule = Callable[[Any], jax.Array]


def linear(start: float, end: float, steps: int) -> Schedule:
  """A straight line from `start` at step 0 to `end` at `steps`, which stays."""
  return lambda step: start + (end - start) * _done(step, steps)


def cosine(start: float, end: float, steps: int) -> Schedule:
  """Half a cosine from `start` at step 0 to `end` at `steps`, which stays."""
  return lambda step: end + (start - end) * 0.5 * (1 + jnp.cos(jnp.pi * _done(step, steps)))


def _done(step: Any, steps: int) -> jax.Array:
  return jnp.clip(jnp.asarray(step, jnp.float32) / max(steps, 1), 0.0, 1.0)


def make(cfg: Mapping[str, Any], peak: float, total_steps: int, durations: Durations) -> Schedule:
  """`step -> rate`: linear warm-up from 0, a body, linear cool-down to 0.

      cosine     from peak to end_factor * peak by half a cosine, between warm-up and cool-down
      linear     the same by a straight line
      rsqrt      peak / sqrt(1 + (step - warmup) / timescale), timescale 10,000 steps by default
      constant   peak

  `warmup_*`, `cooldown_*`, `timescale_*` in steps, epochs, examples or percent. During cool-down
  the body goes on (cosine and linear are at their end), times (total - step) / cooldown.

  Raises:
    UserError: an unknown schedule or key, a value that is not a number, phases longer than the run.
  """
  if not isinstance(cfg, Mapping):
    raise UserError(
      f"config.optim.schedule = {cfg!r}; expected a dict such as {{'name': 'cosine'}}"
    )
  cfg = wrap(cfg)
  name = cfg.name
  own = {"cosine": ["end_factor"], "linear": ["end_factor"], "rsqrt": ["timescale"], "constant": []}
  if name not in own:
    raise unknown(f"{cfg.path}.name", name, tuple(own))
  spans = ["warmup", "cooldown"] + [k for k in own[name] if k == "timescale"]
  known = ["name", *[f"{s}_{u}" for s in spans for u in Durations.UNITS]]
  known += [k for k in own[name] if k == "end_factor"]
  for key in cfg:
    if key not in known:
      raise unknown(f"{cfg.path} ({name}): key", key, known)
  warmup, cooldown = durations(cfg, "warmup", 0), durations(cfg, "cooldown", 0)
  if warmup + cooldown > total_steps:
    raise UserError(
      f"{cfg.path}: warm-up {warmup} and cool-down {cooldown} steps exceed the run's {total_steps}"
    )
  end = number(cfg, "end_factor", 0.0)
  timescale = durations(cfg, "timescale", 10_000) if name == "rsqrt" else 1
  if timescale < 1:
    raise UserError(f"{cfg.path}.timescale is {timescale} steps; expected at least 1")
  span = max(total_steps - cooldown - warmup, 1)

  def schedule(step: Any) -> jax.Array:
    step = jnp.asarray(step, jnp.float32)
    if name == "cosine":
      body = cosine(1.0, end, span)(step - warmup)
    elif name == "linear":
      body = linear(1.0, end, span)(step - warmup)
    elif name == "rsqrt":
      body = jax.lax.rsqrt(1 + jnp.maximum(step - warmup, 0) / timescale)
    else:
      body = jnp.float32(1)
    up = jnp.minimum(step / warmup, 1.0) if warmup else 1.0
    down = jnp.clip((total_steps - step) / cooldown, 0.0, 1.0) if cooldown else 1.0
    return peak * body * up * down

  return schedule
