"""BLEU, ROUGE-L and CIDEr of captions with several references, as pycocoevalcap defines them.

Texts are lists of words here; `words` makes them. pycocoevalcap asks Stanford's PTBTokenizer, a
Java program, for them; `words` does without and follows what it does to plain English.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

Words = Sequence[str]

# A word before n't, what an apostrophe shortens, or a word with the marks inside it (3.5, x-ray).
WORD = re.compile(r"\w+(?=n't\b)|n't\b|'(?:s|d|m|re|ve|ll)\b|\w+(?:[-.,/:]\w+)*")


def words(text: str) -> list[str]:
  """Lower-case words without punctuation: "A dog's x-ray, isn't it?" -> a dog 's x-ray is n't it.

  As Stanford's Penn Treebank tokeniser does: contractions are two words, numbers and hyphenated
  words one. It also splits "cannot" and "gonna" and joins abbreviations with their full stop; that
  is left out.
  """
  return WORD.findall(text.lower().replace("\u2019", "'"))


def ngrams(text: Words, up_to: int = 4) -> Counter:
  """How often each run of 1 to `up_to` words occurs."""
  return Counter(
    tuple(text[i : i + n]) for n in range(1, up_to + 1) for i in range(len(text) - n + 1)
  )


def bleu(
  captions: Sequence[Words], references: Sequence[Sequence[Words]], n: int = 4
) -> list[float]:
  """BLEU-1 ... BLEU-n of the whole corpus (Papineni et al. 2002).

  BLEU-k = BP (p_1 ... p_k)^(1/k), p_k the share of k-grams found in a reference, each as often as
  in the one that has it most; BP = exp(1 - r / c) where the captions' length c is below that of the
  references r, of which the closest in length counts (of two, the shorter).
  """
  right, made = np.zeros(n), np.zeros(n)
  length = wanted = 0
  for caption, several in zip(captions, references, strict=True):
    best = Counter()
    for reference in several:
      best |= ngrams(reference, n)
    for gram, count in (ngrams(caption, n) & best).items():
      right[len(gram) - 1] += count
    made += np.maximum(len(caption) - np.arange(n), 0)
    length += len(caption)
    wanted += min((abs(len(r) - len(caption)), len(r)) for r in several)[1]
  # pycocoevalcap's small numbers, which keep 0 / 0 at zero.
  precision = (right + 1e-15) / (made + 1e-9)
  ratio = (length + 1e-15) / (wanted + 1e-9)
  brevity = math.exp(min(0.0, 1 - 1 / ratio))
  return [float(x) for x in brevity * np.cumprod(precision) ** (1 / np.arange(1, n + 1))]


def rouge_l(caption: Words, references: Sequence[Words], beta: float = 1.2) -> float:
  """F-measure of the longest common subsequence, recall weighing `beta` times (Lin 2004).

  Precision and recall are the highest over the references, each by itself.
  """
  # An empty text is one empty word, so that two of them agree.
  caption, references = caption or [""], [r or [""] for r in references]
  common = [_common(caption, r) for r in references]
  precision = max(common) / len(caption)
  recall = max(c / len(r) for c, r in zip(common, references))
  if not precision or not recall:
    return 0.0
  return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def _common(a: Words, b: Words) -> int:
  """Length of the longest common subsequence."""
  row = [0] * (len(b) + 1)
  for x in a:
    before = row
    row = [0]
    for i, y in enumerate(b):
      row.append(before[i] + 1 if x == y else max(before[i + 1], row[i]))
  return row[-1]


def cider(
  captions: Sequence[Words],
  references: Sequence[Sequence[Words]],
  n: int = 4,
  sigma: float = 6.0,
) -> list[float]:
  """CIDEr-D of each caption, from 0 to 10 (Vedantam et al., arXiv:1411.5726, Sec. 4 and 8).

  The mean over k = 1 ... n and the references of the cosine between tf-idf vectors of k-grams, the
  caption's clipped to the reference's, times exp(-(l_c - l_r)^2 / 2 sigma^2) for lengths. An
  n-gram's document frequency is the number of images with it in a reference, so the score depends
  on the whole split; of a single image it is 0. As in pycocoevalcap the lengths are counted in
  pairs of words.
  """
  document = Counter(g for several in references for g in set().union(*map(ngrams, several)))
  images = math.log(len(references))
  weigh = lambda text: _Vector(text, document, images, n)
  out = []
  for caption, several in zip(captions, references, strict=True):
    made = weigh(caption)
    out.append(10 * float(np.mean([made.similarity(weigh(r), sigma) for r in several])))
  return out


class _Vector:
  """tf-idf of the n-grams of a text, and the norm of each n's part."""

  def __init__(self, text: Words, document: Counter, images: float, n: int):
    counts = ngrams(text, n)
    self.length = max(len(text) - 1, 0)
    self.weights = {
      gram: count * (images - math.log(max(1, document[gram]))) for gram, count in counts.items()
    }
    self.norms = [0.0] * n
    for gram, weight in self.weights.items():
      self.norms[len(gram) - 1] += weight**2
    self.norms = [math.sqrt(x) for x in self.norms]

  def similarity(self, reference: "_Vector", sigma: float) -> float:
    """exp(-(l_c - l_r)^2 / 2 sigma^2) times the mean over n of sum min(c, r) r / (|c| |r|)."""
    products = [0.0] * len(self.norms)
    for gram, weight in self.weights.items():
      right = reference.weights.get(gram, 0.0)
      products[len(gram) - 1] += min(weight, right) * right
    norms = [a * b for a, b in zip(self.norms, reference.norms)]
    cosines = [p / norm if norm else 0.0 for p, norm in zip(products, norms)]
    gaussian = math.exp(-((self.length - reference.length) ** 2) / (2 * sigma**2))
    return gaussian * sum(cosines) / len(cosines)


def scores(captions: list[str], references: list[list[str]]) -> dict[str, float]:
  """`bleu1` ... `bleu4` of the corpus; `rouge_l` and `cider`, means over the captions."""
  said = [words(c) for c in captions]
  right = [[words(r) for r in several] for several in references]
  out = {f"bleu{k}": v for k, v in enumerate(bleu(said, right), 1)}
  out["rouge_l"] = float(np.mean([rouge_l(c, r) for c, r in zip(said, right)]))
  return out | {"cider": float(np.mean(cider(said, right)))}
