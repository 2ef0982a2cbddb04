"""A contact sheet of what a config trains on, after all its ops:

    python -m tools.show_input --config configs/NAME.py[:args] [--config.a.b=1 ...]
        [--count 32] [--batch K] [--out DIR]

`index.html` (one file, everything in it) and `sheet.png` in DIR (`input_sheet`), of the first
examples of batch K of the very stream that train reads; `config.augment` is applied too.
"""

import base64
import math
import pathlib
import sys
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from ml_collections import config_flags

from big_vision_like import augment, metrics
from big_vision_like.config import Config, parse_flags, run_main, whole_number, wrap
from big_vision_like.input import pipeline
from big_vision_like.input.reader import Part, Reader
from big_vision_like.interop import files
from tools.show_input import examples, sheet


class Section(NamedTuple):
  """One of a step's batches."""

  name: str
  first: int
  parts: list[tuple[str, Part]]
  augment: str
  bad: tuple
  examples: list[examples.Shown]


def main(argv: list[str] | None = None) -> int:
  """The command line; returns the exit code."""
  argv, values = argv or sys.argv, flags.FlagValues()
  # Overrides are looked for where it is told.
  config_flags.DEFINE_config_file("config", None, "FILE.py:args", flag_values=values, sys_argv=argv)
  flags.DEFINE_integer("count", 32, "examples of every batch", flag_values=values)
  flags.DEFINE_integer("batch", 0, "the training step whose batch it is", flag_values=values)
  flags.DEFINE_string("out", "input_sheet", "folder of index.html, sheet.png", flag_values=values)
  if {"--help", "-h"} & set(argv[1:]):
    print(__doc__)
    return 0
  parse_flags(values, argv, "--config configs/NAME.py[:args]", needed=("config",))
  count, batch = values["count"].value, values["batch"].value
  whole_number(count, "--count")
  whole_number(batch, "--batch", 0)
  found = sections(wrap(values["config"].value), batch, count)
  out = pathlib.Path(values["out"].value)
  name = next((a for a in argv[1:] if a.startswith("configs/")), "")
  title = f"Input of {name or 'a config'}, batch {batch}"
  files.write(out / "index.html", page(title, found).encode())
  drawn = sheet.draw([(s.name, s.examples) for s in found])
  files.write(out / "sheet.png", metrics.encode_png(drawn))
  print(out / "index.html", out / "sheet.png", sep="\n")
  return 0


def sections(config: Config, batch: int, count: int) -> list[Section]:
  """The first `count` rows of every batch of step `batch`.

  Raises:
    UserError: see `pipeline.Input`.
  """
  seed = config.get("seed", 0)
  source = pipeline.Input(config.input, seed=seed)
  out = []
  for name, own in pipeline.named(config.input).items():
    size = own.get("batch_size", config.input.get("batch_size"))
    whole_number(size, f"{own.path}.batch_size")
    reader = source.readers[name]
    pipeline.BatchRows(size, 0, 1, own.path, reader.window)  # raises where windows do not fit
    first, rows = batch * size, math.ceil(count / reader.window) * reader.window
    chunk = reader(first, rows).check()
    spec = "" if name else config.get("augment", "") or ""
    values = _augmented(chunk.rows, spec, seed, batch) if spec else chunk.rows
    titles, part = _titles(reader, first, rows)
    how = [examples.reading(p.pp, spec) for p in reader.parts]
    made = [
      examples.shown(titles[i], {k: v[i] for k, v in values.items()}, how[part[i]])
      for i in range(count)
    ]
    parts = [(n, p) for n, p in zip(reader.names, reader.parts)]
    out.append(Section(name, first, parts, spec, chunk.bad, made))
  return out


def _augmented(rows: dict[str, np.ndarray], spec: str, seed: int, batch: int) -> dict[str, Any]:
  """After the ops of `config.augment`, which see all rows at once."""
  import jax

  arrays = {k: v for k, v in rows.items() if v.dtype != object}
  rng = jax.random.fold_in(jax.random.key(seed), batch)
  return rows | {
    k: np.asarray(v) for k, v in augment.build(spec, "config.augment")(rng, arrays).items()
  }


def _titles(reader: Reader, first: int, rows: int) -> tuple[list[str], list[int]]:
  """`row 5, photos 17` for each row, and the number of its part."""
  at = np.arange(first, first + rows)
  if reader.packer:
    return [f"row {i}, packed" for i in at], [0] * rows
  part, index = (x.tolist() for x in reader.order(at))
  names = [f"{name} " if name else "example " for name in reader.names]
  return [f"row {i}, {names[p]}{j}" for i, p, j in zip(at, part, index)], part


def page(title: str, found: list[Section]) -> str:
  """The page, self-contained; every value is escaped."""
  import jinja2

  def encoded(example: examples.Shown) -> examples.Shown:
    png = lambda x: base64.b64encode(metrics.encode_png(x)).decode()
    return example._replace(pictures=[(key, png(x)) for key, x in example.pictures])

  folder = jinja2.FileSystemLoader(pathlib.Path(__file__).parent)
  template = jinja2.Environment(loader=folder, autoescape=True).get_template("page.html.j2")
  plain = [
    s._asdict()
    | {"examples": [encoded(e) for e in s.examples]}
    | {"parts": [{"name": n, "source": p.source, "pp": p.pp} for n, p in s.parts]}
    for s in found
  ]
  return template.render(title=title, sections=plain)


if __name__ == "__main__":
  run_main(main)
