"""BLEU, ROUGE-L and CIDEr against what pycocoevalcap 1.2 gave for the same words, and by hand."""

import math

import pytest

from big_vision_like.config import UserError, find_module
from big_vision_like.evaluators import _caption_scores as scores

CAPTIONS = [
  "a dog runs on the beach",
  "two men ride horses",
  "a red bus",
  "the the the cat",
  "a bowl of soup with bread and a spoon on the side",
]
REFERENCES = [
  [
    "a dog is running along the beach",
    "the dog runs on a sandy beach",
    "a brown dog on the beach",
  ],
  ["two men ride horses", "men on horseback ride through a field"],
  ["a red double decker bus parked on the street", "a bus on a street"],
  ["the cat sits on the mat"],
  ["a bowl of soup and a slice of bread", "soup with bread on the side", "some food"],
]
# Bleu(4), Rouge().compute_score and Cider().compute_score of pycocoevalcap, each text split at
# blanks: no Java tokeniser.
BLEU = [0.8994770656686948, 0.8073053731410447, 0.6424097643473389, 0.43736162258508327]
ROUGE = [0.8333333333333334, 1.0, 0.5304347826086957, 0.3860759493670886, 0.7093023255813954]
CIDER = [2.993555685106684, 5.492385164066851, 1.2403799041781611, 1.8680766846659502]
CIDER += [1.8822100115698681]


def split(captions, references):
  return [c.split() for c in captions], [[r.split() for r in several] for several in references]


def test_as_pycocoevalcap():
  said, right = split(CAPTIONS, REFERENCES)
  assert scores.bleu(said, right) == pytest.approx(BLEU, abs=1e-9)
  rouge = [scores.rouge_l(c, several) for c, several in zip(said, right)]
  assert rouge == pytest.approx(ROUGE, abs=1e-9)
  assert scores.cider(said, right) == pytest.approx(CIDER, abs=1e-9)
  got = scores.scores(CAPTIONS, REFERENCES)
  assert got == pytest.approx(
    {f"bleu{k}": v for k, v in enumerate(BLEU, 1)}
    | {"rouge_l": sum(ROUGE) / 5, "cider": sum(CIDER) / 5},
    abs=1e-9,
  )


def test_empty_texts_as_pycocoevalcap():
  said, right = split(["", "a b"], [["a b c"], ["a b", ""]])
  expected = [0.22313015992530005, 0.22313015986951756, 0.002231301599253001]
  assert scores.bleu(said, right)[:3] == pytest.approx(expected, abs=1e-9)
  assert [scores.rouge_l(c, r) for c, r in zip(said, right)] == [0, 1]
  # Every n-gram is in both images or has no partner.
  assert scores.cider(said, right) == [0, 0]
  assert scores.bleu([[]], [[["a"]]]) == [0, 0, 0, 0]


def test_by_hand():
  # Papineni's example: "the" is right twice of seven; no brevity, the caption is the longer one.
  said, right = split(["the the the the the the the"], [["the cat is on the mat"]])
  assert scores.bleu(said, right)[0] == pytest.approx(2 / 7)
  # Half the length: BP = exp(1 - 4 / 2), all words right.
  said, right = split(["a b"], [["a b c d"]])
  assert scores.bleu(said, right)[1] == pytest.approx(math.exp(-1))
  # Of two references as close the shorter one: length 2, so no penalty.
  assert scores.bleu(*split(["a b c"], [["a b", "a b c d"]]))[0] == pytest.approx(1)
  # lcs("a x b", "a b c") = 2: precision 2/3, recall 2/3.
  assert scores.rouge_l(["a", "x", "b"], [["a", "b", "c"]]) == pytest.approx(2 / 3)
  # Two images that share no word, one caption its own reference: 10 for four words or more.
  said, right = split(["a b c d", "e f g h"], [["a b c d"], ["x y z w"]])
  assert scores.cider(said, right) == pytest.approx([10, 0])
  # Only a pair of single words: three of the four n have no n-grams.
  assert scores.cider(*split(["a", "b"], [["a"], ["c"]])) == pytest.approx([2.5, 0])


@pytest.mark.parametrize(
  "text, expected",
  [
    ("A dog's x-ray, isn't it?", "a dog 's x-ray is n't it"),
    ("They\u2019re 3.5 cm - or so...", "they 're 3.5 cm or so"),
    ('"Stop!" (again); men', "stop again men"),
    ("", ""),
    ("Caf\u00e9 don't knt", "caf\u00e9 do n't knt"),
  ],
)
def test_words(text, expected):
  assert scores.words(text) == expected.split()


def test_helpers_are_no_evaluators():
  with pytest.raises(UserError, match="is unknown"):
    find_module("evaluators", "_caption_scores", "type")
