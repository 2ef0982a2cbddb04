"""Text to numbers: SentencePiece, from a file or trained on the spot, and CLIP's byte pairs."""

import functools
import gzip
import html
import io
import itertools
import pathlib
import re
import sys
import unicodedata
import zlib
from typing import Protocol

from big_vision_like.config import UserError

TRAIN_ON = 10_000  # captions
CLIP_MERGES = 49_152 - 256 - 2  # the file has more; CLIP's vocabulary is 49,408 with them
SPECIAL = ("<|startoftext|>", "<|endoftext|>")


class Tokenizer(Protocol):
  """`start`: ids before every text. `bos`, `eos`: -1 where there is none. `pad`: fills the rest."""

  start: list[int]
  bos: int
  eos: int
  pad: int

  @property
  def vocab_size(self) -> int: ...

  def encode(self, text: str) -> list[int]: ...

  def decode(self, ids: list[int]) -> str: ...


def by_name(model: str, vocab_size: int | None = None) -> Tokenizer:
  """`clip:PATH` is CLIP's, anything else SentencePiece's.

  Raises:
    UserError: as `clip` and `sentencepiece`, or a `vocab_size` where nothing is trained.
  """
  if not model.startswith("clip:"):
    return sentencepiece(model, vocab_size)
  if vocab_size is not None:
    raise UserError(f"op tokenize: vocab_size = {vocab_size!r}; only 'train:SOURCE' takes one")
  return clip(model.removeprefix("clip:"))


class SentencePiece:
  """A SentencePiece model; ids `pad` and `eos` as the model has them."""

  def __init__(self, model: bytes):
    from sentencepiece import SentencePieceProcessor

    self.model = model
    self.processor = SentencePieceProcessor(model_proto=model)
    self.start: list[int] = []
    self.bos, self.eos = self.processor.bos_id(), self.processor.eos_id()
    self.pad = max(self.processor.pad_id(), 0)

  @property
  def vocab_size(self) -> int:
    return self.processor.vocab_size()

  def encode(self, text: str) -> list[int]:
    """Ids without end-of-text."""
    return self.processor.encode(text)

  def decode(self, ids: list[int]) -> str:
    """Text up to the first end-of-text."""
    ids = [int(i) for i in ids]
    return self.processor.decode(ids[: ids.index(self.eos)] if self.eos in ids else ids)


@functools.cache
def sentencepiece(model: str, vocab_size: int | None = None) -> SentencePiece:
  """From a path, or `train:SOURCE` where SOURCE is a data source such as `digit_pairs`.

  Raises:
    UserError: no such file, a file that is not a SentencePiece model, a source without texts, or a
      `vocab_size` below its number of characters.
  """
  if model.startswith("train:"):
    return SentencePiece(_train(model.removeprefix("train:"), vocab_size or 1000))
  try:
    return SentencePiece(pathlib.Path(model).read_bytes())
  except OSError as e:
    raise UserError(f"op tokenize: model {model!r}: {e.strerror}; give a path") from None
  except RuntimeError:
    raise UserError(f"op tokenize: model {model!r} is not a SentencePiece model") from None


def _train(source: str, vocab_size: int) -> bytes:
  from sentencepiece import SentencePieceTrainer

  from big_vision_like.input.sources import open_source

  examples = open_source(source, "op tokenize: model")
  rows = (examples[i] for i in range(min(TRAIN_ON, len(examples))))
  captions = sorted({row["text"] for row in rows if isinstance(row.get("text"), str)})
  if not captions:
    raise UserError(f"op tokenize: model 'train:{source}': the source has no key 'text' of strings")
  out = io.BytesIO()
  try:
    SentencePieceTrainer.train(
      sentence_iterator=iter(captions),
      model_writer=out,
      model_type="bpe",  # whole words even where captions are few; unigram falls back to letters
      vocab_size=vocab_size,
      hard_vocab_limit=False,
      pad_id=0,
      eos_id=1,
      unk_id=2,
      bos_id=-1,
      num_threads=1,  # the result depends on the number of threads
      minloglevel=2,
    )
  except RuntimeError as e:
    reason = str(e).rsplit("] ", 1)[-1]
    raise UserError(f"op tokenize: vocab_size = {vocab_size!r}: {reason}") from None
  return out.getvalue()


