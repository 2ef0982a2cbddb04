"""No data: for methods whose examples are drawn by their own randomness."""

from typing import Any

from big_vision_like.config import whole_number


class _Nothing:
  def __init__(self, size: int):
    self.size = size

  def __len__(self) -> int:
    return self.size

  def __getitem__(self, index: int) -> dict[str, Any]:
    if not 0 <= index < self.size:
      raise IndexError(index)
    return {}


def nothing(size: int = 1 << 20) -> _Nothing:
  """`size` examples without a key: a batch holds their `index` alone (`config.input.spec = {}`).

  Raises:
    UserError: a size that is not a positive whole number.
  """
  return _Nothing(whole_number(size, "source nothing: size"))
