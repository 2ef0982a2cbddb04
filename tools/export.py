"""Checkpoints out: python -m tools.export --workdir DIR --format FORMAT --out DIR

`params.safetensors` or `params.npz` hold the weights that `predict` runs on, by path: with frozen
parts, LoRA merged, averaged where `config.ema` asks for it; `<predict>.stablehlo` a function
of the batch with the parameters baked in, for any batch size unless a line says otherwise.
`config.json` goes with them. `hf` is a folder that `transformers` loads, with a `config.json` of
its own, for the methods of `tools/huggingface.py`.
"""

import argparse
import pathlib

import jax
import numpy as np

from big_vision_like import train, tree
from big_vision_like.config import UserError, run_main, unknown
from big_vision_like.interop import files, stablehlo
from tools import huggingface

FORMATS = ("safetensors", "npz", "stablehlo", "hf")


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--format", required=True, choices=FORMATS)
  parser.add_argument("--out", required=True, type=pathlib.Path)
  parser.add_argument("--step", type=int, help="a saved step; the newest by default")
  parser.add_argument("--predict", help="stablehlo: which functions, by comma; all by default")
  args = parser.parse_args(argv)
  if args.predict and args.format != "stablehlo":
    raise UserError(f"--predict is for --format stablehlo; {args.format} holds the parameters")
  config, method, state, _ = train.restore(args.workdir, args.step)

  if args.format == "stablehlo":
    names = args.predict.split(",") if args.predict else list(method.predict)
    state = jax.device_get(state)
    spec = train.batch_spec(config.input)
    for name in names:
      if name not in method.predict:
        raise unknown("--predict", name, list(method.predict))
    for name in names:
      file = args.out / f"{name}.stablehlo"
      is_open = _export(file, method.predict[name], state, spec)
      print(file if is_open else f"{file} (batch size {config.input.batch_size} only)")
  else:
    params = jax.device_get(jax.jit(method.merge)(state.params, state.aux))
    if args.format == "hf":
      huggingface.save(args.out, config, params, state.aux)
      print(args.out)
      return 0
    arrays = {k: np.asarray(v) for k, v in tree.flatten(params).items()}
    file = args.out / f"params.{args.format}"
    {"safetensors": files.save_safetensors, "npz": files.save_npz}[args.format](file, arrays)
    print(file)
  files.write(args.out / "config.json", (pathlib.Path(args.workdir) / "config.json").read_bytes())
  return 0


def _export(file: pathlib.Path, predict, state, spec) -> bool:
  """Only what the function reads becomes an argument: the keys whose absence is an error.

  Returns whether the batch size was left open.
  """
  needed = dict(spec)
  for key in list(spec):
    rest = {k: v for k, v in needed.items() if k != key}
    try:
      jax.eval_shape(lambda b: predict(state.params, state.aux, b, None), rest)
      needed = rest
    except KeyError:
      continue
  if not needed:
    raise UserError(f"{file.stem} reads nothing of {', '.join(spec)}; it cannot be exported")
  return stablehlo.save(file, lambda batch: predict(state.params, state.aux, batch, None), needed)


if __name__ == "__main__":
  run_main(main)
