"""Data sets from any source into shards with checksums:

    python -m tools.convert_data --from "image_folder('photos')" --to webdataset --out DIR

`--to arrayrecord`, `webdataset` or `tfds` (which `tfds.builder_from_directory` opens). Run again
after a crash, it writes the shards that are missing or damaged, and the same bytes as in one go.
Bad examples are left out, counted by kind in `SPLIT.manifest.jsonl`, and fatal when many.
"""

import argparse
import logging
import pathlib
import re

from big_vision_like.config import UserError, parse_spec, run_main, whole_number
from big_vision_like.input.bad import check_fraction
from tools.convert_data import convert, manifest

FORMATS = ("arrayrecord", "webdataset", "tfds")


def main(argv: list[str] | None = None) -> int:
  """The command line; returns the exit code: 1 where --verify finds damage."""
  parser = argparse.ArgumentParser(
    prog="python -m tools.convert_data",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--from", dest="source", metavar="SOURCE", help="e.g. \"digits(split='train')\"")
  add("--to", choices=FORMATS)
  add("--out", required=True, type=pathlib.Path, metavar="DIR")
  add("--name", help="of the data set, in file names; that of the source by default")
  add("--split", default="train", help="which split these examples are (train)")
  add("--pp", default="", metavar="OPS", help="ops before they are written, e.g. 'drop(text)'")
  size = parser.add_mutually_exclusive_group()
  size.add_argument("--shards", type=int, metavar="N", help="how many")
  size.add_argument(
    "--shard-mb", type=float, default=256, metavar="MB", help="about how large, in MiB (256)"
  )
  add("--workers", type=int, default=0, metavar="W", help="processes; threads where 0 (0)")
  add("--max-bad-fraction", type=float, default=0.01, metavar="F", help="more is fatal (0.01)")
  add("--verify", action="store_true", help="only compare DIR with its checksums")
  args = parser.parse_args(argv)
  logging.basicConfig(level=logging.WARNING, format="%(message)s")
  logging.getLogger("absl").setLevel(logging.ERROR)
  return _verify(args.out) if args.verify else _convert(args)


def _verify(out: pathlib.Path) -> int:
  found = manifest.verify(out)
  for text in found:
    print(text)
  if found:
    print("damaged: the same conversion again writes these shards anew")
    return 1
  print(f"{out}: all shards are as they were written")
  return 0


def _convert(args: argparse.Namespace) -> int:
  for flag, value in (("--from", args.source), ("--to", args.to)):
    if not value:
      raise UserError(f"{flag} is missing; --from SOURCE --to FORMAT --out DIR, or --verify")
  whole_number(args.workers, "--workers", 0)
  if args.shards is not None:
    whole_number(args.shards, "--shards")
  if not args.shard_mb > 0:
    raise UserError(f"--shard-mb = {args.shard_mb}; expected a number above 0")
  check_fraction(args.max_bad_fraction, convert.BAD)
  name = args.name or "_".join(call.name for call in parse_spec(args.source, "--from"))
  for flag, value in (("--name", name), ("--split", args.split)):
    if not re.fullmatch(r"[a-z][a-z0-9_]*", value):  # what TFDS takes
      raise UserError(f"{flag} = {value!r}; expected lower-case letters, digits and _")
  try:
    args.out.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise UserError(f"--out {args.out} cannot be made: {e.strerror}") from None
  plan = convert.make_plan(
    args.source,
    args.to,
    args.out,
    name=name,
    split=args.split,
    pp=args.pp,
    shards=args.shards,
    shard_mb=args.shard_mb,
  )
  done = convert.convert(plan, args.out, workers=args.workers, max_bad=args.max_bad_fraction)
  rows = done.shards.values()
  size = sum(row["bytes"] for row in rows) / 2**20
  print(f"{sum(r['examples'] for r in rows):,} examples, {len(rows)} shards, {size:,.1f} MiB")
  print(f"config.input.source = {_source(plan, args.out)}")
  return 0


def _source(plan: manifest.Plan, out: pathlib.Path) -> str:
  """The spec that reads what was written."""
  return {
    "tfds": f"\"tfds('{out}', split='{plan.split}')\"",
    "webdataset": f"\"webdataset('{out}/{plan.name}-{plan.split}-*.tar')\"",
    "arrayrecord": f"\"array_record('{out}/{plan.name}-{plan.split}-*.array_record')\"",
  }[plan.to]


if __name__ == "__main__":
  run_main(main)
