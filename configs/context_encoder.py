"""Context Encoders (arXiv:1604.07379), inpainting net, 128 px with a hole of 64 px, ImageNet.

Sizes and rates are the released code's for the central hole: bottleneck of 4,000, Adam with beta1
0.5, 2e-4 for the discriminator and ten times that for the generator, lambda_rec 0.999 and
lambda_adv 0.001, a rim of 4 px that is predicted though seen (the paper's text says 7) and weighs
10 times. `mask=blocks` and `mask=region` predict the whole image, with one more layer in the
decoder and the discriminator. Deviations: batch 256 instead of 64, so that a pod
of 256 divides it (`batch_size=64` elsewhere); both players move at once, where the released code
moves the discriminator first. The paper's AlexNet at 227 px for feature learning is not here.

Command: python -m big_vision_like.train --config configs/context_encoder.py --workdir DIR
Score: not yet run (needs a pod).

smoke: two real digits side by side, the inner 8 of 16 columns hidden: the right half of the left
digit and the left half of the right one. It must beat, in squared error on held-out scans, the fill
by the mean of what is visible and the mean image. lambda_adv is 0.05 here; `lambda_adv=0` is the
same run without the adversary, to be expected lower in error and lower in `sharpness` (edges of the
fill over edges of the real image, 1 is as sharp).
Command: python -m big_vision_like.train --config configs/context_encoder.py:smoke --workdir DIR
Score (seed 0): squared error 0.152, sharpness 0.86; without the adversary 0.135 and 0.79; mean fill
0.592, mean image 0.292, random initialisation 0.721.
"""

from configs import common

MASKS = {  # full scale, smoke
  "center": ("center(64, 64, overlap=4)", "center(8, 8)"),
  "blocks": ("blocks(5, 28, 28)", "blocks(3, 4, 4)"),
  "region": ("region(0.25, 8)", "region(0.25, 4)"),
}


def get_config(arg=None):
  arg = common.parse_arg(
    arg,
    batch_size=256,
    data="imagenet2012",
    mask="center",
    lambda_adv=None,
    smoke=False,
  )
  c = common.base()
  c.method = "context_encoder"
  if arg.smoke:
    return smoke(c, arg)

  c.total_examples = 128_116_700  # 100 epochs
  whole = arg.mask != "center"  # predicts all of the image
  c.model = dict(
    encoder=(64, 64, 128, 256, 512),
    bottleneck=4000,
    decoder=(512, 256, 128, 64, 64) if whole else (512, 256, 128, 64),
    discriminator=(64, 64, 128, 256, 512) if whole else (64, 128, 256, 512),
    dtype="bfloat16",
  )
  c.loss = dict(
    mask=MASKS[arg.mask][0],
    fill=tuple(2 * mean / 255 - 1 for mean in (123, 117, 104)),  # ImageNet's mean, red first
    lambda_rec=0.999,
    lambda_adv=0.001 if arg.lambda_adv is None else arg.lambda_adv,
    overlap_weight=10.0,
  )
  c.input = dict(
    source=f"tfds(name='{arg.data}', split='train')",
    pp="decode|resize_small(350)|random_crop(128)|flip_lr|value_range(-1, 1)|keep(image)",
    spec=dict(image="float32(128, 128, 3)"),
    batch_size=arg.batch_size,
  )
  c.optim = optim(c, lr=2e-3, d_lr=2e-4)
  return c


def optim(c, lr, d_lr):
  """Adam for the generator, and for the discriminator, where there is one, at its own rate."""
  groups = (("discriminator/.*", dict(lr=d_lr)),)
  return dict(
    name="adam",
    lr=lr,
    b1=0.5,
    groups=groups if c.loss.lambda_adv else (),
    schedule=dict(name="constant"),
  )


def smoke(c, arg):
  """Minutes on two CPU cores, data that ships with scikit-learn."""
  c.total_steps = 800
  c.model = dict(
    encoder=(32, 64, 128),
    bottleneck=128,
    decoder=(128, 64),
    discriminator=(32, 64),
    dtype="float32",
  )
  c.loss = dict(
    mask=MASKS[arg.mask][1],
    fill=-0.4,  # the mean pixel
    lambda_rec=0.999,
    lambda_adv=0.05 if arg.lambda_adv is None else arg.lambda_adv,
    overlap_weight=10.0,
  )
  c.input = dict(
    source="digit_pairs(split='train')",
    pp="value_range(-1, 1)|keep(image)",
    spec=dict(image="float32(8, 16, 1)"),
    batch_size=128,
  )
  c.optim = optim(c, lr=1e-3, d_lr=1e-4)
  c.checkpoint.every_steps = 400
  c.evals["reconstruct"] = dict(
    type="reconstruct",
    initial=True,
    every_steps=400,
    source="digit_pairs(split='test_seen')",
    pp="value_range(-1, 1)|keep(image)",
    batch_size=256,
  )
  return c
