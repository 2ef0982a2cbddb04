"""Supervised classification (arXiv:2205.01580): ViT-S/16 on ImageNet-1k, 90 epochs, batch 1,024.

Adam at 1e-3, decay 1e-4 (as a share of the parameter a step), clipping at 1, warm-up of 10,000
steps, cosine to zero; mean over patches, fixed sin-cos positions, mixup 0.2, crops, flips and
RandAugment (2 ops, strength 10). 21,974,632 parameters (the paper: 22 M).

`variant=` takes any ViT (`B/16`) or ResNet (`resnet50`: 25,557,032 parameters), the latter with the
recipe of arXiv:1706.02677: Nesterov at 0.1 for 256 images, 5 epochs of warm-up, decay 1e-4 inside
the gradient (1e-3 here, where the decay does not go through the momentum of 0.9).

Command: python -m big_vision_like.train --config configs/classify.py --workdir DIR
Score: not yet run (needs a pod); published: 76.5 % top 1.

`smoke,variant=resnet18,data=FOLDER` is a small ResNet on MNIST, FOLDER with the test files
t10k-*-ubyte.gz: 8,000 images for training, 2,000 held out; nearest neighbour in pixels 96.75 %,
untrained 5.1 %. It scores 99.0 % (seed 0; 111 s on one CPU core).

smoke: scikit-learn's digits, a fixed fifth of each class held out. It must beat the nearest
neighbour in pixels, which the evaluator measures too.
Command: python -m big_vision_like.train --config configs/classify.py:smoke --workdir DIR
Score (seed 0): 99.2 % of 364 held-out scans; nearest neighbour in pixels 98.6 %, untrained 9.3 %.
One example is 0.3 %. 39 s on two CPU cores.
"""

from configs import common

IMAGENET = 1_281_167


def get_config(arg=None):
  arg = common.parse_arg(
    arg, variant="S/16", res=224, batch_size=1024, epochs=90, data="", smoke=False
  )
  c = common.base()
  c.method = "classify"
  c.loss = dict(type="softmax", label_smoothing=0.0)
  if arg.smoke:
    return smoke(c, arg)

  c.total_examples = arg.epochs * IMAGENET
  policy = ""
  if arg.variant.startswith("resnet"):
    c.model = dict(
      name="resnet", variant=arg.variant[len("resnet") :], num_classes=1000, dtype="bfloat16"
    )
    c.optim = dict(
      name="sgd",
      momentum=0.9,
      nesterov=True,
      lr=0.1 * arg.batch_size / 256,
      weight_decay=1e-3,
      schedule=dict(name="cosine", warmup_examples=5 * IMAGENET),
    )
  else:
    c.model = dict(
      name="vit",
      variant=arg.variant,
      num_classes=1000,
      pool="gap",
      pos_embed="sincos2d",
      image_size=(arg.res, arg.res),
      dtype="bfloat16",
    )
    policy = "|randaugment(2, 10)"
    c.augment = "mixup(0.2, classes=1000)"
    c.optim = dict(
      name="adamw",
      mu_dtype="bfloat16",
      lr=1e-3,
      weight_decay=0.1,  # 1e-4 in the paper's code, which does not multiply it by the rate 1e-3
      clip_norm=1.0,
      schedule=dict(name="cosine", warmup_steps=10_000),
    )
  data, pixels = arg.data or "imagenet2012", "value_range(-1, 1)|keep(image, label)"
  c.input = dict(
    source=f"tfds(name='{data}', split='train')",
    pp=f"decode|random_resized_crop({arg.res}, area=(0.05, 1.0))|flip_lr{policy}|{pixels}",
    spec=dict(image=f"float32({arg.res}, {arg.res}, 3)", label="int32()"),
    batch_size=arg.batch_size,
  )
  held_out = dict(
    source=f"tfds(name='{data}', split='validation')",
    pp=f"decode|resize_small({round(arg.res * 8 / 7)})|central_crop({arg.res})|{pixels}",
    batch_size=arg.batch_size,
    every_percent=10,
  )
  c.evals.val = dict(type="accuracy", **held_out)
  c.evals.val_loss = dict(type="loss", **held_out)
  return c


def smoke(c, arg):
  """Minutes on two CPU cores."""
  if arg.data:
    files = "images='{0}/t10k-images-idx3-ubyte.gz', labels='{0}/t10k-labels-idx1-ubyte.gz'"
    files = files.format(arg.data)
    train, test, size = f"idx({files}, stop=8000)", f"idx({files}, start=8000)", 28
  else:
    train, test, size = "digits(split='train')", "digits(split='test')", 8
  c.total_steps = 1800
  if arg.variant.startswith("resnet"):
    c.total_steps = 800
    stem = "imagenet" if size > 16 else "small"
    c.model = dict(name="resnet", variant="18", stages=(1, 1, 1), width=32, stem=stem)
  else:
    c.model = dict(
      name="vit",
      width=64,
      depth=3,
      mlp_dim=256,
      num_heads=4,
      patch_size=(size // 4, size // 4),
      pool="gap",
      pos_embed="learn",
      image_size=(size, size),
      scan=False,
      drop_path=0.1,
    )
  c.model.update(num_classes=10, dtype="float32")
  pixels = "value_range(-1, 1)|keep(image, label)"
  c.augment = "mixup(0.2, classes=10)"
  c.input = dict(
    source=train,
    pp=f"random_resized_crop({size}, area=(0.5, 1.0), ratio=(0.75, 1.33))|{pixels}",
    spec=dict(image=f"float32({size}, {size}, 1)", label="int32()"),
    batch_size=128,
  )
  c.optim = dict(
    name="adamw",
    lr=2e-3,
    weight_decay=0.3,
    clip_norm=1.0,
    schedule=dict(name="cosine", warmup_steps=100),
  )
  c.checkpoint.every_steps = c.total_steps
  held_out = dict(source=test, pp=pixels, batch_size=256, every_steps=600)
  c.evals.test = dict(type="accuracy", source_train=train, initial=True, **held_out)
  c.evals.test_loss = dict(type="loss", **held_out)
  return c
