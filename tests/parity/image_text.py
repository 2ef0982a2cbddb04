"""NaFlex, open_clip, timm, and CLIP and SigLIP at another size of image and length of text.

`transformers` gives the cases with a `model_type`, timm and open_clip the others; all are extra
`parity`. Weights are those of `weights` by their names, loaded strictly.
"""

from typing import Any

import numpy as np

from tests.parity import weights

BATCH = 4
TEXT = dict(
  hidden_size=32,
  num_hidden_layers=2,
  num_attention_heads=4,
  intermediate_size=48,
  vocab_size=50,
  max_position_embeddings=8,
)
VISION = {k: TEXT[k] for k in list(TEXT)[:4]} | dict(num_channels=3, patch_size=4)
PLAIN = dict(hidden_act="gelu", layer_norm_eps=1e-5)
CLIP = dict(layers=2, width=32, head_width=8, mlp_ratio=1.5, patch_size=8, image_size=[16, 24])
CLIP_TEXT = dict(context_length=8, vocab_size=50, width=24, heads=3, layers=2, mlp_ratio=2.0)
TIMM = dict(embed_dim=32, depth=2, num_heads=4, mlp_ratio=1.5, patch_size=8, img_size=[16, 24])


def _hf(kind: str, text: dict, vision: dict, **more: Any) -> dict[str, Any]:
  return dict(model_type=kind, text_config=TEXT | text, vision_config=VISION | vision, **more)


def _timm(architecture: str, classes: int, **more: Any) -> dict[str, Any]:
  return dict(architecture=architecture, num_classes=classes, model_args=TIMM | more)


# The config in their words, and what is fed: `size` of the image or the `grids` of patches in it,
# `length` of the text, `pad`: the id that an attention mask hides, `end`: a first end of text.
CASES: dict[str, dict[str, Any]] = {
  "siglip2": dict(
    config=_hf("siglip2", dict(projection_size=32), dict(num_patches=16)),
    grids=[[2, 4], [3, 3], [4, 3], [1, 5]],
    length=8,
  ),
  "siglip2_wide": dict(
    config=_hf(
      "siglip2",
      dict(projection_size=48, **PLAIN),
      dict(num_patches=9, hidden_size=48, patch_size=2, **PLAIN),
    ),
    grids=[[5, 2], [2, 6], [7, 2], [1, 1]],
    length=5,
  ),
  "siglip_resized": dict(
    config=_hf(
      "siglip", dict(projection_size=48, **PLAIN), dict(hidden_size=48, image_size=16, **PLAIN)
    ),
    size=(12, 24),
    length=8,
  ),
  "siglip_padded": dict(
    config=_hf("siglip", dict(projection_size=32), dict(image_size=16)),
    size=(24, 8),
    length=6,
    pad=1,
  ),
  "clip_resized": dict(
    config=_hf("clip", dict(eos_token_id=49), dict(image_size=16), projection_dim=24),
    size=(12, 24),
    length=6,
  ),
  "clip_padded": dict(
    config=_hf(
      "clip", dict(eos_token_id=7, **PLAIN), dict(image_size=16, **PLAIN), projection_dim=16
    ),
    size=(24, 20),
    length=8,
    pad=1,
    end=7,
  ),
  "open_clip": dict(
    config=dict(model_cfg=dict(embed_dim=16, quick_gelu=True, vision_cfg=CLIP, text_cfg=CLIP_TEXT)),
    size=(16, 24),
    length=8,
  ),
  "open_clip_avg": dict(  # CLIPA
    config=dict(
      model_cfg=dict(
        embed_dim=16,
        vision_cfg=CLIP | dict(no_ln_pre=True, pool_type="avg", final_ln_after_pool=True),
        text_cfg=CLIP_TEXT | dict(no_causal_mask=True, pool_type="eos", eos_id=7),
        nonscalar_logit_scale=True,
      )
    ),
    size=(16, 24),
    length=8,
    end=7,
  ),
  "open_clip_siglip": dict(
    config=dict(
      model_cfg=dict(
        embed_dim=192,
        init_logit_bias=-10,
        custom_text=True,
        vision_cfg=dict(
          image_size=32,
          timm_model_name="vit_tiny_patch16_siglip_32",
          timm_pool="map",
          timm_proj="none",
        ),
        text_cfg=CLIP_TEXT
        | dict(no_causal_mask=True, proj_bias=True, pool_type="last", width=24)
        | dict(norm_kwargs={"eps": 1e-6}, act_kwargs={"approximate": "tanh"}),
      )
    ),
    size=(32, 32),
    length=8,
  ),
  "timm": dict(config=_timm("vit_base_patch16_224", 5), size=(16, 24)),
  "timm_clip": dict(
    config=_timm("vit_base_patch16_clip_quickgelu_224", 6, patch_size=[8, 4]), size=(16, 24)
  ),
  "timm_reg_gap": dict(config=_timm("vit_base_patch16_reg4_gap_256", 5), size=(16, 24)),
  "timm_avg": dict(config=_timm("vit_base_patch16_224", 0, global_pool="avg"), size=(16, 24)),
  "timm_siglip": dict(
    config=_timm("vit_base_patch16_siglip_224", 0, act_layer="gelu_tanh"), size=(16, 24)
  ),
  "timm_resized": dict(
    config=_timm("vit_base_patch16_224", 4, dynamic_img_size=True, patch_size=4), size=(24, 12)
  ),
}

