"""DDPM (arXiv:2006.11239, Sec. 4 and Appendix B) on CIFAR-10, 35.7 million parameters.

A thousand steps with betas from 1e-4 to 0.02, the noise as target, unweighted; Adam at 2e-4 after
5,000 steps of warm-up, batch 128 for 800,000 steps, dropout 0.1, horizontal flips, weights averaged
at 0.9999. `conditional` adds the class and label dropout for guidance (arXiv:2207.12598), which is
not in the paper. `data=` names any prepared TFDS set of 32 x 32 images with ten classes.

Command: python -m big_vision_like.train --config configs/ddpm.py --workdir DIR
Score: not yet run (the paper: FID 3.17 without classes).

smoke: the 8 x 8 digits by class, guidance 1.5, 20 steps of DPM-Solver++. A classifier trained on
real digits must recognise the asked digit in 90 % of the samples (random initialisation: about
10 %), and the Frechet distance in its features must come near that between the real training and
test splits, without the samples being copies (distance in pixels to the nearest training image).
Command: python -m big_vision_like.train --config configs/ddpm.py:smoke --workdir DIR
Score (seed 0, 1 device): 98.1 % recognised (random initialisation 8.5 %, real test digits 98.6 %),
Frechet distance 1.47 (random initialisation 84.5, real training digits 1.30), nearest training
image at 2.26 (of real test digits at 2.10); 79 s on two CPU cores.
"""

from configs import common


def get_config(arg=None):
  arg = common.parse_arg(arg, conditional=False, data="cifar10", batch_size=128, smoke=False)
  c = common.base()
  c.method = "ddpm"
  if arg.smoke:
    return smoke(c)

  keys = "image, label" if arg.conditional else "image"
  c.total_steps = 800_000
  c.model = dict(
    name="unet",
    channels=128,
    channel_mults=(1, 2, 2, 2),
    num_res_blocks=2,
    attention_resolutions=(16,),
    num_heads=1,
    dropout=0.1,
    num_classes=10 if arg.conditional else None,
    image_size=32,
    out_channels=3,
    dtype="float32",
    remat="none",
  )
  c.diffusion = dict(name="linear", num_steps=1000, beta_start=1e-4, beta_end=0.02)
  c.loss = dict(target="eps", weight="simple", label_dropout=0.1)
  c.ema = dict(decay=0.9999)
  c.input = dict(
    source=f"tfds(name='{arg.data}', split='train')",
    pp=f"decode|flip_lr|value_range(-1, 1)|keep({keys})",
    spec=dict(image="float32(32, 32, 3)"),
    batch_size=arg.batch_size,
  )
  if arg.conditional:
    c.input.spec.label = "int32()"
  c.optim = dict(
    name="adam", lr=2e-4, clip_norm=1.0, schedule=dict(name="constant", warmup_steps=5000)
  )
  c.checkpoint.every_steps = 10_000
  c.evals.val = dict(
    type="loss",
    every_steps=10_000,
    source=f"tfds(name='{arg.data}', split='test')",
    pp=f"decode|value_range(-1, 1)|keep({keys})",
    batch_size=512,
  )
  return c


def smoke(c):
  """Minutes on two CPU cores, data that ships with scikit-learn."""
  pp = "value_range(-1, 1)|keep(image, label)"
  c.total_steps = 1000
  c.model = dict(
    name="unet",
    channels=24,
    channel_mults=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(4,),
    num_heads=2,
    dropout=0.0,
    groups=8,
    num_classes=10,
    image_size=8,
    out_channels=1,
    dtype="float32",
  )
  c.diffusion = dict(name="cosine", num_steps=1000)
  c.loss = dict(target="eps", weight="simple", label_dropout=0.1)
  c.ema = dict(decay=0.99)
  c.input = dict(
    source="digits(split='train')",
    pp=pp,
    spec=dict(image="float32(8, 8, 1)", label="int32()"),
    batch_size=64,
  )
  c.optim = dict(
    name="adam", lr=2e-3, clip_norm=1.0, schedule=dict(name="cosine", warmup_steps=100)
  )
  c.checkpoint.every_steps = 500
  c.evals.samples = dict(
    type="samples",
    every_steps=1000,
    initial=True,
    source_train="digits(split='train')",
    source="digits(split='test')",
    pp=pp,
    batch_size=364,
    options=dict(sampler="dpmpp_2m", steps=20, guidance=1.5),
  )
  c.evals.val = dict(
    type="loss", every_steps=500, source="digits(split='test')", pp=pp, batch_size=364
  )
  return c
