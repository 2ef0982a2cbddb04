"""Folders of audio files."""

from big_vision_like.input import paths
from big_vision_like.input.formats import media

SOUNDS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au", ".caf")


def audio(path: str, files: str = "*", label: str | None = None) -> media.Folder:
  r"""Audio files anywhere below a folder or URL: {"audio": bytes, "label", "text"}.

  The topmost folder of a file is its class: `text` is the folder's name, `label` its place among
  the sorted names (or the number it is, where all names are whole numbers). Files that lie in
  `path` itself have neither, unless `label` finds the class in their names. Files: wav, flac, ogg,
  oga, opus, mp3, aiff, aif, au, caf; read when they are asked for; `decode_audio` decodes them.

  Args:
    path: the folder, or an fsspec URL.
    files: pattern (`*`, `?`, `[...]`) of names relative to it, `/` among what `*` matches, such as
      `"*_[0-4].wav"` for a part that the names tell.
    label: regular expression whose first group, in the file's name, is the class: `r"^(\d)_"` for
      `7_jackson_0.wav`.

  Raises:
    UserError: not a folder, no such file in it, files beside class folders, a `label` that is no
      regular expression or does not match a file.
  """
  root, names = media.found(path, "source audio", SOUNDS, files, "audio")
  read = lambda name: {"audio": paths.read_bytes(paths.inside(root, name), where="source audio")}
  return media.Folder(root, names, media.classes(names, "source audio", label), read)
