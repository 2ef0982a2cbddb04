"""CLIP (arXiv:2103.00020), ViT-B/32 at 224 px, 77 tokens, batch 32,768, 32 epochs of 400M pairs.

Optimiser (Tables 18 and 19): Adam with decoupled weight decay 0.2 on all weights but gains and
biases, beta 0.9 and 0.98, epsilon 1e-6, learning rate 5e-4, 2,000 steps of warm-up, cosine to zero;
temperature from 1 / 0.07, kept at or below 100. The data (WIT) is private: `data=` names any
prepared TFDS set with `image` and `text`.

151,277,313 parameters, as OpenAI's ViT-B/32. `model=clip:PATH` names CLIP's vocabulary, the file
bpe_simple_vocab_16e6.txt.gz; the text is read where the id is highest, at its end.

Command: python -m big_vision_like.train --config configs/clip.py --workdir DIR
Score: not yet run (needs a pod).

smoke: as configs/siglip.py:smoke, two real digits side by side and captions such as "three left of
seven"; 20 of the 100 ordered pairs and a fixed fifth of the scans are never trained on. To beat:
the random initialisation (about 1 %); to reach: 95 % on seen and 90 % on never-trained pairs.
Command: python -m big_vision_like.train --config configs/clip.py:smoke --workdir DIR
Score (seed 0): 100-way zero-shot accuracy on held-out scans 97.5 % for seen pairs, 97.1 % for
never-trained pairs (untrained: 1.3 % and 0.0 %); 31 s on two CPU cores.
"""

from configs import common


def get_config(arg=None):
  arg = common.parse_arg(
    arg,
    variant="B/32",
    res=224,
    batch_size=32_768,
    data="wit",
    model="clip:bpe_simple_vocab_16e6.txt.gz",
    impl="ring",
    smoke=False,
  )
  c = common.base()
  c.method = "clip"
  if arg.smoke:
    return smoke(c)

  c.total_examples = 12_800_000_000
  c.model = dict(
    image=dict(
      variant=arg.variant,
      pool="cls",
      pos_embed="learn",
      cls_pos=True,
      image_size=(arg.res, arg.res),
      pre_norm=True,
      patch_bias=False,
      head_bias=False,
      gelu="quick",
      eps=1e-5,
      dtype="bfloat16",
      remat="dots_no_batch",
    ),
    text=dict(
      width=512,
      depth=12,
      mlp_dim=2048,
      num_heads=8,
      vocab_size=49_408,
      max_len=77,
      pool="argmax",
      causal=True,
      head_bias=False,
      gelu="quick",
      eps=1e-5,
      dtype="bfloat16",
      remat="dots_no_batch",
    ),
    embed_dim=512,
    temperature_init=1 / 0.07,
    bias_init=None,
  )
  c.loss = dict(impl=arg.impl)
  c.input = dict(
    source=f"tfds(name='{arg.data}', split='train')",
    pp=(
      f"decode|resize_small({arg.res})|random_crop({arg.res})|value_range(-1, 1)"
      f"|tokenize(77, model='{arg.model}')|keep(image, text)"
    ),
    spec=dict(image=f"float32({arg.res}, {arg.res}, 3)", text="int32(77)"),
    batch_size=arg.batch_size,
  )
  c.optim = dict(
    name="adamw",
    lr=5e-4,
    b1=0.9,
    b2=0.98,
    eps=1e-6,
    weight_decay=0.2,
    wd_mask=("kernel", "embedding", "pos_embed", "cls"),
    schedule=dict(name="cosine", warmup_steps=2000),
    project=[("logit_scale", "clip(0.0, 4.6052)")],
  )
  return c


def smoke(c):
  """Minutes on two CPU cores, data that ships with scikit-learn."""
  tokens = "tokenize(12, model='train:digit_pairs', vocab_size=96)"
  image = "value_range(-1, 1)"
  tower = dict(width=64, mlp_dim=256, num_heads=4, scan=False, gelu="quick", dtype="float32")
  c.total_steps = 1600
  c.model = dict(
    image=dict(
      depth=3,
      patch_size=(8, 8),
      pool="gap",
      pos_embed="learn",
      image_size=(8, 16),
      pre_norm=True,
      patch_bias=False,
      head_bias=False,
      **tower,
    ),
    text=dict(
      depth=2, vocab_size=96, max_len=12, pool="last", causal=True, head_bias=False, **tower
    ),
    embed_dim=64,
    temperature_init=1 / 0.07,
    bias_init=None,
  )
  c.loss = dict(impl="ring")
  c.input = dict(
    source="digit_pairs(split='train')",
    pp=f"{image}|{tokens}|keep(image, text)",
    spec=dict(image="float32(8, 16, 1)", text="int32(12)"),
    batch_size=128,
  )
  c.optim = dict(
    name="adamw",
    lr=1e-3,
    b2=0.98,
    weight_decay=0.2,
    clip_norm=1.0,
    schedule=dict(name="cosine", warmup_steps=100),
    project=[("logit_scale", "clip(0.0, 4.6052)")],
  )
  c.checkpoint.every_steps = 800
  c.evals = common.digit_pairs_evals(image, tokens, 800, initial=True)
  return c
