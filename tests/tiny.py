"""A SigLIP run that compiles in seconds: the smoke config, shrunk."""

from big_vision_like.config import wrap
from configs import siglip


def config(steps: int = 6, **overrides):
  """`siglip.py:smoke` with the tiniest towers; overrides by dotted key, `a__b=1` sets `c.a.b`."""
  c = siglip.get_config("smoke")
  c.total_steps = steps
  for tower in (c.model.image, c.model.text):
    tower.update(width=32, depth=2, mlp_dim=64, num_heads=2)
  c.model.image.patch_size = (4, 8)
  c.input.batch_size = 16
  c.optim.schedule = dict(name="cosine", warmup_steps=2)
  c.log.every_steps = 1
  c.checkpoint.every_steps = 2
  c.evals = {}
  with c.unlocked():
    for key, value in overrides.items():
      *parents, last = key.split("__")
      node = c
      for parent in parents:
        node = node[parent]
      node[last] = value
  return c


def wrapped(**overrides):
  return wrap(config(**overrides))
