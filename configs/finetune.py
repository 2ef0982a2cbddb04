"""End-to-end fine-tuning on ImageNet-1k: a pre-trained ViT-L/16, 50 epochs, batch 1,024.

The recipe of BEiT (arXiv:2106.08254) as MAE has it (arXiv:2111.06377, Table 9): AdamW (0.9, 0.999)
at 1e-3 x batch / 256, decay 0.05, rates falling by 0.75 a layer from the head down, stochastic
depth 0.2, 5 epochs of warm-up, cosine to zero, RandAugment (2 ops, strength 9), random erasing
0.25, mixup 0.8 and cutmix 1, label smoothing 0.1. `variant=B/16` takes 100 epochs and drop path
0.1, `H/14` 50 and 0.3.

`init=DIR` is a run of mae.py, `init=DIR::params` one of classify.py, whose head is left;
`init=DIR::aux/teacher/backbone` one of dino.py. Its architecture must be that of the model here:
class token, fixed sin-cos positions. 304,124,904 parameters (304,326,632 where the table of
positions counts: 197 x 1,024).

Not as in the published code: positions stay fixed; the class token is pooled, not the mean over
patches (the paper finds both alike); mixup and cutmix throw a coin each, where timm throws one for
the two, so that a quarter of the batches has both and a quarter none.

Command: python -m big_vision_like.train --config configs/finetune.py:init=DIR --workdir OUT
Score: not yet run (needs a pod and a pre-trained model); published: 85.9 % top 1 (MAE).

smoke: scikit-learn's digits on a canvas of 12 x 12 at random places, as mae.py:smoke has them,
whose run is DIR. It must beat the same from scratch.
Command: python -m big_vision_like.train --config configs/mae.py:smoke --workdir DIR
Command: python -m big_vision_like.train --config configs/finetune.py:smoke,init=DIR --workdir OUT
Score (seed 0): 92.0 % of 364 held-out scans, from scratch 64.6 %, untrained 13.2 %; 100 s on two
busy CPU cores.
"""

from configs import common

IMAGENET = 1_281_167
EPOCHS = {"B": 100}
DROP_PATH = {"B": 0.1, "L": 0.2, "H": 0.3}


def get_config(arg=None):
  arg = common.parse_arg(
    arg,
    variant="L/16",
    res=224,
    batch_size=1024,
    epochs=0,
    layer_decay=0.75,
    data="imagenet2012",
    init="",
    smoke=False,
  )
  c = common.base()
  c.method = "classify"
  c.loss = dict(type="softmax", label_smoothing=0.1)
  if arg.init:
    run, _, path = arg.init.partition("::")
    source = f"{run}::{path or 'params/encoder'}"
    c.init_from = {"params": dict(path=source, reinit=("params/head/.*",))}
  if arg.smoke:
    return smoke(c)

  size = arg.variant.partition("/")[0]
  c.total_examples = (arg.epochs or EPOCHS.get(size, 50)) * IMAGENET
  c.model = dict(
    name="vit",
    variant=arg.variant,
    num_classes=1000,
    pool="cls",
    pos_embed="sincos2d_moco",
    image_size=(arg.res, arg.res),
    gelu="exact",
    drop_path=DROP_PATH.get(size, 0.1),
    dtype="bfloat16",
  )
  augment = "flip_lr|randaugment(2, 9)|random_erasing(0.25)"
  c.augment = "mixup(0.8, classes=1000, p=0.5)|cutmix(1.0, classes=1000, p=0.5)"
  c.input = dict(
    source=f"tfds(name='{arg.data}', split='train')",
    pp=(
      f"decode|random_resized_crop({arg.res}, method='bicubic')|{augment}"
      "|standardize|keep(image, label)"
    ),
    spec=dict(image=f"float32({arg.res}, {arg.res}, 3)", label="int32()"),
    batch_size=arg.batch_size,
  )
  c.optim = dict(
    name="adamw",
    lr=1e-3 * arg.batch_size / 256,
    weight_decay=0.05,
    layer_decay=arg.layer_decay,
    schedule=dict(name="cosine", warmup_examples=5 * IMAGENET),
  )
  held_out = dict(
    source=f"tfds(name='{arg.data}', split='validation')",
    pp=(
      f"decode|resize_small({round(arg.res * 8 / 7)}, method='bicubic')|central_crop({arg.res})"
      "|standardize|keep(image, label)"
    ),
    batch_size=arg.batch_size,
    every_percent=10,
  )
  c.evals.val = dict(type="accuracy", **held_out)
  c.evals.val_loss = dict(type="loss", **held_out)
  return c


def smoke(c):
  """A minute on two CPU cores; the model and the images are those of mae.py:smoke."""
  c.total_steps = 400
  c.model = dict(
    name="vit",
    width=64,
    depth=3,
    mlp_dim=256,
    num_heads=4,
    patch_size=(2, 2),
    image_size=(12, 12),
    num_classes=10,
    pool="cls",
    pos_embed="sincos2d_moco",
    gelu="exact",
    drop_path=0.1,
    scan=False,
    dtype="float32",
  )
  pixels = "random_place(12)|value_range(-1, 1)|keep(image, label)"
  c.augment = "mixup(0.8, classes=10, p=0.5)|cutmix(1.0, classes=10, p=0.5)"
  c.input = dict(
    source="digits(split='train')",
    pp=pixels,
    spec=dict(image="float32(12, 12, 1)", label="int32()"),
    batch_size=128,
  )
  c.optim = dict(
    name="adamw",
    lr=2e-3,
    weight_decay=0.05,
    layer_decay=0.75,
    schedule=dict(name="cosine", warmup_steps=40),
  )
  c.checkpoint.every_steps = c.total_steps
  held_out = dict(source="digits(split='test')", pp=pixels, batch_size=256, every_steps=200)
  c.evals.test = dict(type="accuracy", initial=True, **held_out)
  c.evals.test_loss = dict(type="loss", **held_out)
  return c
