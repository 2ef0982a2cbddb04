"""Documents of texts and pictures in order: JSON lines of several layouts, and Markdown."""

import re
from collections.abc import Callable, Iterable
from typing import Any

from big_vision_like.config import UserError, unknown
from big_vision_like.input import paths
from big_vision_like.input.bad import BadExample
from big_vision_like.input.formats import rows

_WHERE = "source documents"
_MARKDOWN = (".md", ".markdown")
_PICTURE = re.compile(
  r"!\[(?:[^\[\]]|\[[^\[\]]*\])*\]"  # ![alt], in which [...] may stand
  r"\(\s*<?([^)\s>]+)>?(?:\s[^)]*)?\)"  # (path "title")
  r"(?:\{[^}]*\})?"  # {attributes}
)

Item = tuple[str, Any]
"""("text", the text) or ("image", a path, a data: URL or base64)."""


def _items(row: dict[str, Any], where: str) -> list[Item]:
  """The parts of a document in order, of any of the layouts."""
  try:
    if "document" in row:
      return [item for part in row["document"] for item in part.items()]
    if "texts" in row and "images" in row:  # OBELICS: two lists, one of them None at each place
      pairs = zip(row["texts"], row["images"], strict=True)
      return [_either(text, image, where) for text, image in pairs if (text or image) is not None]
    if "text_list" in row and "image_info" in row:  # MMC4: pictures before the text they match
      matched: dict[int, list[Item]] = {}
      for info in row["image_info"]:
        name = info.get("image_base64") or info.get("image_name")
        matched.setdefault(info["matched_text_index"], []).append(("image", name))
      if out_of_range := matched.keys() - set(range(len(row["text_list"]))):
        raise ValueError(f"matched_text_index {out_of_range}")
      texts = enumerate(row["text_list"])
      return [item for i, text in texts for item in (*matched.get(i, ()), ("text", text))]
  except (TypeError, ValueError, AttributeError, KeyError) as e:
    raise BadExample("broken document", f"{where}: {type(e).__name__}: {e}") from None
  keys = ", ".join(row) or "-"
  raise BadExample(
    "missing key", f"{where}: document, texts and images, or text_list and image_info; has {keys}"
  )


def _either(text: Any, image: Any, where: str) -> Item:
  if text is not None and image is not None:
    raise BadExample("broken document", f"{where}: a text and an image at one place")
  return ("image", image) if text is None else ("text", text)


def _markdown(text: str) -> Iterable[Item]:
  """Texts between the pictures, stripped, and the pictures; the head between `---` is left out."""
  text = re.sub(r"\A---\n.*?\n---\n", "", text.replace("\r\n", "\n"), flags=re.DOTALL)
  parts = _PICTURE.split(text)  # text, path, text, ..., text
  for i, part in enumerate(parts):
    if i % 2:
      yield "image", part
    elif part.strip():
      yield "text", part.strip()


class _Documents:
  def __init__(
    self,
    length: int,
    read: Callable[[int], tuple[str, Iterable[Item], str]],
    missing: str,
  ):
    self.length, self.read, self.missing = length, read, missing

  def __len__(self) -> int:
    return self.length

  def __getitem__(self, index: int) -> dict[str, Any]:
    if not 0 <= index < len(self):
      raise IndexError(index)
    where, items, root = self.read(index)
    parts = [self._part(kind, value, root, where) for kind, value in items]
    return {"document": [part for part in parts if part]}

  def _part(self, kind: str, value: Any, root: str, where: str) -> dict[str, Any] | None:
    if kind == "text" and isinstance(value, str):
      return {"text": value}
    if kind != "image":
      raise BadExample("broken document", f"{where}: {kind!r} of {type(value).__name__}")
    try:
      if isinstance(value, str) and paths.is_remote(value):
        raise BadExample("missing file", f"{value}, which is not downloaded")
      return {"image": rows.picture(value, root, where)}
    except BadExample as e:
      if self.missing == "drop" and e.kind in ("missing file", "missing image"):
        return None
      raise


def documents(
  pattern: str,
  root: str = "",
  missing: str = "bad",
  allow_missing_shards: bool = False,
  cache: str = "",
) -> _Documents:
  """Documents under `document`: a list of {"text": str} and {"image": encoded bytes}, in order.

  Of JSON lines, in which an image is a path, a `data:` URL or base64 (no dot in it):
  `{"document": [{"text": ...}, {"image": ...}, ...]}`; OBELICS (arXiv:2306.16527), `texts` and
  `images` of equal length, one of them null at each place; MMC4 (arXiv:2304.06939), `text_list`
  and `image_info`, each picture (`image_base64`, else `image_name`) before the text that its
  `matched_text_index` says. Or of Markdown files, each one document: `![alt](path)` is a picture.

  Args:
    pattern: .jsonl files, or .md files; a pattern may name many.
    root: folder that the paths are relative to; default: the folder of the file. Nothing outside
      it is read, and nothing is downloaded.
    missing: "bad" (default): a document without one of its pictures is a bad example; "drop": it
      goes on without it.
    allow_missing_shards: files that the braces name and that are not there are left out.
    cache: folder of the index of the lines, see `paths.cached_index`.

  Raises:
    UserError: no such file, Markdown and other files in one pattern, a wrong `missing`.
  """
  if missing not in ("bad", "drop"):
    raise unknown(f"{_WHERE}: missing", missing, ("bad", "drop"))
  files = paths.expand(pattern, _WHERE, allow_missing_shards=allow_missing_shards)
  folders = rows.roots(root, files, _WHERE)
  is_markdown = {file.lower().endswith(_MARKDOWN) for file in files}
  if len(is_markdown) > 1:
    raise UserError(f"{_WHERE}: {pattern!r} matches Markdown and other files")

  def read_markdown(index: int) -> tuple[str, Iterable[Item], str]:
    file = files[index]
    return file, _markdown(rows.text_of(paths.read_bytes(file), file)), folders[index]

  if is_markdown == {True}:
    return _Documents(len(files), read_markdown, missing)
  lines = rows.Rows(files, _WHERE, cache)

  def read_line(index: int) -> tuple[str, Iterable[Item], str]:
    file, line = lines[index]
    where = f"row {index} of {files[file]}"
    return where, _items(rows.json_object(line, where), where), folders[file]

  return _Documents(len(lines), read_line, missing)
