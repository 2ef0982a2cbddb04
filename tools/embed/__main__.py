"""Embeddings by a trained model: python -m tools.embed --workdir W --input DIR --out X.parquet

--input is a folder of images, at any depth, or a source: "webdataset(...)", "digits()". The
preprocessing is that of the run's evaluations, see `reading.evaluation_pp`; `--pp` gives another.

Rows of --out, in the order of the input: index, path or key, label and text where the input has
them, and embedding (float32). An example that cannot be read is left out and listed, with its kind,
in OUT.bad.jsonl; more than --max-bad-fraction of them end it, as in training. The same command
again goes on where it was stopped: OUT.parts holds what is done.
"""

import argparse
import hashlib
import pathlib
from collections import Counter

import jax

from big_vision_like import cluster, step, train
from big_vision_like.compose import saved_config
from big_vision_like.config import run_main, unknown, whole_number, wrap
from big_vision_like.input.bad import check_fraction
from tools.embed import parts, reading, run


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--input", required=True, help="a folder of images, or a source")
  parser.add_argument("--out", required=True, type=pathlib.Path, help="X.parquet or X.npz")
  parser.add_argument("--step", type=int, help="a saved step; the newest by default")
  parser.add_argument("--predict", default="image_embed", help="e.g. text_embed")
  parser.add_argument("--pp", help="ops; those of the run's evaluation by default")
  parser.add_argument("--eval", help="whose ops; the first of config.evals by default")
  parser.add_argument("--key", default="", help="further columns of the source, by comma")
  parser.add_argument("--batch-size", type=int, default=256)
  parser.add_argument("--part-size", type=int, default=8192, help="examples a part of the work")
  parser.add_argument("--threads", type=int, default=8, help="that read and preprocess")
  parser.add_argument("--max-bad-fraction", type=float, default=0.01)
  args = parser.parse_args(argv)
  for name in ("batch_size", "part_size", "threads"):
    whole_number(getattr(args, name), f"--{name.replace('_', '-')}")
  check_fraction(args.max_bad_fraction, run.BAD)

  # What can be wrong without a model, first.
  parts.check_out(args.out)
  saved = saved_config(args.workdir)
  key = "text" if args.predict.startswith("text") else "image"
  pp = reading.evaluation_pp(saved, key, args.eval) if args.pp is None else args.pp
  loader = reading.Loader(args.input, pp)
  sample, raw = loader.sample()
  loader.columns = reading.kinds_of(raw, [k for k in args.key.split(",") if k])
  one = run.inputs(sample, pp, key if args.pp is None else None)
  cluster.start(wrap(saved).get("distributed", {}))

  _, method, state, mesh = train.restore(args.workdir, args.step)
  predict = step.jit_predict(method)
  if args.predict not in predict:
    raise unknown("--predict", args.predict, list(predict))
  fn = predict[args.predict]
  plan = parts.Plan(
    input=args.input,
    files=_digest(reading.names_of(loader.source)),
    examples=len(loader.source),
    workdir=str(pathlib.Path(args.workdir).resolve()),
    step=int(state.step),
    predict=args.predict,
    pp=pp,
    columns=loader.columns,
    size=run.size_of(fn, state, one, mesh, args.predict),
    part_size=args.part_size,
  )
  lead = jax.process_index() == 0
  work = parts.Parts(args.out, plan, lead)
  run.barrier("plan")
  if lead:
    print(f"step {plan.step}, {args.predict}, pp {pp!r}", flush=True)
  run.embed(
    *(loader, plan, work, fn, state, mesh),
    one=one,
    batch_size=args.batch_size,
    threads=args.threads,
    max_bad=args.max_bad_fraction,
  )
  run.barrier("embedded")
  if lead:
    count, bad = work.merge()
    print(f"{count:,} embeddings of {plan.size} numbers: {args.out}")
    if bad:
      kinds = ", ".join(f"{k} {n}" for k, n in Counter(b["kind"] for b in bad).most_common())
      print(f"{len(bad):,} left out ({kinds}): {args.out}.bad.jsonl")
  run.barrier("merged")
  return 0


def _digest(names: list[str] | None) -> str:
  """SHA-256 of names; nothing of a source, whose spec says it all."""
  return "" if names is None else hashlib.sha256("\0".join(map(repr, names)).encode()).hexdigest()


if __name__ == "__main__":
  run_main(main)
