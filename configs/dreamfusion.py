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

smoke: "a blue cone" out of a prior that knows views of sixteen solids (four shapes, four colours)
at 16 x 16. Renders from cameras that training never has must be recognised as the prompt by a
classifier of real views in 90 %; one class in sixteen is 6 %, the untrained scene is measured at
step 0. `prompt=` is another label of input/sources/solids.py; PRIOR is the folder of stage 1, the
config `configs/dreamfusion.py:prior`. Both stages: python -m experiments.dreamfusion.stages
Command: python -m big_vision_like.train --config configs/dreamfusion.py:smoke,prior=PRIOR \
  --workdir DIR
Score (seed 0): 100 % of 256 renders from unseen cameras, untrained scene 0 %; the classifier itself
100 % of real test views; stage 1: 100 % of samples of all classes.
"""

from configs import common

SHAPES = ("sphere", "cube", "cylinder", "cone")
COLOURS = ("red", "green", "blue", "yellow")
PIXELS = "value_range(-1, 1)|keep(image, label)"


def get_config(arg=None):
  """`prior=DIR` is the folder of the prior's run; `prior` alone is the config that trains one.

  `prompt` is a label of the prior.
  """
  arg = common.parse_arg(arg, prior=None, prompt=14, smoke=False)
  c = common.base()
  if arg.prior is True:
    return prior(c)
  c.method = "dreamfusion"
  c.prompt = arg.prompt
  c.init_from = {"aux/frozen/prior": f"{arg.prior or 'runs/dreamfusion/prior'}::aux/ema"}
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


def prior(c):
  """Stage 1: a class-conditional diffusion model of views of solids."""
  c.method = "ddpm"
  c.total_steps = 600
  c.model = unet()
  c.diffusion = dict(name="continuous_cosine")
  c.loss = dict(target="v", weight="simple", label_dropout=0.1)
  c.ema = dict(decay=0.995)
  c.input = dict(
    source="solids(split='train', size=16)",
    pp=PIXELS,
    spec=dict(image="float32(16, 16, 3)", label="int32()"),
    batch_size=64,
  )
  c.optim = dict(
    name="adam", lr=2e-3, clip_norm=1.0, schedule=dict(name="cosine", warmup_steps=100)
  )
  c.evals.samples = recognised("solids(split='test', size=16)", 256)
  c.evals.samples.options = dict(sampler="ddim", steps=20, guidance=2.0)
  return c


def smoke(c):
  """Stage 2: a scene out of that prior."""
  shape, colour = SHAPES[c.prompt // len(COLOURS)], COLOURS[c.prompt % len(COLOURS)]
  c.total_steps = 300
  c.model = dict(
    name="nerf",
    width=32,
    depth=2,
    frequencies=4,
    blob=5.0,
    blob_std=0.3,
    density_bias=-1.0,
    radius=1.2,
    dtype="float32",
  )
  c.prior = unet()
  c.diffusion = dict(name="continuous_cosine")
  c.camera = dict(
    size=(16, 16),
    fov=(40.0, 40.0),  # that of the solids, as are the distance and the elevations
    distance=(3.2, 3.2),
    elevation=(5.0, 50.0),
    samples=24,
    held_out=0.1,
    background=1.0,
  )
  c.loss = dict(guidance=4.0, target="v", times=(0.02, 0.98), opacity=1e-3)
  c.input = dict(source="nothing()", pp="", spec=dict(), batch_size=8)
  c.optim = dict(name="adam", lr=5e-3, clip_norm=10.0, schedule=dict(name="cosine"))
  views = f"solids(split='test', size=16, shape='{shape}', colour='{colour}', examples=256)"
  c.evals.views = recognised(views, 256)
  c.evals.views.initial = True
  return c


def recognised(source, count):
  """A classifier of real views judges what the method makes."""
  return dict(
    type="samples",
    source_train="solids(split='train', size=16, examples=2048)",
    source=source,
    pp=PIXELS,
    num_samples=count,
    batch_size=256,
  )


def unet():
  return dict(
    name="unet",
    channels=16,
    channel_mults=(1, 3, 4),
    num_res_blocks=1,
    attention_resolutions=(),
    groups=8,
    num_classes=len(SHAPES) * len(COLOURS),
    image_size=16,
    out_channels=3,
    dtype="float32",
  )
