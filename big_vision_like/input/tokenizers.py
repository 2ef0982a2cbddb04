"""Text to numbers: SentencePiece, from a file or trained on the spot, deterministically."""

import functools
import io
import pathlib

from big_vision_like.config import UserError

TRAIN_ON = 10_000  # captions


class SentencePiece:
  """A SentencePiece model; ids `pad` and `eos` as the model has them."""

  def __init__(self, model: bytes):
    from sentencepiece import SentencePieceProcessor

    self.model = model
    self.processor = SentencePieceProcessor(model_proto=model)
    self.eos = self.processor.eos_id()
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
