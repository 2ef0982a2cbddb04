"""Masks of patches for masked modelling: bool, True where a patch is hidden; shapes are static."""

import math
from typing import Any

import numpy as np

from big_vision_like.config import UserError, unknown, whole_number

GRIDS = ("checkerboard", "quarter", "random")
BLOCK_TRIES = 10
CONTEXT_TRIES = 20


def _shape(op: str, grid: Any, dims: tuple[int, ...] = (2,)) -> tuple[int, ...]:
  """`grid` as a tuple; n is n x n patches."""
  shape = (grid, grid) if isinstance(grid, int) else grid
  if not isinstance(shape, (tuple, list)) or len(shape) not in dims:
    raise UserError(f"op {op}: grid = {grid!r}; expected (height, width) in patches, or one number")
  return tuple(whole_number(n, f"op {op}: grid") for n in shape)


def _fraction(op: str, name: str, value: Any) -> float:
  if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
    raise UserError(f"op {op}: {name} = {value!r}; expected a number from 0 to 1")
  return value


def _interval(op: str, name: str, value: Any, most: float = math.inf) -> tuple[float, float]:
  """(low, high) with 0 < low <= high <= most."""
  numbers = isinstance(value, (tuple, list)) and all(isinstance(v, (int, float)) for v in value)
  if not numbers or len(value) != 2 or not 0 < value[0] <= value[1] <= most:
    bound = "" if most == math.inf else f", at most {most}"
    raise UserError(f"op {op}: {name} = {value!r}; expected (low, high) above 0{bound}")
  return tuple(value)


def _hide(n: int, hidden: int, rng: Any) -> np.ndarray:
  """bool [n], `hidden` of them True; draws only where there is a choice."""
  if hidden in (0, n):
    return np.full(n, hidden == n)
  mask = np.zeros(n, bool)
  mask[rng.permutation(n)[:hidden]] = True
  return mask


def random_mask(grid: int | tuple[int, ...], ratio: float = 0.75, key: str = "mask"):
  """Hides patches at random: bool [*grid], exactly round(ratio * patches) of them True.

  MAE, He et al. 2021 (arXiv:2111.06377), Sec. 3, "random sampling" without replacement.

  Args:
    grid: (height, width) in patches; n is (n, n); (tokens,) and (frames, height, width) work too.
    ratio: 0 to 1 of the patches are hidden; 0.75 as in MAE.
    key: of the mask.

  Raises:
    UserError: a grid or ratio that is none.
  """
  shape = _shape("random_mask", grid, (1, 2, 3))
  n = math.prod(shape)
  hidden = round(_fraction("random_mask", "ratio", ratio) * n)
  return lambda example, rng: {**example, key: _hide(n, hidden, rng).reshape(shape)}


def block_mask(
  grid: int | tuple[int, int],
  count: int,
  min_size: int = 16,
  max_size: int | None = None,
  aspect: float = 0.3,
  key: str = "mask",
):
  """Hides rectangles until exactly `count` patches are hidden: bool [height, width].

  Blockwise masking, BEiT, Bao et al. 2021 (arXiv:2106.08254), Algorithm 1: a block's area is drawn
  from `min_size` to what is left, its aspect ratio from `aspect` to 1 / `aspect`, evenly in the
  logarithm as in BEiT's code. A block that would hide more than is left is drawn again; where 10
  of them in a row do not fit, patches at random are what is left, so that the count is exact.

  Args:
    grid: (height, width) in patches; n is (n, n).
    count: patches that are hidden; BEiT hides 75 of 14 x 14.
    min_size, max_size: area of a block in patches; None: all that is left.
    aspect: lowest ratio of height to width, above 0 and at most 1; its inverse is the highest.
    key: of the mask.

  Raises:
    UserError: numbers out of range, or a count above that of the patches.
  """
  height, width = _shape("block_mask", grid)
  whole_number(count, "op block_mask: count", 0)
  whole_number(min_size, "op block_mask: min_size")
  if count > height * width:
    raise UserError(f"op block_mask: count = {count}; the grid has {height * width} patches")
  if max_size is not None and whole_number(max_size, "op block_mask: max_size") < min_size:
    raise UserError(f"op block_mask: max_size = {max_size}; expected at least min_size {min_size}")
  if not _fraction("block_mask", "aspect", aspect) > 0:
    raise UserError(f"op block_mask: aspect = {aspect!r}; expected a number above 0")
  log_aspect = abs(math.log(aspect))

  def hide_block(mask: np.ndarray, most: int, rng: Any) -> bool:
    """Whether one of a few blocks that were drawn hides 1 to `most` more patches."""
    for _ in range(BLOCK_TRIES):
      area = rng.uniform(min(min_size, most), most)
      ratio = math.exp(rng.uniform(-log_aspect, log_aspect))
      h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
      if not (0 < h <= height and 0 < w <= width):
        continue
      top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
      block = mask[top : top + h, left : left + w]
      if 0 < (~block).sum() <= most:
        block[:] = True
        return True
    return False

  def run(example, rng):
    mask = np.zeros((height, width), bool)
    while left := count - mask.sum():
      if not hide_block(mask, int(min(left, max_size or left)), rng):
        visible = np.flatnonzero(~mask)
        mask.flat[visible[_hide(len(visible), int(left), rng)]] = True
    return {**example, key: mask}

  return run


