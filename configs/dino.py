"""DINO (arXiv:2104.14294), ViT-S/16 at 224 px, 2 global and 8 local crops, batch 1,024.

The paper's Sec. 3.2 and Appendix: AdamW, learning rate 5e-4 * batch / 256 with 10 epochs of warm-up
and a cosine to 1e-6, weight decay 0.04 to 0.4, teacher temperature 0.04 to 0.07 over 30 epochs,
K = 65,536, BYOL's colour augmentation. 100 epochs of ImageNet-1k by default, `epochs=` for others
(the paper's best run has 800: 74.5 % kNN, 77.0 % linear). Gradients are not clipped.

Command: python -m big_vision_like.train --config configs/dino.py --workdir DIR
Score: not yet run (needs a pod).

smoke: scikit-learn's digits at 12 px with 2 local crops of 8 px, a ResNet of three blocks (the
paper trains ResNet-50 too; a small ViT did not learn in the time). The score is kNN on held-out
digits, all of them randomly cropped to 40-100 % of their area, and on whole ones: it must beat its
random initialisation (36.0 % and 64.3 %) by 10 points on both without a collapse: teacher entropy
far from 0 and from log K = 5.55, effective rank above the untrained 13.7. It does not reach kNN on
pixels (81.3 % and 97.8 %).
Command: python -m big_vision_like.train --config configs/dino.py:smoke --workdir DIR
Score (seed 0, CPU): kNN 60.2 % on cropped digits, 87.6 % on whole ones; effective rank 33.7 of 64,
spread 0.51, teacher entropy 2.02; 88 s on two CPU cores.
"""

from configs import common

IMAGENET = 1_281_167


def get_config(arg=None):
  arg = common.parse_arg(
    arg,
    variant="S/16",
    batch_size=1024,
    epochs=100,
    num_local=8,
    data="imagenet2012",
    smoke=False,
  )
  c = common.base()
  c.method = "dino"
  if arg.smoke:
    return smoke(c)

  steps = lambda epochs: round(epochs * IMAGENET / arg.batch_size)
  c.total_steps = steps(arg.epochs)
  c.model = dict(
    name="vit",
    variant=arg.variant,
    pool="cls",
    pos_embed="learn",
    gelu="exact",
    drop_path=0.1,
    dtype="bfloat16",
    remat="none",
  )
  c.head = dict(prototypes=65_536, hidden=2048, bottleneck=256, dtype="bfloat16")
  c.loss = dict(
    student_temp=0.1,
    teacher_temp=0.07,
    teacher_temp_start=0.04,
    teacher_temp_warmup_steps=steps(30),
    center_momentum=0.9,
    teacher_momentum=0.996,
    freeze_last_steps=steps(1),
  )
  c.input = dict(
    source=f"tfds(name='{arg.data}', split='train')",
    pp=(
      f"decode|multi_crop(224, 96, num_local={arg.num_local}, global_area=(0.4, 1.0), "
      "local_area=(0.05, 0.4))|keep('global', 'local')"
    ),
    spec={
      "global": "uint8(2, 224, 224, 3)",
      "local": f"uint8({arg.num_local}, 96, 96, 3)",
    },
    batch_size=arg.batch_size,
  )
  # The first global view is always blurred, the second seldom and sometimes solarised.
  c.augment = "|".join(
    [
      *(f"color_jitter(0.4, 0.4, 0.2, 0.1, p=0.8, key='{k}')" for k in ("global", "local")),
      *(f"grayscale(p=0.2, key='{k}')" for k in ("global", "local")),
      "gaussian_blur(p=(1.0, 0.1), key='global')|gaussian_blur(p=0.5, key='local')",
      "solarize(p=(0.0, 0.2), key='global')",
      *(f"normalize(key='{k}')" for k in ("global", "local")),
    ]
  )
  lr = 5e-4 * arg.batch_size / 256
  c.optim = dict(
    name="adamw",
    lr=lr,
    weight_decay=0.04,
    weight_decay_end=0.4,
    schedule=dict(name="cosine", warmup_steps=steps(10), end_factor=1e-6 / lr),
  )
  pp = "decode|resize_small(256, method='bicubic')|central_crop(224)|standardize|keep(image, label)"
  c.evals["knn"] = dict(
    type="knn",
    every_steps=steps(10),
    source_train=f"tfds(name='{arg.data}', split='train')",
    source=f"tfds(name='{arg.data}', split='validation')",
    pp=pp,
    k=20,
    temperature=0.07,
    pixels=False,
    batch_size=arg.batch_size,
  )
  return c


def smoke(c):
  """Minutes on two CPU cores, data that ships with scikit-learn."""
  c.total_steps = 1500
  c.model = dict(name="resnet", bottleneck=False, stages=(1, 1, 1), width=16, stem="small")
  c.head = dict(prototypes=256, hidden=128, bottleneck=32, init_std=0.1)
  c.loss = dict(
    student_temp=0.1,
    teacher_temp=0.04,
    teacher_temp_start=0.04,
    center_momentum=0.9,
    teacher_momentum=0.98,
    freeze_last_percent=2.0,
  )
  c.input = dict(
    source="digits(split='train')",
    pp=(
      "multi_crop(12, 8, num_local=2, global_area=(0.4, 1.0), local_area=(0.25, 0.5), flip=False)"
      "|value_range(0, 1, key='global')|value_range(0, 1, key='local')|keep('global', 'local')"
    ),
    spec={"global": "float32(2, 12, 12, 1)", "local": "float32(2, 8, 8, 1)"},
    batch_size=64,
  )
  c.optim = dict(
    name="adamw",
    lr=2e-3,
    weight_decay=0.04,
    weight_decay_end=0.4,
    schedule=dict(name="cosine", warmup_percent=10.0),
  )
  c.checkpoint.every_steps = 1500
  c.evals = common.digits_knn(500)
  return c
