"""Vision transformers of the DeiT and DINO line: small configs, and what the references give.

Encoders have no loss; theirs and ours is the mean square of tokens minus name-seeded ones.
"""

import numpy as np

from tests.parity import weights

VIT = dict(
  hidden_size=16,
  num_hidden_layers=2,
  num_attention_heads=2,
  intermediate_size=24,
  image_size=16,
  patch_size=4,
)
CLASSES = dict(num_labels=5)
DINO = dict({k: v for k, v in VIT.items() if k != "intermediate_size"}, layerscale_value=0.5)
REGISTERS = dict(DINO, model_type="dinov2_with_registers")


def _of(*architectures: str) -> dict[str, list[str]]:
  return {"architectures": list(architectures)}


CASES = {
  "deit": dict(
    VIT | _of("DeiTForImageClassificationWithTeacher") | CLASSES,
    model_type="deit",
    image_size=[8, 12],
  ),
  "deit_resized": dict(VIT | _of("DeiTForImageClassification") | CLASSES, model_type="deit"),
  "dinov2": dict(DINO | _of("Dinov2Model"), model_type="dinov2", mlp_ratio=2),
  "dinov2_swiglu": dict(
    DINO | _of("Dinov2ForImageClassification") | CLASSES,
    model_type="dinov2",
    mlp_ratio=3,
    use_swiglu_ffn=True,
    use_mask_token=False,
  ),
  "dinov2_registers": dict(REGISTERS | _of("Dinov2WithRegistersModel"), num_register_tokens=3),
  "dinov2_registers_swiglu": dict(
    REGISTERS | _of("Dinov2WithRegistersForImageClassification") | CLASSES,
    use_swiglu_ffn=True,
    qkv_bias=False,
  ),
  "dinov3": dict(
    VIT | _of("DINOv3ViTModel"),
    model_type="dinov3_vit",
    num_register_tokens=4,
    layerscale_value=0.5,
  ),
  "dinov3_swiglu": dict(
    VIT | _of("DINOv3ViTModel"),
    model_type="dinov3_vit",
    use_gated_mlp=True,
    hidden_act="silu",
    query_bias=False,
    value_bias=False,
  ),
  "ijepa": dict(VIT | _of("IJepaModel"), model_type="ijepa", image_size=[8, 12]),
  "ijepa_resized": dict(
    VIT | _of("IJepaForImageClassification") | CLASSES, model_type="ijepa", layer_norm_eps=1e-6
  ),
}
SIZES = {  # (height, width) of the input, where it is not the config's
  "deit_resized": (12, 20),
  "dinov2": (12, 20),
  "dinov2_registers": (20, 12),
  "dinov3": (12, 20),
  "ijepa_resized": (24, 8),
}
MASKED = ("dinov2", "dinov3")  # the mask token stands where some patches were
BATCH = 2


def inputs(name: str) -> dict[str, np.ndarray]:
  """`image` float32 [B, H, W, 3], `labels` [B], and bool `mask` [B, N] in some cases."""
  size = CASES[name]["image_size"]
  height, width = SIZES.get(name) or (size if isinstance(size, list) else (size, size))
  out = {"image": weights.image(BATCH, height, width, 3), "labels": np.arange(BATCH)}
  if name in MASKED:
    patch = CASES[name]["patch_size"]
    out["mask"] = weights.tensor("input/mask", (BATCH, height // patch * (width // patch))) > 0
  return out


def reference(name: str) -> dict[str, np.ndarray]:
  """Tokens (all, in their order), logits of classifiers, pooled of encoders; loss, gradient."""
  import torch

  from tests.parity import references

  config, given = CASES[name], inputs(name)
  model = references.load(config)
  kwargs = {"pixel_values": torch.tensor(given["image"]).permute(0, 3, 1, 2)}
  if "mask" in given:
    kwargs["bool_masked_pos"] = torch.tensor(given["mask"])
  if config["model_type"] in ("deit", "ijepa"):
    kwargs["interpolate_pos_encoding"] = name in SIZES
  got = model(**kwargs)
  tokens = (model.base_model(**kwargs) if "num_labels" in config else got).last_hidden_state
  out = {"tokens": tokens}
  if "num_labels" in config:
    out["logits"] = got.logits
    if "distillation_logits" in got:
      out["logits_dist"] = got.distillation_logits
    loss = torch.nn.functional.cross_entropy(got.logits, torch.tensor(given["labels"]))
  else:
    out["pooled"] = tokens.mean(1) if config["model_type"] == "ijepa" else got.pooler_output
    target = torch.tensor(weights.tensor("target", tuple(tokens.shape)))
    loss = ((tokens - target) ** 2).mean()
  loss.backward()
  grads = [p.grad for p in model.parameters() if p.grad is not None]
  out["grad_norm"] = torch.sqrt(sum((g.double() ** 2).sum() for g in grads))
  return {k: v.detach().float().numpy() for k, v in {**out, "loss": loss}.items()}