class ClipBytePairs:
  """CLIP's tokenizer, Radford et al. 2021 (arXiv:2103.00020); ids as those of open_clip.

  Texts are lower-cased, HTML entities unescaped, runs of white space become one space. Words and
  signs are bytes, a byte's last one in a word another token than elsewhere; pairs of tokens are
  joined in the order of `merges`. Of the repairs of the library ftfy, which open_clip applies
  before, two are here: NFC and straight quotation marks; text in a wrong encoding stays as it is.

  Args:
    merges: pairs of tokens, the most frequent first.
  """

  def __init__(self, merges: list[tuple[str, str]]):
    self.alphabet = _byte_names()
    letters = list(self.alphabet.values())
    names = letters + [c + "</w>" for c in letters] + [a + b for a, b in merges]
    names += SPECIAL
    self.names = names
    self.ids = {name: i for i, name in enumerate(names)}
    self.ranks = {pair: i for i, pair in enumerate(merges)}
    self.bos, self.eos, self.pad = len(names) - 2, len(names) - 1, 0
    self.start = [self.bos]
    self._pieces = _clip_pieces()
    self._word = functools.lru_cache(1 << 16)(self._encode_word)

  @property
  def vocab_size(self) -> int:
    return len(self.names)

  def encode(self, text: str) -> list[int]:
    """Ids without start- and end-of-text."""
    text = unicodedata.normalize("NFC", html.unescape(html.unescape(text)))
    text = " ".join(text.translate(_STRAIGHT).split()).lower()
    return [i for word in self._pieces.findall(text) for i in self._word(word)]

  def _encode_word(self, word: str) -> list[int]:
    if word in SPECIAL:
      return [self.ids[word]]
    *first, last = (self.alphabet[b] for b in word.encode("utf-8", "replace"))
    parts = [*first, last + "</w>"]
    while len(parts) > 1:
      pair = min(itertools.pairwise(parts), key=lambda p: self.ranks.get(p, len(self.ranks)))
      if pair not in self.ranks:
        break
      parts = _joined(parts, pair)
    return [self.ids[p] for p in parts]

  def decode(self, ids: list[int]) -> str:
    """Text between start- and end-of-text."""
    names = []
    for i in map(int, ids):
      if i == self.eos:
        break
      if i != self.bos:
        names.append(self.names[i])
    back = {name: byte for byte, name in self.alphabet.items()}
    text = "".join(names).replace("</w>", " ")
    data = b"".join(b" " if c == " " else bytes([back[c]]) for c in text)
    return data.decode("utf-8", errors="replace").strip()


_STRAIGHT = {ord(c): "'" for c in "\u02bc\u2018\u2019\u201a\u201b"} | {
  ord(c): '"' for c in "\u201c\u201d\u201e\u201f"
}


def _joined(parts: list[str], pair: tuple[str, str]) -> list[str]:
  """Every occurrence of the pair, from the left, becomes one token."""
  out: list[str] = []
  i = 0
  while i < len(parts):
    n = 2 if tuple(parts[i : i + 2]) == pair else 1
    out.append("".join(parts[i : i + n]))
    i += n
  return out


def _byte_names() -> dict[int, str]:
  """A printable character for each byte, in the order of CLIP's ids."""
  printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
  others = [b for b in range(256) if b not in printable]
  return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


@functools.cache
def _clip_pieces() -> re.Pattern:
  """Special tokens, contractions, runs of letters, single numerals, runs of other signs."""
  # Python's \w is letters, numerals and "_"; \d has the decimal numerals only.
  numerals = "".join(
    c for c in map(chr, range(0x80, sys.maxunicode)) if unicodedata.category(c) in ("Nl", "No")
  )
  letter, number = rf"[^\W\d_{numerals}]", rf"[\d{numerals}]"
  return re.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|"
    rf"{letter}+|{number}|(?:[^\s\w]|_)+"
  )


@functools.cache
def clip(path: str) -> ClipBytePairs:
  """From CLIP's file of merges (`bpe_simple_vocab_16e6.txt.gz`), or a shorter one like it.

  Its first line is a comment; every other one is a pair of tokens. Packed by gzip or not.

  Raises:
    UserError: no such file, or one of other contents.
  """
  try:
    data = pathlib.Path(path).read_bytes()
    data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    lines = data.decode("utf-8").split("\n")[1 : 1 + CLIP_MERGES]
  except OSError as e:
    raise UserError(f"op tokenize: model 'clip:{path}': {e.strerror or e}; give a path") from None
  except (EOFError, zlib.error, UnicodeDecodeError) as e:
    raise UserError(f"op tokenize: model 'clip:{path}' is not a file of merges: {e}") from None
  merges = [tuple(line.split()) for line in lines if line]
  tokens = {t for c in _byte_names().values() for t in (c, c + "</w>")}
  for number, pair in enumerate(merges, 2):
    if len(pair) != 2 or not tokens.issuperset(pair):
      raise UserError(
        f"op tokenize: model 'clip:{path}', line {number} = {' '.join(pair)[:40]!r}; expected two "
        "tokens that lines before it make"
      )
    tokens.add("".join(pair))
  return ClipBytePairs(merges)
