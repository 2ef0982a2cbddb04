"""Checkpoints from one form to another: python -m tools.convert --from X --to FORMAT --out DIR

X is a Hugging Face folder, big_vision's FILE.npz, or FILE.safetensors or FILE.npz under our names
with the `config.json` beside it that says what they are. FORMAT:

    safetensors, npz    our names: DIR/params.safetensors or .npz, and the config of the model
    hf                  DIR/config.json and model.safetensors, which `transformers` loads
    big_vision          DIR/params.npz under big_vision's names

Every tensor is used exactly once, or an error names them. A workdir goes out by `tools.export`.
"""

import argparse
import pathlib

from big_vision_like.config import UserError, run_main, wrap
from big_vision_like.interop import build, files, foreign, huggingface
from tools import huggingface as runs

FORMATS = ("hf", "npz", "safetensors", "big_vision")
TO_HF = {"big_vision_vit": "vit", "big_vision_two_towers": "siglip"}
TO_BIG_VISION = {"vit": "big_vision_vit", "siglip": "big_vision_two_towers"}


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--from", required=True, dest="source", help="a folder or a file")
  parser.add_argument("--to", required=True, choices=FORMATS)
  parser.add_argument("--out", required=True, type=pathlib.Path)
  args = parser.parse_args(argv)
  source = foreign.read(args.source)
  if source is None:
    raise UserError(
      f"--from {args.source} is no Hugging Face folder, npz or safetensors file; "
      "of a workdir, see python -m tools.export"
    )
  convert(source, args.to, args.out)
  print(args.out)
  return 0


def convert(source: foreign.Source, to: str, out: pathlib.Path) -> None:
  """Writes `source` as `to` into the folder `out`.

  Raises:
    UserError: a model that `to` cannot hold, or arrays under our names without their config.
  """
  if to in ("npz", "safetensors"):
    save = files.save_npz if to == "npz" else files.save_safetensors
    save(out / f"params.{to}", source.arrays)
    files.write_json(out / "config.json", source.config)
    return
  hf, variables = dict(source.config), foreign.nested(source)
  if to == "hf" and "model_type" not in hf:
    if "method" not in hf:
      raise UserError("--to hf: no config.json beside the file says which model this is")
    return runs.save(out, wrap(hf), variables, {})
  kind = hf.get("model_type", "")
  if to == "big_vision" and not kind:
    raise UserError("--to big_vision: no config.json beside the file has a model_type")
  goal = (TO_HF if to == "hf" else TO_BIG_VISION).get(kind, kind)
  tensors = build.theirs(hf, variables)
  if goal != kind:
    hf, tensors = build.export(goal, build.make(hf, tensors), variables)
  if to == "hf":
    return huggingface.write(out, hf, tensors)
  if not goal.startswith("big_vision"):
    raise UserError(f"--to big_vision: it has no {goal}; expected {', '.join(TO_BIG_VISION)}")
  files.save_npz(out / "params.npz", tensors)


if __name__ == "__main__":
  run_main(main)
