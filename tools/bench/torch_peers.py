"""The peers of training steps: transformers' models of the same size, trained by PyTorch.

Eager or through `torch.compile`; SDPA attention, fused AdamW, bf16 by autocast on a GPU. Building
one without the extra `parity` raises ImportError, which `harness.compare` turns into a row.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

from tools.bench.harness import Run


def siglip(image: Any, text: Any, batch: int, *, bfloat16: bool = False) -> Callable[[bool], Run]:
  """`compile -> run`: a step of `SiglipModel` on random data; all runs share parameters.

  Args:
    image: a `vit.ViT` with attention pooling and a square image.
    text: a `text_transformer.TextTransformer`.
    batch: pairs in a step.
    bfloat16: autocast, else float32.
  """
  import torch
  import transformers

  device = _device(torch)
  size = lambda m: dict(
    hidden_size=m.width,
    intermediate_size=m.mlp_dim,
    num_hidden_layers=m.depth,
    num_attention_heads=m.num_heads,
  )
  config = transformers.SiglipConfig(
    vision_config=dict(
      image_size=image.image_size[0], patch_size=image.patch_size[0], **size(image)
    ),
    text_config=dict(
      vocab_size=text.vocab_size, max_position_embeddings=text.max_len, **size(text)
    ),
  )
  config._attn_implementation = "sdpa"
  model = transformers.SiglipModel(config).to(device).train()
  pixels = torch.randn(batch, 3, *image.image_size, device=device)
  tokens = torch.randint(text.vocab_size, (batch, text.max_len), device=device)
  loss = lambda: model(input_ids=tokens, pixel_values=pixels, return_loss=True).loss
  return _steps(model, loss, device, bfloat16)


def mae(
  encoder: Any, decoder: Any, mask_ratio: float, batch: int, *, bfloat16: bool = False
) -> Callable[[bool], Run]:
  """`compile -> run`: a step of `ViTMAEForPreTraining`, as in `siglip`.

  `encoder` is a `vit.ViT` with a class token, `decoder` a `mae_decoder.MaeDecoder`.
  """
  import torch
  import transformers

  device = _device(torch)
  config = transformers.ViTMAEConfig(
    image_size=encoder.image_size[0],
    patch_size=encoder.patch_size[0],
    hidden_size=encoder.width,
    intermediate_size=encoder.mlp_dim,
    num_hidden_layers=encoder.depth,
    num_attention_heads=encoder.num_heads,
    decoder_hidden_size=decoder.width,
    decoder_intermediate_size=decoder.mlp_dim,
    decoder_num_hidden_layers=decoder.depth,
    decoder_num_attention_heads=decoder.num_heads,
    mask_ratio=mask_ratio,
    norm_pix_loss=True,
  )
  config._attn_implementation = "sdpa"
  model = transformers.ViTMAEForPreTraining(config).to(device).train()
  pixels = torch.randn(batch, 3, *encoder.image_size, device=device)
  return _steps(model, lambda: model(pixels).loss, device, bfloat16)


def _device(torch: Any) -> str:
  os.environ["HF_HUB_OFFLINE"] = "1"
  torch.manual_seed(0)
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  if not torch.cuda.is_available():
    return "cpu"
  torch.set_float32_matmul_precision("high")  # what autocast leaves in f32 may use TF32
  return "cuda"


def _steps(model: Any, loss: Callable, device: str, bfloat16: bool) -> Callable[[bool], Run]:
  import torch

  adam = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)

  def forward():
    with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
      return loss()

  def run(forward):
    adam.zero_grad(set_to_none=True)
    value = forward()
    value.backward()
    adam.step()
    if device == "cuda":
      torch.cuda.synchronize()
    return float(value.detach())

  compiled = functools.cache(lambda: torch.compile(forward))
  return lambda compile: functools.partial(run, compiled() if compile else forward)


def peak_bytes() -> int | None:
  """Most bytes that torch held on the GPU since the last call, or None without one."""
  import torch

  if not torch.cuda.is_available():
    return None
  found = torch.cuda.max_memory_allocated()
  torch.cuda.reset_peak_memory_stats()
  return found