CASES |= {  # that need layer scale, no biases, a distillation token, a gated MLP
  "timm_deit3": dict(config=_timm("deit3_base_patch16_224", 5), size=(16, 24)),
  "timm_medium": dict(config=_timm("vit_medium_patch16_gap_240", 5), size=(16, 24)),
  "timm_distilled": dict(config=_timm("deit_base_distilled_patch16_224", 5), size=(16, 24)),
  "timm_swiglu": dict(
    config=_timm("vit_giant_patch14_reg4_dinov2", 0, global_pool="token"), size=(16, 24)
  ),
  "open_clip_scale": dict(
    config=dict(
      model_cfg=dict(
        embed_dim=16,
        vision_cfg=CLIP | dict(ls_init_value=0.1),
        text_cfg=CLIP_TEXT,
      )
    ),
    size=(16, 24),
    length=8,
  ),
}


def kind(name: str) -> str:
  """Of the family: model_type, open_clip or timm."""
  config = CASES[name]["config"]
  return config.get("model_type") or ("timm" if "architecture" in config else "open_clip")


def batch(name: str) -> dict[str, np.ndarray]:
  """image [B, H, W, 3], or what op `patchify_native` writes; maybe text int32 [B, L]."""
  case = CASES[name]
  config, out = case["config"], {}
  if "grids" in case:
    grids = np.array(case["grids"], np.int32)
    length = int(grids.prod(1).max()) + 1  # at least one of padding, which is noise here
    index = np.arange(length)[None]
    mask = index < grids.prod(1)[:, None]
    positions = np.stack(np.divmod(index, grids[:, 1:]), -1) * mask[..., None]
    side = config["vision_config"]["patch_size"]
    out["patches"] = weights.image(BATCH, length, side * side * 3)
    out |= dict(patch_mask=mask, patch_positions=positions.astype(np.int32), patch_grid=grids)
  else:
    out["image"] = weights.image(BATCH, *case["size"], 3)
  if "length" in case:
    cfg = config.get("model_cfg", config)
    vocab = cfg.get("text_cfg", cfg.get("text_config"))["vocab_size"]
    text = weights.tokens(BATCH, case["length"], vocab, None if "end" in case else vocab - 1)
    after = np.arange(case["length"]) - 2 - np.arange(BATCH)[:, None]
    if "end" in case:
      text = np.where(after == 0, case["end"], np.where(text == case["end"], 8, text))
    if "pad" in case:
      text = np.where(text == case["pad"], 9, text)
      text = np.where(after > 0, case["pad"], text)
    out["text"] = text.astype(np.int32)
  return out


def reference(name: str) -> dict[str, np.ndarray]:
  """Outputs, loss and the norm of its gradient: of theirs, or of the mean of squared outputs."""
  import torch

  run = {"timm": _run_timm, "open_clip": _run_open_clip}.get(kind(name), _run_hf)
  model, out = run(name, {k: torch.tensor(v) for k, v in batch(name).items()})
  out["loss"].backward()
  grads = [p.grad for p in model.parameters() if p.grad is not None]
  out["grad_norm"] = torch.sqrt(sum((g.double() ** 2).sum() for g in grads))
  return {k: v.detach().float().numpy() for k, v in out.items()}


def _fill(model):
  import torch

  named = {
    k: torch.tensor(weights.tensor(k, tuple(v.shape))) for k, v in model.state_dict().items()
  }
  model.load_state_dict(named, strict=True)
  return model.eval()


def _run_hf(name: str, data: dict):
  from tests.parity import references

  case = CASES[name]
  model = references.load(case["config"])
  kwargs = dict(input_ids=data["text"].long(), return_loss=True)
  if "pad" in case:
    kwargs["attention_mask"] = (data["text"] != case["pad"]).long()
  if "image" in data:
    kwargs |= dict(pixel_values=data["image"].permute(0, 3, 1, 2), interpolate_pos_encoding=True)
  else:
    kwargs |= dict(pixel_values=data["patches"], spatial_shapes=data["patch_grid"].long())
    kwargs["pixel_attention_mask"] = data["patch_mask"].long()
  got = model(**kwargs)
  return model, dict(image=got.image_embeds, text=got.text_embeds, loss=got.loss)


def _run_timm(name: str, data: dict):
  import timm

  config = CASES[name]["config"]
  args = dict(num_classes=config["num_classes"], **config["model_args"])
  model = _fill(timm.create_model(config["architecture"], **args))
  out = model(data["image"].permute(0, 3, 1, 2))
  return model, dict(logits=out, loss=(out**2).mean())


def _run_open_clip(name: str, data: dict):
  import open_clip
  import timm
  from open_clip.loss import SigLipLoss
  from timm.models.vision_transformer import VisionTransformer

  def vit_tiny_patch16_siglip_32(pretrained=False, **kwargs):
    kwargs = {k: v for k, v in kwargs.items() if k in ("num_classes", "global_pool")}
    return VisionTransformer(32, 16, embed_dim=192, num_heads=3, class_token=False, **kwargs)

  if "vit_tiny_patch16_siglip_32" not in timm.list_models():
    timm.models.register_model(vit_tiny_patch16_siglip_32)
  cfg = dict(CASES[name]["config"]["model_cfg"])
  cls = open_clip.CustomTextCLIP if cfg.pop("custom_text", False) else open_clip.CLIP
  model = _fill(cls(**cfg))
  image, text, scale, *bias = model(data["image"].permute(0, 3, 1, 2), data["text"].long())
  loss = SigLipLoss() if bias else open_clip.ClipLoss()
  return model, dict(image=image, text=text, loss=loss(image, text, scale, *bias))
