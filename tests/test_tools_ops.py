"""tools.ops: everything that a config can name is listed, with a docstring and its defaults."""

import inspect

import pytest

from big_vision_like.config import UserError
from big_vision_like.input import schema
from tools import ops, readme

OPS, SOURCES, PACKERS = ops.known_ops(), ops.known_sources(), ops.packers()
NAMED = [*OPS.items(), *SOURCES.items(), *PACKERS.items()]


@pytest.mark.parametrize("name, fn", NAMED, ids=[name for name, _ in NAMED])
def test_docstring_and_defaults(name, fn):
  assert ops.first_line(fn) and len(ops.first_line(fn)) <= 100
  shown = ops.signature(name, fn)
  for parameter in inspect.signature(fn).parameters.values():
    assert parameter.name in shown
    if parameter.default is not inspect.Parameter.empty:
      assert f"{parameter.name}={parameter.default!r}" in shown
  assert ops.place(fn).startswith("big_vision_like/input/")


def test_lists(capsys):
  assert ops.main([]) == 0
  out = capsys.readouterr().out
  assert "resize(height, width=None, method='bilinear'" in out and "digit_pairs(" not in out
  assert all(f"\n{name}(" in f"\n{out}" for name in OPS)
  assert ops.main(["--sources"]) == 0
  out = capsys.readouterr().out
  assert all(f"\n{name}(" in f"\n{out}" for name in (*SOURCES, *PACKERS)) and "resize(" not in out


def test_one(capsys):
  assert ops.main(["multi_crop"]) == 0
  out = capsys.readouterr().out
  assert "(op, big_vision_like/input/ops/geometry.py)" in out and "[num_local, s, s, C]" in out
  assert ops.main(["digits"]) == 0 and "(source, " in capsys.readouterr().out
  assert ops.main(["mixup"]) == 0 and "(op of config.augment, " in capsys.readouterr().out
  with pytest.raises(UserError, match="did you mean multi_crop"):
    ops.main(["multicrop"])


def test_readme(monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(readme, "ROOT", tmp_path)
  monkeypatch.setattr(ops, "place", lambda fn: "a/b.py")
  file = tmp_path / "README.md"
  file.write_text(f"before\n{ops.BEGIN}\nstale row\n{ops.END}\nafter\n")
  assert ops.main(["--readme", "--check"]) == 1
  assert "are stale; run python -m tools.ops --readme" in capsys.readouterr().out
  assert ops.main(["--readme"]) == 0 and ops.main(["--readme", "--check"]) == 0
  text = file.read_text()
  assert text.startswith("before\n") and text.endswith("\nafter\n") and "stale row" not in text
  assert all(f"`{name}`" in text for name in (*OPS, *SOURCES, *PACKERS, *schema.KEYS))
  with pytest.raises(UserError, match="--check is for --readme"):
    ops.main(["--check"])
  file.write_text("")
  with pytest.raises(UserError, match="each once"):
    ops.main(["--readme"])


def test_a_bar_does_not_end_a_cell():
  assert readme.row("a|b", "c") == "| a\\|b | c |"
