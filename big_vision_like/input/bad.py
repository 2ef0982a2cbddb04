"""Examples that cannot be used: what is wrong with them, by kind, for counting and for the log."""


class BadExample(ValueError):
  """Raised by sources and ops for data that is broken: it is counted, logged and replaced.

  `kind` is a short noun phrase that groups what is alike ("truncated image", "empty text"); the
  message has the details. Mistakes in a config are `UserError`s and end the run at its start.
  """

  def __init__(self, kind: str, message: str):
    super().__init__(message)
    self.kind = kind


def kind_of(error: Exception) -> str:
  """The kind of any exception that an example caused."""
  if isinstance(error, BadExample):
    return error.kind
  if isinstance(error, KeyError):
    return "missing key"
  if isinstance(error, UnicodeDecodeError):
    return "not UTF-8"
  return type(error).__name__
