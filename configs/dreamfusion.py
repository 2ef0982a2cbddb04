"""DreamFusion (arXiv:2209.14988): a radiance field optimised by a frozen diffusion model.

Default: the paper's setting as recalled, not checked against its text: renders of 64 x 64, four
views a step (one on each of four chips), 15,000 steps, guidance 100, t in 0.02..0.98, an MLP of
five residual blocks of 128, cameras at elevations of -10 to 90 degrees (here to 89: at the zenith
up has no direction) and distances of 1 to 1.5, a lamp near the camera in three views of four after
1,000 steps and no albedo in half of those, penalties of opacity 1e-3 and orientation 1e-2. Its
optimiser is Distributed Shampoo (3,000 steps of warm-up to 1e-4, cosine to 1e-6); here Adam at
that rate, with the same warm-up. Its prior is the 64 x 64 base model of Imagen, which is not public
and reads text: here a class-conditional U-Net of that resolution, from `prior=DIR`.

Command: python -m big_vision_like.train --config configs/dreamfusion.py:prior=DIR --workdir DIR2
Score: not yet run (needs a prior of 64 x 64).
"""

from configs import common

SOLIDS = 16  # classes: four shapes in four colours, input/sources/solids.py


def get_config(arg=None):
  arg = common.parse_arg(arg, prior="runs/dreamfusion/prior", prompt=4, smoke=False)
  c = common.base()
  c.method = "dreamfusion"
  c.prompt = arg.prompt
  c.init_from = {"aux/frozen/prior": f"{arg.prior}::aux/ema"}
  if arg.smoke:
    return smoke(c)

  c.total_steps = 15_000
  c.model = dict(name="nerf", width=128, depth=5, frequencies=8, radius=1.4, dtype="float32")
  c.prior = dict(
    name="unet",
    channels=256,
    channel_mults=(1, 2, 3, 4),
    num_res_blocks=3,
    attention_resolutions=(32, 16, 8),
    num_heads=8,
    num_classes=1000,
    image_size=64,
    dtype="bfloat16",
  )
  c.diffusion = dict(name="continuous_cosine")
  c.camera = dict(
    size=(64, 64),
    fov=(41.0, 71.0),  # focal lengths of 1.35 to 0.7 of the width
    distance=(1.0, 1.5),
    elevation=(-10.0, 89.0),
    samples=128,
    held_out=0.1,
    background=1.0,
  )
  c.loss = dict(
    guidance=100.0,
    target="v",
    times=(0.02, 0.98),
    opacity=1e-3,
    orientation=1e-2,
    shaded=0.75,
    textureless=0.5,
    shading_warmup_steps=1000,
  )
  c.input = dict(source="nothing()", pp="", spec=dict(), batch_size=4)
  c.optim = dict(
    name="adam",
    lr=1e-4,
    b2=0.9,
    schedule=dict(name="cosine", warmup_steps=3000, end_factor=0.01),
  )
  return c


def smoke(c):
  """One of the solids from the prior that `prior` trains; a minute on two CPU cores."""
  c.total_steps = 1000
  c.model = dict(
    name="nerf",
    width=32,
    depth=2,
    frequencies=4,
    blob=5.0,
    blob_std=0.3,
    density_bias=-1.0,
    radius=1.2,
  )
  c.prior = small_unet()
  c.diffusion = dict(name="continuous_cosine")
  c.camera = dict(
    size=(16, 16),
    fov=(40.0, 40.0),
    distance=(3.2, 3.2),
    elevation=(5.0, 50.0),
    samples=32,
    held_out=0.1,
    background=1.0,
  )
  c.loss = dict(
    guidance=10.0,
    target="v",
    times=(0.02, 0.98),
    opacity=1e-3,
    orientation=0.0,
    shaded=0.0,
    textureless=0.0,
  )
  c.input = dict(source="nothing()", pp="", spec=dict(), batch_size=8)
  c.optim = dict(name="adam", lr=5e-3, clip_norm=10.0, schedule=dict(name="cosine"))
  return c


def small_unet():
  return dict(
    name="unet",
    channels=32,
    channel_mults=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(8,),
    groups=8,
    num_classes=SOLIDS,
    image_size=16,
  )
