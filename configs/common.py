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
  c.profile_steps = ()  # (10, 15) writes a profiler trace of the steps 10 to 15
  c.evals = dict()
  return c


# ------------------------------------------------- evaluations that several smoke settings share


def digit_pairs_evals(image: str, tokens: str, every: int, **zeroshot) -> dict:
  """Zero-shot on seen and on never-trained pairs, and the loss on held-out scans.

  `image` and `tokens` are the ops of training; `zeroshot` are further keys of those two.
  """
  often = dict(every_steps=every, batch_size=256)
  out = {
    f"zeroshot_{name}": dict(
      type="zeroshot",
      source=f"digit_pairs(split='test_{name}')",
      pp=f"{image}|keep(image, label)",
      pp_txt=tokens,
      classes="digit_pairs",
      **often,
      **zeroshot,
    )
    for name in ("seen", "new_pairs")
  }
  pp = f"{image}|{tokens}|keep(image, text)"
  return out | {"val": dict(type="loss", source="digit_pairs(split='val')", pp=pp, **often)}


def digits_knn(every: int) -> dict:
  """kNN on held-out digits of 12 pixels, randomly cropped as in training, and whole."""
  crop = "random_resized_crop(12, area=(0.4, 1.0), method='bicubic')"
  return {
    name: dict(
      type="knn",
      initial=True,
      every_steps=every,
      source_train="digits(split='train')",
      source="digits(split='test')",
      pp=f"{op}|value_range(0, 1)|keep(image, label)",
      k=20,
      temperature=0.07,
      batch_size=256,
    )
    for name, op in (("knn", crop), ("knn_whole", "resize(12, method='bicubic')"))
  }
