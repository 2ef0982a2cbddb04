"""CoCa (arXiv:2205.01917), the 2.1 B model: g/18 at 288 px (256 patches), 64 tokens, batch 65,536.

Setting of Sec. 4.1: Adafactor (beta1 0.9, decoupled weight decay 0.01), learning rate 8e-4 after
2 % of warm-up, linear to zero, 500,000 steps, loss weights 1 and 2, temperature learned from 0.07,
a SentencePiece vocabulary of 64,000. Sizes and setting are recalled, not checked against the
paper's text; without the poolers the counts agree for variant=B/18 (published 383 M) and L/18
(787 M), and come to 2.24 B for g/18 (published 2.1 B). JFT-3B and ALIGN are private: `data=` names
any prepared TFDS set with `image` and `text`.

Command: python -m big_vision_like.train --config configs/coca.py --workdir DIR
Score: not yet run (needs a pod).

smoke: glyphs of the DejaVu fonts and their Unicode names. Retrieval among 2,057 names in a font
never trained on must beat its random initialisation (0.1 %); at best 95 % is possible, because some
letters look alike. Captions of 210 characters never trained on must beat the nearest training
image's caption, which cannot match exactly (0 %) but has a token F1 of 65.5 %.
Command: python -m big_vision_like.train --config configs/coca.py:smoke --workdir DIR
Score (seed 0): R@1 36.1 % image to text and 36.9 % text to image (R@10 87.3 and 88.5 %); captions
exact 11.0 %, token F1 66.8 %: in F1 little more than the nearest neighbour. 73 s on two CPU cores.

`smoke,data=FOLDER`: emoji and their names (pairs.tsv, twemoji72.zip, openmoji72.zip, noto72.zip in
FOLDER), tested on the drawings of Noto, a style never trained on. Score: not yet run.
"""

from configs import common


def get_config(arg=None):
  arg = common.parse_arg(
    arg, variant="g/18", res=288, batch_size=65_536, data="", impl="ring", smoke=False
  )
  c = common.base()
  c.method = "coca"
  if arg.smoke:
    return emoji(c, arg.data) if arg.data else smoke(c)

  c.total_steps = 500_000
  c.model = dict(
    variant=arg.variant,
    image=dict(image_size=(arg.res, arg.res), dtype="bfloat16", remat="dots_no_batch"),
    vocab_size=64_000,
    max_len=64,
    num_queries=256,
    temperature_init=1 / 0.07,
    dtype="bfloat16",
    remat="dots_no_batch",
  )
  c.loss = dict(impl=arg.impl, contrastive_weight=1.0, caption_weight=2.0)
  c.input = dict(
    source=f"tfds(name='{arg.data or 'align'}', split='train')",
    pp=(
      f"decode|resize({arg.res})|value_range(-1, 1)"
      "|tokenize(64, model='sentencepiece_64k.model')|keep(image, text)"
    ),
    spec=dict(image=f"float32({arg.res}, {arg.res}, 3)", text="int32(64)"),
    batch_size=arg.batch_size,
  )
  c.optim = dict(
    name="adafactor",
    lr=8e-4,
    weight_decay=0.01,
    clip_norm=1.0,
    schedule=dict(name="linear", warmup_percent=2.0),
  )
  return c


def small(c, *, image_size, patch_size, vocab_size, max_len):
  """A model that two CPU cores train in minutes."""
  c.model = dict(
    image=dict(
      width=64,
      depth=3,
      mlp_dim=256,
      num_heads=4,
      patch_size=(patch_size, patch_size),
      image_size=(image_size, image_size),
      scan=False,
      dtype="float32",
    ),
    width=64,
    unimodal_depth=1,
    multimodal_depth=2,
    mlp_dim=256,
    num_heads=4,
    vocab_size=vocab_size,
    max_len=max_len,
    num_queries=16,
    scan=False,  # unrolled compiles and runs faster at this depth
    dtype="float32",
  )
  c.loss = dict(impl="ring", contrastive_weight=1.0, caption_weight=2.0)
  c.optim = dict(
    name="adamw",
    lr=2e-3,
    b2=0.95,
    eps=1e-6,  # some gradients are rounding error at first: no step of full size for those
    weight_decay=0.1,
    clip_norm=1.0,
    schedule=dict(name="cosine", warmup_steps=100),
  )


def smoke(c):
  """Glyphs and their names: minutes on two CPU cores, fonts that ship with matplotlib."""
  scripts = "latin,greek,cyrillic,armenian,braille,box,arrows"
  source = lambda split, more="": f"glyphs(split='{split}', scripts='{scripts}'{more})"
  tokens = f"tokenize(16, model={'train:' + source('train')!r}, vocab_size=512)"
  image = "value_range(-1, 1)"
  c.total_steps = 1000
  small(c, image_size=32, patch_size=8, vocab_size=512, max_len=16)
  c.input = dict(
    source=source("train"),
    pp=f"{image}|{tokens}|keep(image, text)",
    spec=dict(image="float32(32, 32, 1)", text="int32(16)"),
    batch_size=128,
  )
  c.checkpoint.every_steps = 500
  held_out = source("test_characters", ", fonts='Sans'")
  evaluate(c, image, tokens, source("train"), source("test_font"), held_out)
  return c


def emoji(c, folder):
  """Emoji and their English names in `folder`; Noto's drawings of them are never trained on."""
  styles = dict(twemoji="twemoji72.zip", openmoji="openmoji72.zip", noto="noto72.zip")

  def source(*names):
    return (
      f"zip_table(images={tuple(f'{folder}/{styles[n]}' for n in names)}, image={names}, "
      f"table='{folder}/pairs.tsv', text='name_en', where='skintone=,twemoji!=,openmoji!=')"
    )

  train, test = source("twemoji", "openmoji"), source("noto")
  tokens = f"lower|tokenize(20, model={'train:' + train!r}, vocab_size=1000)"
  c.total_steps = 1500
  small(c, image_size=32, patch_size=4, vocab_size=1000, max_len=20)
  c.input = dict(
    source=train,
    pp=f"decode|resize(36)|random_crop(32)|value_range(-1, 1)|{tokens}|keep(image, text)",
    spec=dict(image="float32(32, 32, 3)", text="int32(20)"),
    batch_size=128,
  )
  c.checkpoint.every_steps = 500
  image = "decode|resize(36)|central_crop(32)|value_range(-1, 1)"
  evaluate(c, image, tokens, train, test, test)
  return c


def evaluate(c, image, tokens, train, retrieval, caption):
  """Retrieval by name, and captions beside the nearest training image's."""
  often = dict(every_steps=c.total_steps, initial=True, batch_size=256)
  c.evals["retrieval"] = dict(
    type="retrieval", source=retrieval, pp=f"{image}|{tokens}|keep(image, text)", **often
  )
  c.evals["caption"] = dict(
    type="caption",
    source=caption,
    source_train=train,
    pp=f"{image}|lower|keep(image, text)",
    tokenizer=tokens,
    **often,
  )
