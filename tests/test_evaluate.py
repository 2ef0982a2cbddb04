"""The table, the JSON and the page of several evaluated runs, from scores that are given."""

import json
import re

import numpy as np
import pytest

from big_vision_like.config import UserError
from big_vision_like.evaluators import Mistake
from tools import evaluate


def run(name, scores, mistakes=None):
  scores = {f"eval/{k}": v for k, v in scores.items()}
  return dict(name=name, workdir=f"/x/{name}", step=2, scores=scores, mistakes=mistakes or {})


A = run("a", {"z/accuracy": 0.5, "z/accuracy/low": 0.4, "z/accuracy/high": 0.6, "v/loss": 2.0})
B = run("b", {"z/accuracy": 0.75, "v/loss": 1.0, "v/perplexity": None, "knn/accuracy": 0.1})


def test_table_marks_the_best():
  assert evaluate.table([A, B]) == [
    ("z/accuracy", [("0.5000 [0.4000, 0.6000]", False), ("0.7500", True)]),
    ("v/loss", [("2.0000", False), ("1.0000", True)]),
    ("v/perplexity", [("-", False), ("nan", False)]),
    ("knn/accuracy", [("-", False), ("0.1000", False)]),
  ]
  assert not any(best for _, cells in evaluate.table([A]) for _, best in cells)
  # `low` without a metric it belongs to is a metric.
  assert evaluate.table([run("c", {"x/low": 1.0})]) == [("x/low", [("1.0000", False)])]


@pytest.mark.parametrize(
  "name, best",
  [
    ("img2txt/R@1", 2.0),
    ("cider", 2.0),
    ("bleu4", 2.0),
    ("loss", 1.0),
    ("perplexity", 1.0),
    ("depth/rmse", 1.0),
    ("frechet", 1.0),
    ("pixels", None),
    ("nearest_cider", None),
    ("mean_per_class", 2.0),
    ("mean_rank", 1.0),
    ("5shot/stderr", None),
  ],
)
def test_which_way_is_better(name, best):
  assert evaluate._best(f"eval/x/{name}", [1.0, 2.0, None]) == best
  assert evaluate._best(f"eval/x/{name}", [2.0, 2.0]) is None


def test_page_is_self_contained_and_escaped():
  image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
  mistakes = {"z": [Mistake(7, image, "<b>four</b>", "nine & ten", 0.25)], "r": []}
  page = evaluate.render([A, run("b", {"z/accuracy": 0.75}, mistakes)])
  assert "0.5000 [0.4000, 0.6000]" in page and '<td class="n best">0.7500' in page
  assert "&lt;b&gt;four" in page and "<b>four" not in page and "nine &amp; ten" in page
  assert "b: z, hardest mistakes" in page and "b: r, no mistakes" in page
  sources = re.findall(r'(?:src|href)="([^"]*)"', page)
  assert len(sources) == 1 and sources[0].startswith("data:image/png;base64,")
  assert "example 7, by 0.250" in page and "<script" not in page


def test_names_of_several_runs(tmp_path):
  for name, evals in (("a", ("val", "knn")), ("b", ("val",))):
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.json").write_text(json.dumps({"evals": {n: {} for n in evals}}))
  both = [tmp_path / "a", tmp_path / "b"]
  assert evaluate._names(both, None) == [["val", "knn"], ["val"]]
  assert evaluate._names(both, "knn,val") == [["knn", "val"], ["val"]]
  with pytest.raises(UserError, match="--evals 'kmn' is unknown; did you mean knn"):
    evaluate._names(both, "kmn")
  with pytest.raises(UserError, match=r"config\.json is missing"):
    evaluate._names([*both, tmp_path / "c"], None)


def test_where_nothing_can_be_written(tmp_path):
  for flag in ("--json", "--html"):
    with pytest.raises(UserError, match=f"{flag} .* cannot be written"):
      evaluate.main(["--workdir", str(tmp_path), flag, str(tmp_path)])
