"""Imports go strictly down (the table of floors in README), read from the syntax tree."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = "big_vision_like"

# Room -> floor; a room may import rooms of lower floors only.
FLOORS = {
  **dict.fromkeys(("config", "tree", "axes", "metrics", "goodput", "flops"), 0),
  **dict.fromkeys(("photometric", "sweeps"), 0),
  **dict.fromkeys(("layers", "losses", "input", "augment", "generation", "schedules"), 1),
  **dict.fromkeys(("models", "optim"), 2),
  **dict.fromkeys(("method", "transforms"), 3),
  "methods": 4,
  **dict.fromkeys(("sharding", "state", "step", "checkpoint", "init_from", "cluster"), 5),
  **dict.fromkeys(("evaluators", "interop", "compose"), 6),
  "train": 7,
}
# Rooms whose files may import each other; everywhere else only the floor below.
FAMILIES = ("layers", "losses", "input", "models", "evaluators", "interop", "generation")
TRUNK = ("sharding", "state", "step", "checkpoint", "init_from", "cluster")
NEVER = {room: {"methods", "models", "transforms"} for room in TRUNK}
NEVER |= {room: {"method", "methods", *TRUNK} for room in ("evaluators", "interop")}


def room(module: str) -> str | None:
  parts = module.split(".")
  return parts[1] if parts[0] == PACKAGE and len(parts) > 1 else None


def imports(source: str) -> list[str]:
  """Every module of the package that the source imports, also inside functions."""
  out = []
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      out += [a.name for a in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module == PACKAGE:
      out += [f"{PACKAGE}.{a.name}" for a in node.names]
    elif isinstance(node, ast.ImportFrom):
      out.append(node.module or "")
  return [m for m in out if m.startswith(PACKAGE)]


def violations(module: str, source: str) -> list[str]:
  here = room(module)
  out = []
  for target in imports(source):
    there = room(target)
    if there is None:
      continue
    if there not in FLOORS:
      out.append(f"{module} imports {target}, which has no floor")
    elif there == here and here in FAMILIES:
      continue
    elif FLOORS[there] == FLOORS[here] and FLOORS[here] in (0, 3, 5) and here != there:
      continue  # nouns know each other, and so do the parts of the trunk; cycles fail on import
    elif FLOORS[there] >= FLOORS[here] or there in NEVER.get(here, ()):
      out.append(f"{module} (floor {FLOORS[here]}) imports {target} (floor {FLOORS[there]})")
  return out


def modules() -> dict[str, pathlib.Path]:
  files = sorted((ROOT / PACKAGE).rglob("*.py"))
  out = {".".join(f.relative_to(ROOT).with_suffix("").parts): f for f in files}
  return {m.removesuffix(".__init__"): f for m, f in out.items() if m != f"{PACKAGE}.__init__"}


def test_imports_go_down():
  found = [v for m, f in modules().items() for v in violations(m, f.read_text())]
  assert not found, "\n".join(found)


@pytest.mark.parametrize(
  "module, source",
  [
    ("big_vision_like.losses.x", "from big_vision_like.models import vit"),
    ("big_vision_like.methods.mae", "from big_vision_like.methods import siglip"),
    ("big_vision_like.step", "from big_vision_like.methods import siglip"),
    ("big_vision_like.evaluators.knn", "import big_vision_like.step"),
    ("big_vision_like.models.vit", "def f():\n  from big_vision_like import sharding"),
  ],
)
def test_a_planted_violation_is_found(module, source):
  assert violations(module, source)


def test_configs_import_only_common():
  for file in (ROOT / "configs").glob("*.py"):
    for node in ast.walk(ast.parse(file.read_text())):
      if isinstance(node, ast.ImportFrom):
        ours = (node.module or "").split(".")[0] in (PACKAGE, "experiments", "tools", "tests")
        assert not ours, f"{file.name} imports {node.module}"


def test_no_tensorflow_no_eval_no_pickle():
  for module, file in modules().items():
    for node in ast.walk(ast.parse(file.read_text())):
      if isinstance(node, (ast.Import, ast.ImportFrom)):
        names = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
        assert not {n.split(".")[0] for n in names} & {"tensorflow", "pickle"}, module
      if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        assert node.func.id not in ("eval", "exec"), module
