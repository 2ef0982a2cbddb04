"""README's table of methods, from the headers of configs/: python -m tools.methods_table [--check]

Writes the rows between the two markers of README.md; `--check` only says whether they are as the
headers have them (exit code 1 where not). CONTRIBUTING.md has the grammar of a header.
"""

import argparse
import ast
import pathlib
import re
from typing import NamedTuple

from big_vision_like.config import UserError, run_main
from tools import readme

ROOT = readme.ROOT
BEGIN = "<!-- methods: written by python -m tools.methods_table -->"
END = "<!-- end of methods -->"
HEAD = "| method | paper | config | command | score |\n|---|---|---|---|---|"


class Header(NamedTuple):
  """What a config's docstring says: paper and the smoke run.

  Attributes:
    name: as the paper's title has it, e.g. "SigLIP".
    arxiv: its number, or None.
    commands: of the smoke run, one after the other.
    score: what they printed.
  """

  name: str
  arxiv: str | None
  commands: list[str]
  score: str


def parse(text: str, where: str) -> Header:
  """A docstring -> `Header`.

  Raises:
    UserError: a part is missing, or is not of its form.
  """

  def need(match: re.Match | None, form: str) -> re.Match:
    if match is None:
      raise UserError(f"{where}: the header lacks {form!r}; CONTRIBUTING.md has its grammar")
    return match

  form = r"([^,:(]+?)(?: \(arXiv:(\d{4}\.\d{4,5})[^)]*\)|[,:])"
  title = need(re.match(form, text), "NAME (arXiv:ID), setting")
  name, arxiv = title.groups()
  if arxiv is None:  # a protocol rather than a paper: the first one that its paragraph names
    first = re.search(r"arXiv:(\d{4}\.\d{4,5})", text.split("Command:")[0])
    arxiv = first and first[1]
  smoke = need(re.search(r"^smoke: .*", text, re.M | re.S), "smoke: ...")[0]
  need(re.search(r"^Command: ", smoke, re.M), "Command: ... below smoke")
  commands = [" ".join(c.split()) for c in re.findall(r"^Command: (.*)$", smoke, re.M)]
  score = need(
    re.search(r"^Score(?: \(([^)]*)\))?: (.+?)(?=\n\n|\nCommand:|\Z)", smoke, re.M | re.S),
    "Score: ... below smoke",
  )
  how, found = (part and " ".join(part.split()) for part in score.groups())
  return Header(name, arxiv, commands, f"{found} ({how})" if how else found)


def table(folder: pathlib.Path) -> str:
  """The rows of all configs of `folder`, with their head."""
  rows = [HEAD]
  for file in sorted(folder.glob("*.py")):
    if file.stem == "common":
      continue
    where = f"configs/{file.name}"
    header = parse(ast.get_docstring(ast.parse(file.read_text())) or "", where)
    link = f"[{header.name}](https://arxiv.org/abs/{header.arxiv})" if header.arxiv else header.name
    commands = ", then ".join(f"`{c}`" for c in header.commands)
    rows.append(readme.row(file.stem, link, f"`{where}`", commands, header.score))
  return "\n".join(rows)


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if stale")
  args = parser.parse_args(argv)
  stale = "table of methods is stale; run python -m tools.methods_table"
  return readme.write(ROOT, table(ROOT / "configs"), BEGIN, END, stale=stale, check=args.check)


if __name__ == "__main__":
  run_main(main)
