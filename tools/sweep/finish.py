"""The overrides of a finished run go into its summary: python -m tools.sweep.finish FOLDER"""

import json
import pathlib
import sys

from big_vision_like.config import UserError, run_main
from big_vision_like.interop import files
from tools.sweep.plan import RUN, SUMMARY


def main(argv: list[str] | None = None) -> int:
  [folder] = argv or sys.argv[1:]
  folder = pathlib.Path(folder)
  try:
    summary = json.loads((folder / SUMMARY).read_text())
    run = json.loads((folder / RUN).read_text())
  except OSError as e:
    raise UserError(f"{e.filename}: {e.strerror}; a run of tools.sweep was expected") from None
  # What the run measured wins over what it was asked for.
  files.write_json(folder / SUMMARY, {**run["overrides"], **summary})
  return 0


if __name__ == "__main__":
  run_main(main)