def grid_mask(
  grid: int | tuple[int, int],
  kind: str = "checkerboard",
  unit: int = 1,
  ratio: float = 0.6,
  key: str = "mask",
):
  """Hides squares of `unit` x `unit` patches on a regular grid: bool [height, width].

  checkerboard: every other square, the first one stays; draws nothing. quarter: one of four stays,
  the first of every 2 x 2; draws nothing; the "grid-wise sampling" of MAE (arXiv:2111.06377,
  Fig. 6). random: ceil(ratio * squares) of them; SimMIM, Xie et al. 2021 (arXiv:2111.09886),
  Sec. 3.2, whose squares are 32 pixels: `unit=2` for patches of 16.

  Args:
    grid: (height, width) in patches; n is (n, n).
    kind: one of those above.
    unit: side of a square in patches; divides height and width.
    ratio: of the squares that are hidden, 0 to 1; for kind random.
    key: of the mask.

  Raises:
    UserError: another kind, numbers out of range, or a unit that does not divide the grid.
  """
  height, width = _shape("grid_mask", grid)
  if kind not in GRIDS:
    raise unknown("op grid_mask: kind", kind, GRIDS)
  whole_number(unit, "op grid_mask: unit")
  if height % unit or width % unit:
    raise UserError(f"op grid_mask: unit = {unit} does not divide the grid {(height, width)}")
  rows, columns = height // unit, width // unit
  i, j = np.indices((rows, columns))
  hidden = math.ceil(_fraction("grid_mask", "ratio", ratio) * rows * columns)

  def run(example, rng):
    if kind == "random":
      units = _hide(rows * columns, hidden, rng).reshape(rows, columns)
    else:
      units = (i + j) % 2 == 1 if kind == "checkerboard" else (i % 2 == 1) | (j % 2 == 1)
    return {**example, key: units.repeat(unit, 0).repeat(unit, 1)}

  return run


def tube_mask(frames: int, grid: int | tuple[int, int], ratio: float = 0.9, key: str = "mask"):
  """Hides the same patches in all frames: bool [frames, height, width].

  Tube masking, VideoMAE, Tong et al. 2022 (arXiv:2203.12602), Sec. 3.3: exactly
  round(ratio * height * width) patches of every frame, drawn once.

  Args:
    frames: in tokens along time; 8 for 16 frames in tubelets of 2.
    grid: (height, width) in patches; n is (n, n).
    ratio: 0 to 1 of the patches are hidden; 0.9 as in VideoMAE.
    key: of the mask.

  Raises:
    UserError: numbers out of range.
  """
  whole_number(frames, "op tube_mask: frames")
  shape = _shape("tube_mask", grid)
  n = math.prod(shape)
  hidden = round(_fraction("tube_mask", "ratio", ratio) * n)

  def run(example, rng):
    mask = _hide(n, hidden, rng).reshape(shape)
    return {**example, key: np.repeat(mask[None], frames, 0)}

  return run


def multi_block_mask(
  grid: int | tuple[int, int],
  targets: int = 4,
  target_scale: tuple[float, float] = (0.15, 0.2),
  target_aspect: tuple[float, float] = (0.75, 1.5),
  context_scale: tuple[float, float] = (0.85, 1.0),
  context_aspect: tuple[float, float] = (1.0, 1.0),
  min_context: int = 10,
):
  """Target blocks and a context block without them: `target_masks`, `context_mask`.

  I-JEPA, Assran et al. 2023 (arXiv:2301.08243), Sec. 3 and Appendix A.1. `target_masks` is bool
  [targets, height * width], True where a patch belongs to that target; targets may overlap.
  `context_mask` is bool [height * width], True where the context encoder sees a patch: a block less
  all targets. Rows of patches follow each other. Where fewer than `min_context` patches are left,
  all is drawn again, up to 20 times; then the draw with the largest context counts.

  Args:
    grid: (height, width) in patches; n is (n, n).
    targets: number of target blocks.
    target_scale, context_scale: (low, high) of a block's share of all patches, drawn evenly.
    target_aspect, context_aspect: (low, high) of height to width, drawn evenly.
    min_context: patches of the context.

  Raises:
    UserError: numbers out of range.
  """
  op = "multi_block_mask"
  height, width = _shape(op, grid)
  n = height * width
  whole_number(targets, f"op {op}: targets")
  if whole_number(min_context, f"op {op}: min_context") > n:
    raise UserError(f"op {op}: min_context = {min_context}; the grid has {n} patches")
  of_target = (
    _interval(op, "target_scale", target_scale, 1),
    _interval(op, "target_aspect", target_aspect),
  )
  of_context = (
    _interval(op, "context_scale", context_scale, 1),
    _interval(op, "context_aspect", context_aspect),
  )

  def block(scale: tuple[float, float], aspect: tuple[float, float], rng: Any) -> np.ndarray:
    area, ratio = n * rng.uniform(*scale), rng.uniform(*aspect)
    h = min(height, max(1, round(math.sqrt(area * ratio))))
    w = min(width, max(1, round(math.sqrt(area / ratio))))
    top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
    mask = np.zeros((height, width), bool)
    mask[top : top + h, left : left + w] = True
    return mask.reshape(-1)

  def draw(rng: Any) -> tuple[np.ndarray, np.ndarray]:
    target = np.stack([block(*of_target, rng) for _ in range(targets)])
    return block(*of_context, rng) & ~target.any(0), target

  def run(example, rng):
    best, target = draw(rng)
    for _ in range(CONTEXT_TRIES):
      if best.sum() >= min_context:
        break
      again = draw(rng)
      if again[0].sum() > best.sum():
        best, target = again
    return {**example, "context_mask": best, "target_masks": target}

  return run
