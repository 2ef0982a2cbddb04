"""Runs the reference implementations: needs the extra `parity` (torch, transformers), no network.

    python -m tests.parity.references          # compares with the files beside this one
    python -m tests.parity.references --write  # writes them; names of cases limit it to those

Each reference is loaded from a folder of safetensors with the names of `interop`, by its own
`from_pretrained`, which must neither miss nor drop a tensor.
"""

import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable

import numpy as np

from big_vision_like.config import modules
from big_vision_like.interop import families
from tests import parity
from tests.parity import cases, weights

FOLDER = pathlib.Path(__file__).parent / "outputs"
CLASSES = {
  "vit": "ViTForImageClassification",
  "vit_mae": "ViTMAEForPreTraining",
  "siglip": "SiglipModel",
  "siglip2": "Siglip2Model",
  "clip": "CLIPModel",
  "resnet": "ResNetForImageClassification",
}


def load(config: dict):
  """The reference with weights by name."""
  os.environ["HF_HUB_OFFLINE"] = "1"
  import torch
  import transformers
  from safetensors.numpy import load_file, save_file

  torch.set_grad_enabled(True)
  config = {**config}
  cls = getattr(transformers, families.architecture(config, CLASSES.get(config["model_type"])))
  hf = transformers.AutoConfig.for_model(**config)
  with tempfile.TemporaryDirectory() as folder:
    cls(hf).save_pretrained(folder)  # the names and shapes that published files have
    file = f"{folder}/model.safetensors"
    # Fixed tables as published files have them: some versions of the reference start from others.
    tables = families.family(config).constants(hf.to_dict())
    named = {
      k: v if k.endswith("num_batches_tracked") else tables.get(k, weights.tensor(k, v.shape))
      for k, v in load_file(file).items()
    }
    assert not tables.keys() - named.keys()
    save_file(named, file, metadata={"format": "pt"})
    model, info = cls.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    problems = {k: v for k, v in info.items() if v}
    assert not problems, problems
  return model.eval()


def run(name: str) -> dict[str, np.ndarray]:
  """Outputs, loss and a few gradients of the case."""
  import torch

  config = cases.CONFIGS[name]
  model, kind = load(config), config["model_type"]
  vision = config.get("vision_config", config)
  size = vision.get("image_size", 32)
  height, width = size if isinstance(size, list) else (size, size)
  image = weights.image(cases.BATCH, height, width, 3)
  pixels = torch.tensor(image).permute(0, 3, 1, 2)
  out = {}
  if kind in ("vit", "resnet"):
    labels = torch.arange(cases.BATCH) % config["num_labels"]
    got = model(pixels, labels=labels)
    out["logits"], loss = got.logits, got.loss
  elif kind == "vit_mae":
    patch = config["patch_size"]
    noise = weights.tensor("input/noise", (cases.BATCH, height // patch * (width // patch)))
    got = model(pixels, noise=torch.tensor(noise))
    out["logits"], loss = got.logits, got.loss
  else:
    text = config["text_config"]
    end = text.get("eos_token_id")
    ids = weights.tokens(cases.BATCH, text["max_position_embeddings"], text["vocab_size"], end)
    got = model(input_ids=torch.tensor(ids).long(), pixel_values=pixels, return_loss=True)
    out["image"], out["text"], loss = got.image_embeds, got.text_embeds, got.loss
  loss.backward()
  out["loss"] = loss
  # Fixed tables are parameters there, some with a gradient that their training throws away.
  fixed = families.family(config).constants(model.config.to_dict())
  grads = [p.grad for k, p in model.named_parameters() if p.grad is not None and k not in fixed]
  out["grad_norm"] = torch.sqrt(sum((g.double() ** 2).sum() for g in grads))
  return {k: v.detach().float().numpy() for k, v in out.items()}


def groups() -> dict[str, Callable[[str], dict[str, np.ndarray]]]:
  """Name of a case -> what gives its outputs: those here, and those of files that have `CASES`."""
  out = dict.fromkeys(cases.CONFIGS, run)
  for module in modules(parity.__name__, parity.__path__):
    out |= dict.fromkeys(getattr(module, "CASES", ()), getattr(module, "reference", None))
  return out


def main() -> int:
  """Writes or compares; returns 1 where a stored file is not reproduced."""
  write, code = "--write" in sys.argv, 0
  FOLDER.mkdir(exist_ok=True)
  only = [a for a in sys.argv[1:] if a != "--write"]
  for name, reference in groups().items():
    if only and name not in only:
      continue
    got, file = reference(name), FOLDER / f"{name}.json"
    if write:
      file.write_text(json.dumps({k: v.astype(float).round(8).tolist() for k, v in got.items()}))
    stored = json.loads(file.read_text())
    worst = max(
      float(np.abs(v - np.asarray(stored[k])).max() / max(np.abs(v).max(), 1e-6))
      for k, v in got.items()
    )
    print(f"{name}: {len(got)} outputs, largest relative difference from the file {worst:.1e}")
    code |= worst > 1e-4
  return int(code)


if __name__ == "__main__":
  sys.exit(main())
