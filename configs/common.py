"""What configs share: arguments of `--config FILE:key=value,flag`, defaults of the trunk."""

import ast

from ml_collections import ConfigDict


def parse_arg(arg: str | None, **defaults):
  """`"variant=L/16,res=384,smoke"` -> ConfigDict of `defaults`, updated; a bare word is True.

  Raises:
    ValueError: an argument that the config does not take, or of another type than its default.
  """
  out = dict(defaults)
  for item in filter(None, (arg or "").split(",")):
    key, equals, text = item.partition("=")
    if key not in out:
      raise ValueError(f"argument {key!r} is unknown; this config takes {', '.join(defaults)}")
    value = True
    if equals:
      try:
        value = ast.literal_eval(text)
      except (ValueError, SyntaxError):
        value = text
    if out[key] is not None and type(value) is not type(out[key]):
      kind = type(out[key]).__name__
      raise ValueError(f"argument {key}={text!r} is not of type {kind}")
    out[key] = value
  return ConfigDict(out)


def base() -> ConfigDict:
  """Defaults that every config starts from; a config sets method, model, input, optim, evals."""
  c = ConfigDict()
  c.seed = 0
  c.grad_accum = 1
  # -1 takes the devices that are left. The batch is split over replica x fsdp.
  c.mesh = dict(replica=1, fsdp=-1, tensor=1, sequence=1)
  # Rules (regex over the state's path, tactic), first match wins; () means the defaults of
  # sharding.py: attention and MLP kernels over tensor, everything over fsdp.
  c.sharding = dict(rules=())
  c.checkpoint = dict(every_steps=1000, keep_last=3)
  c.log = dict(every_steps=50)
  c.evals = dict()
  return c
