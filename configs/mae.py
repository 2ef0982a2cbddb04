"""MAE (arXiv:2111.06377): ViT-L/16 on ImageNet-1k, 1,600 epochs, batch 4,096.

Hides 75 % of the patches; targets are pixels normalised patch by patch; decoder of 8 blocks, width
512 (Sec. 4, Tables 1 and 3). AdamW (0.9, 0.95), learning rate 1.5e-4 x batch / 256, weight decay
0.05, 40 epochs of warm-up, cosine to zero, random crops and flips only (Table 8). `epochs=800` is
the length of the ablations; `variant=B/16` and `H/14` are the other two models of the paper.

329,239,296 parameters. The published checkpoint counts 329,541,888, as it stores the two fixed
tables of positions, which are no parameters here: 197 x (1,024 + 512) numbers. Likewise B/16 has
111,655,680 (published 111,907,840) and H/14 656,613,964 (657,074,508). Not as in the published
code: query, key and value are initialised as three matrices, not as one; class and mask token are
not decayed.

Command: python -m big_vision_like.train --config configs/mae.py --workdir DIR
Score: not yet run (needs a pod); published: 75.1 % linear, 85.9 % fine-tuned (ViT-L/16).

smoke: scikit-learn's digits, 8 x 8, each at a random place of a canvas of 12 x 12; half of the
patches of 2 x 2 hidden (of 75 % the rest seldom says which digit it is); targets are plain pixels.
A fixed fifth of the scans is held out. A logistic regression on the frozen features must beat the
same on pixels and on the features of the random initialisation, and the error of hidden pixels the
mean image. (Where digits are centred, pixels alone reach 98 %: nothing to be seen of features.)
`data=DIR` takes MNIST's test files from a folder, 28 x 28 on a canvas of 32 x 32, patches of 4 x 4.
Command: python -m big_vision_like.train --config configs/mae.py:smoke --workdir DIR
Score (seed 0): linear probe 66.5 %, pixels 29.7 %, random initialisation 45.9 % (364 scans, so
+-2.5); squared error of hidden pixels 0.113, mean image 0.261, mean of the visible pixels 0.354,
random initialisation 0.836; 93 s on two CPU cores. With `data=`: probe
89.0 %, pixels 76.5 %, random initialisation 60.2 %; hidden pixels 0.116, mean image 0.231; 176 s on
one CPU core.
"""

from configs import common

IMAGENET = 1_281_167


def get_config(arg=None):
  arg = common.parse_arg(
    arg,
    variant="L/16",
    res=224,
    batch_size=4096,
    epochs=1600,
    mask_ratio=0.75,
    norm_pix=True,
    data="",
    smoke=False,
  )
  c = common.base()
  c.method = "mae"
  if arg.smoke:
    return smoke(c, arg)

  c.total_examples = arg.epochs * IMAGENET
  c.model = dict(
    variant=arg.variant,
    pool="cls",
    pos_embed="sincos2d_moco",
    image_size=(arg.res, arg.res),
    gelu="exact",
    dtype="bfloat16",
    remat="none",
  )
  c.decoder = dict(
    width=512, depth=8, num_heads=16, mlp_dim=2048, gelu="exact", dtype="bfloat16", remat="none"
  )
  c.embed = "cls"
  c.loss = dict(mask_ratio=arg.mask_ratio, norm_pix=arg.norm_pix)
  data = arg.data or "imagenet2012"
  crop = f"random_resized_crop({arg.res}, area=(0.2, 1.0), method='bicubic')"
  c.input = dict(
    source=f"tfds(name='{data}', split='train')",
    pp=f"decode|{crop}|flip_lr|standardize|keep(image)",
    spec=dict(image=f"float32({arg.res}, {arg.res}, 3)"),
    batch_size=arg.batch_size,
  )
  c.optim = dict(
    name="adamw",
    lr=1.5e-4 * arg.batch_size / 256,
    b1=0.9,
    b2=0.95,
    weight_decay=0.05,
    schedule=dict(name="cosine", warmup_examples=40 * IMAGENET),
  )
  held_out = dict(
    source=f"tfds(name='{data}', split='validation')",
    pp=(
      f"decode|resize_small({round(arg.res * 8 / 7)})|central_crop({arg.res})|standardize"
      "|keep(image)"
    ),
    batch_size=arg.batch_size,
    every_percent=10,
  )
  c.evals.val = dict(type="loss", **held_out)
  c.evals.reconstruct = dict(type="reconstruct", **held_out)
  return c


def smoke(c, arg):
  """Minutes on two CPU cores."""
  if arg.data:
    files = "images='{0}/t10k-images-idx3-ubyte.gz', labels='{0}/t10k-labels-idx1-ubyte.gz'"
    files = files.format(arg.data)
    train, test = f"idx({files}, stop=8000)", f"idx({files}, start=8000)"
    size, patch = 32, 4
  else:
    train, test = "digits(split='train')", "digits(split='test')"
    size, patch = 12, 2
  place = f"random_place({size})|value_range(-1, 1)"
  c.total_steps = 1500
  c.model = dict(
    width=64,
    depth=3,
    mlp_dim=256,
    num_heads=4,
    patch_size=(patch, patch),
    image_size=(size, size),
    pool="cls",
    pos_embed="sincos2d_moco",
    gelu="exact",
    scan=False,
    dtype="float32",
  )
  c.decoder = dict(
    width=32, depth=1, num_heads=4, mlp_dim=128, gelu="exact", scan=False, dtype="float32"
  )
  c.embed = "gap"
  c.loss = dict(mask_ratio=0.5, norm_pix=False)
  c.input = dict(
    source=train,
    pp=f"{place}|keep(image)",
    spec=dict(image=f"float32({size}, {size}, 1)"),
    batch_size=128,
  )
  c.optim = dict(
    name="adamw",
    lr=3e-3,
    b1=0.9,
    b2=0.95,
    eps=1e-6,  # a bias of keys has no gradient: its rounding errors are not to become an update
    weight_decay=0.05,
    schedule=dict(name="cosine", warmup_steps=100),
  )
  c.checkpoint.every_steps = c.total_steps
  held_out = dict(source=test, batch_size=256, every_steps=750, initial=True)
  c.evals.probe = dict(
    type="linear_probe", source_train=train, pp=f"{place}|keep(image, label)", C=0.1, **held_out
  )
  held_out["pp"] = f"{place}|keep(image)"
  c.evals.reconstruct = dict(type="reconstruct", **held_out)
  c.evals.val = dict(type="loss", **held_out)
  return c
