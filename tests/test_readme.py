"""README's table of methods is what the headers of configs/ say; the grammar of those headers."""

import pathlib

import pytest

from big_vision_like.config import UserError
from tools import methods_table, ops, readme

ROOT = pathlib.Path(__file__).parents[1]

HEADER = """Some Net (arXiv:1234.56789, Sec. 3): large, and more.

After another (arXiv:9876.54321).

Command: python -m train --config a.py
Score: not yet run.

smoke: digits | letters, which it
must read.
Command: python -m train --config a.py:smoke \
  --workdir DIR
Command: python -m tools.look
Score (seed 0,
two cores): 97 % of the digits,
12 s.

An afterthought.
"""


def methods(text, rows):
  return readme.filled(text, rows, methods_table.BEGIN, methods_table.END)


def test_table_is_not_stale():
  text = (ROOT / "README.md").read_text()
  current = methods(text, methods_table.table(ROOT / "configs"))
  assert text == current, "run python -m tools.methods_table"
  for file in (ROOT / "configs").glob("[a-z]*.py"):
    assert file.stem == "common" or f"| {file.stem} | [" in text


def test_tables_of_input_are_not_stale():
  text = (ROOT / "README.md").read_text()
  current = readme.filled(text, ops.tables(), ops.BEGIN, ops.END)
  assert text == current, "run python -m tools.ops --readme"


def test_header():
  header = methods_table.parse(HEADER, "configs/a.py")
  assert header.name == "Some Net" and header.arxiv == "1234.56789"
  assert header.commands == [
    "python -m train --config a.py:smoke --workdir DIR",
    "python -m tools.look",
  ]
  assert header.score == "97 % of the digits, 12 s. (seed 0, two cores)"
  protocol = methods_table.parse(HEADER.replace(" (arXiv:1234.56789, Sec. 3)", ""), "")
  assert protocol.name == "Some Net" and protocol.arxiv == "9876.54321"


def test_row(tmp_path):
  (tmp_path / "a_net.py").write_text(f'"""{HEADER}"""\n')
  (tmp_path / "common.py").write_text("")
  row = methods_table.table(tmp_path).splitlines()[2]
  assert row.startswith(
    "| a_net | [Some Net](https://arxiv.org/abs/1234.56789) | `configs/a_net.py` | `python -m "
  )
  text = f"a\n{methods_table.BEGIN}\nold\n{methods_table.END}\nb\n"
  new = methods(text, "rows")
  assert new == text.replace("old", "rows") == methods(new, "rows")


@pytest.mark.parametrize(
  "title", ["DDPM (arXiv:2006.11239, Sec. 4) on CIFAR-10, large.", "DDPM (arXiv:2006.11239): large"]
)
def test_titles(title):
  header = methods_table.parse(HEADER.replace("Some Net (arXiv:1234.56789, Sec. 3):", title), "")
  assert header[:2] == ("DDPM", "2006.11239")


@pytest.mark.parametrize(
  "old, new, lacks",
  [
    ("Some Net", "", "NAME "),
    ("smoke: ", "Smoke: ", "smoke: ..."),
    ("Command: python -m t", "python -m t", "Command: ... below smoke"),
    ("Score (seed", "Scored (seed", "Score: ... below smoke"),
  ],
)
def test_what_a_header_lacks(old, new, lacks):
  with pytest.raises(UserError, match=f"configs/a.py: the header lacks '{lacks}"):
    methods_table.parse(HEADER.replace(old, new), "configs/a.py")


def test_check(monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(methods_table, "ROOT", tmp_path)
  file = tmp_path / "README.md"
  file.write_text(f"{methods_table.BEGIN}\n{methods_table.END}\n")
  assert methods_table.main(["--check"]) == 1
  assert "is stale; run python -m tools.methods_table" in capsys.readouterr().out
  assert methods_table.main([]) == 0 and methods_table.main(["--check"]) == 0
  file.write_text("no markers")
  with pytest.raises(UserError, match="each once"):
    methods_table.main([])
