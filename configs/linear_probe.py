"""Linear probe of a frozen backbone on ImageNet-1k, a head for each learning rate.

Default, the protocol of DINO (arXiv:2104.14294): SGD with momentum, no decay, cosine to zero, 100
epochs, batch 1,024, crops and flips; the rate for 256 images, 0.001 in the paper's code, is swept
over a factor of 1,000 in one run. `protocol=mae` is that of MAE (arXiv:2111.06377, Appendix A.1):
LARS at 0.1 for 256 images, batch 16,384, 90 epochs with 10 of warm-up, batch norm without
parameters. Features are the backbone's last pooled token (DINO joins those of its last four blocks
for ViT-S).

`backbone=DIR::params/encoder` is a saved run and the path of the backbone in it. 385,000 parameters
a head; the backbone (ViT-S/16, class token: 21,665,280) is in aux.

Command: python -m big_vision_like.train --config configs/linear_probe.py:backbone=DIR --workdir OUT
Score: not yet run (needs a pod and a backbone).

smoke: scikit-learn's digits and the ViT of classify.py:smoke, untrained unless `backbone=` says
otherwise. The best head must come within 1 % of scikit-learn's logistic regression on the same
features, which the evaluator `probe` fits, on pixels too.
Command: python -m big_vision_like.train --config configs/linear_probe.py:smoke --workdir DIR
Score (seed 0): 78.6 % by the best rate, scikit-learn 78.6 % (364 held-out scans), untrained heads
9.6 %; scikit-learn on pixels 97.8 %; 13 s on two CPU cores. With `backbone=` a run of
classify.py:smoke: 99.2 %, scikit-learn 99.2 %.
"""

from configs import common

IMAGENET = 1_281_167


def get_config(arg=None):
  arg = common.parse_arg(
    arg, variant="S/16", res=224, protocol="dino", data="imagenet2012", backbone="", smoke=False
  )
  c = common.base()
  c.method = "linear_probe"
  if arg.backbone:
    run, _, path = arg.backbone.partition("::")
    c.init_from = {"aux/frozen/backbone": f"{run}::{path or 'params'}"}
  if arg.smoke:
    return smoke(c)

  if arg.variant.startswith("resnet"):
    c.model = dict(name="resnet", variant=arg.variant[len("resnet") :], dtype="bfloat16")
    if arg.backbone:
      c.init_from["aux/frozen/stats"] = f"{run}::aux/stats"
  else:
    c.model = dict(
      name="vit",
      variant=arg.variant,
      pool="cls",
      pos_embed="learn",
      image_size=(arg.res, arg.res),
      dtype="bfloat16",
    )
  if arg.protocol == "dino":
    rates, batch_size, epochs, warmup = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1), 1024, 100, 0
    optim = dict(name="sgd", momentum=0.9)
  elif arg.protocol == "mae":
    rates, batch_size, epochs, warmup = (0.03, 0.1, 0.3), 16_384, 90, 10
    optim = dict(name="lars", momentum=0.9)
  else:
    raise ValueError(f"protocol={arg.protocol!r} is unknown; dino or mae")
  c.total_examples = epochs * IMAGENET
  names = heads(c, rates, classes=1000, batch_norm=arg.protocol == "mae")
  pixels = "value_range(-1, 1)|keep(image, label)"
  c.input = dict(
    source=f"tfds(name='{arg.data}', split='train')",
    pp=f"decode|random_resized_crop({arg.res})|flip_lr|{pixels}",
    spec=dict(image=f"float32({arg.res}, {arg.res}, 3)", label="int32()"),
    batch_size=batch_size,
  )
  c.optim.update(
    **optim,
    lr=batch_size / 256,  # times the rate of each head, given for 256 images
    schedule=dict(name="cosine", warmup_examples=warmup * IMAGENET),
  )
  c.evals.val = dict(
    type="accuracy",
    heads=names,
    source=f"tfds(name='{arg.data}', split='validation')",
    pp=f"decode|resize_small({round(arg.res * 8 / 7)})|central_crop({arg.res})|{pixels}",
    batch_size=1024,
    every_percent=10,
  )
  return c


def heads(c, rates, **probe):
  """A head for each learning rate; returns their names."""
  names = tuple(f"lr_{rate}" for rate in rates)
  c.probe = dict(heads=names, features="pooled", **probe)
  c.optim = dict(lr_mults=tuple((f"heads/{n}/.*", rate) for n, rate in zip(names, rates)))
  return names


def smoke(c):
  """A minute on two CPU cores, data that ships with scikit-learn."""
  c.total_steps = 1000
  c.model = dict(
    name="vit",
    width=64,
    depth=3,
    mlp_dim=256,
    num_heads=4,
    patch_size=(2, 2),
    pool="gap",
    pos_embed="learn",
    image_size=(8, 8),
    scan=False,
    dtype="float32",
  )
  names = heads(c, (0.01, 0.03, 0.1, 0.3), classes=10, batch_norm=True)
  pixels = "value_range(-1, 1)|keep(image, label)"
  c.input = dict(
    source="digits(split='train')",
    pp=pixels,
    spec=dict(image="float32(8, 8, 1)", label="int32()"),
    batch_size=128,
  )
  c.optim.update(name="sgd", momentum=0.9, lr=1.0, schedule=dict(name="cosine"))
  c.checkpoint.every_steps = c.total_steps
  held_out = dict(source="digits(split='test')", pp=pixels, batch_size=256)
  c.evals.test = dict(type="accuracy", heads=names, initial=True, every_steps=500, **held_out)
  c.evals.probe = dict(type="linear_probe", source_train="digits(split='train')", **held_out)
  return c
