"""What a model sees, as pictures for TensorBoard and the report; no scores.

    attention       image | mean over heads | each head: where the class token (or the pooling
                    probe) of the last layer looks, over the image
    pca             image | the first three principal components of its patches' tokens as red,
                    green and blue, of all images shown together (DINOv2, arXiv:2304.07193, Fig. 1)
    neighbours      a query and the most similar images of the split by cosine, best first
    similarity      cosines of images (rows) and texts (columns), pairs on the framed diagonal
    reconstruction  that of the evaluator `reconstruct`

The same state and data give the same picture.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from big_vision_like import axes
from big_vision_like.config import Config, UserError, unknown, whole_number
from big_vision_like.evaluators import Split, enlarged, need, reconstruct
from big_vision_like.evaluators.knn import normalized

KINDS = {  # and the predict functions that each needs
  "attention": ("attention",),
  "pca": ("image_tokens",),
  "neighbours": ("image_embed",),
  "similarity": ("image_embed", "text_embed"),
  "reconstruction": ("reconstruct",),
}
SIDE = 96  # pixels that an image has at least
GAP = 2
GREY, RIGHT, WRONG = (128, 128, 128), (40, 160, 60), (200, 40, 40)
CHUNK = 1024  # images compared at a time


class Evaluator:
  """Keys: source, pp (yields image; and text for `similarity`), batch_size, and

      kinds, rows (8), k (6), pairs (32), seed (0)

  `kinds` are names of the table above; without, all that the method has the functions for. `rows`
  are the images shown: those that begin the split, for neighbours evenly spread over it. Of `k`
  neighbours the frames are green or red where the split has labels. `pairs` are those of image and
  text. `seed` is that of reconstruction's masks.

  Raises:
    UserError: an unknown kind, or one that the method has no predict function for.
  """

  def __init__(self, config: Config, predict: Mapping[str, Callable], mesh: jax.sharding.Mesh):
    has = lambda kind: all(name in predict for name in KINDS[kind])
    kinds = config.get("kinds", None)
    kinds = (kinds,) if isinstance(kinds, str) else kinds
    self.kinds = tuple(filter(has, KINDS)) if kinds is None else tuple(kinds)
    for kind in self.kinds:
      if kind not in KINDS:
        raise unknown(f"{config.path}.kinds", kind, list(KINDS))
    names = [name for kind in self.kinds for name in KINDS[kind]]
    self.predict = {name: need(predict, name, config) for name in names}
    self.rows, self.k, self.pairs = (
      whole_number(config.get(key, default), f"{config.path}.{key}")
      for key, default in (("rows", 8), ("k", 6), ("pairs", 32))
    )
    config.get("seed", 0)
    self.split = Split(config, mesh, needs=("image",))
    if "similarity" in self.kinds and "text" not in self._first_batch():
      if kinds is not None:
        raise UserError(
          f"{config.path}.pp = {self.split.pp!r} has no tokens; similarity needs text"
        )
      self.kinds = tuple(kind for kind in self.kinds if kind != "similarity")
    self.reconstruct = None
    if "reconstruction" in self.kinds:
      self.reconstruct = reconstruct.Evaluator(config, predict, mesh)

  def run(self, state: Any) -> dict[str, float]:
    """Nothing: pictures are no scores."""
    return {}

  def pictures(self, state: Any) -> dict[str, np.ndarray]:
    """Kind -> uint8 [H, W, 3]."""
    return {kind: getattr(self, f"_{kind}")(state) for kind in self.kinds}

  def _first_batch(self) -> dict[str, jax.Array]:
    return next(self.split.batches())

  def _first(self, state: Any, rows: int, *names: str) -> list[np.ndarray]:
    """What those functions say of the first `rows` examples, or of a batch where that is fewer."""
    with jax.set_mesh(self.split.mesh):
      batch = self._first_batch()
      out = [self.predict[name](state.params, state.aux, batch) for name in names]
      *out, real = axes.to_host((*out, batch["_mask"]))
    return [np.asarray(x, np.float32)[real][:rows] for x in out]

  def _images(self, rows: int) -> list[np.ndarray]:
    return [shown(x) for x in self.split.images(list(range(rows)))]

  def _attention(self, state: Any) -> np.ndarray:
    [maps] = self._first(state, self.rows, "attention")
    return grid(
      [x, *(over(x, m) for m in (heads.mean(0), *heads))]
      for x, heads in zip(self._images(len(maps)), maps)
    )

  def _pca(self, state: Any) -> np.ndarray:
    [tokens] = self._first(state, self.rows, "image_tokens")
    colours = principal_colours(tokens)
    return grid([x, stretched(c, *x.shape[:2])] for x, c in zip(self._images(len(tokens)), colours))

  def _neighbours(self, state: Any) -> np.ndarray:
    rows = self.split.map(lambda b: {"z": self.predict["image_embed"](state.params, state.aux, b)})
    count = len(rows["z"])
    queries = np.unique(np.linspace(0, count - 1, min(self.rows, count)).round().astype(int))
    near = most_similar(rows["z"], queries, min(self.k, count - 1))
    label = rows.get("label")
    table = []
    for query, row in zip(queries.tolist(), near.tolist()):
      same = lambda i, q=query: None if label is None else bool(label[i] == label[q])
      frames = [GREY, *({None: GREY, True: RIGHT, False: WRONG}[same(i)] for i in row)]
      images = [shown(x) for x in self.split.images([query, *row])]
      table.append([framed(x, colour) for x, colour in zip(images, frames)])
    return grid(table)

  def _similarity(self, state: Any) -> np.ndarray:
    image, text = map(normalized, self._first(state, self.pairs, "image_embed", "text_embed"))
    return similarity_map(image @ text.T)

  def _reconstruction(self, state: Any) -> np.ndarray:
    picture = self.reconstruct.pictures(state)["reconstruction"]
    return picture if picture.shape[-1] == 3 else picture.repeat(3, -1)


# ---------------------------------------------------------------------------------------- pictures


def shown(image: np.ndarray) -> np.ndarray:
  """uint8 [H, W, C] -> [H', W', 3], at least `SIDE` pixels wide."""
  image = image[..., :3] if image.shape[-1] >= 3 else image[..., :1].repeat(3, -1)
  return enlarged(image, SIDE)


def stretched(x: np.ndarray, height: int, width: int) -> np.ndarray:
  """[h, w, ...] -> [height, width, ...], each pixel that of the cell it lies in."""
  rows = np.arange(height) * x.shape[0] // height
  columns = np.arange(width) * x.shape[1] // width
  return x[rows][:, columns]


def over(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """uint8 [H, W, 3] in grey under weights [h, w] from none (dark) to their largest (yellow)."""
  from matplotlib import colormaps

  heat = stretched(weights / max(float(weights.max()), 1e-12), *image.shape[:2])
  grey = image.mean(axis=-1, keepdims=True)
  return np.round(0.35 * grey + 0.65 * 255 * colormaps["inferno"](heat)[..., :3]).astype(np.uint8)


def principal_colours(tokens: np.ndarray) -> np.ndarray:
  """[n, h, w, D] -> uint8 [n, h, w, 3]: components 1 to 3, each from its least to its largest.

  Of all tokens together. A component's sign is that which makes its largest loading positive.
  """
  x = tokens.reshape(-1, tokens.shape[-1]).astype(np.float64)
  x = x - x.mean(axis=0)
  _, vectors = np.linalg.eigh(x.T @ x)
  vectors = vectors[:, ::-1][:, :3]
  largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[None], axis=0)
  z = x @ (vectors * np.where(largest < 0, -1.0, 1.0))
  z = np.pad(z, ((0, 0), (0, 3 - z.shape[1])))  # fewer than three dimensions
  span = np.ptp(z, axis=0)
  # Rounding errors of a direction without any spread are not to be seen as colours.
  z = np.where(span > 1e-6 * span.max(), (z - z.min(axis=0)) / np.maximum(span, 1e-300), 0.0)
  return np.round(z * 255).astype(np.uint8).reshape(*tokens.shape[:-1], 3)


def most_similar(z: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
  """Rows of the k others of z [N, D] with the largest cosine, best first: [Q, k].

  Of equal ones the first.
  """
  z = normalized(z)
  scores = np.concatenate([z[queries] @ z[i : i + CHUNK].T for i in range(0, len(z), CHUNK)], 1)
  scores[np.arange(len(queries)), queries] = -np.inf
  return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def similarity_map(values: np.ndarray, cell: int = 14) -> np.ndarray:
  """[n, n] -> uint8 [n * cell, n * cell, 3], least dark, largest yellow; a red diagonal frame."""
  from matplotlib import colormaps

  values = (values - values.min()) / (np.ptp(values) or 1.0)
  colours = np.round(colormaps["viridis"](values)[..., :3] * 255).astype(np.uint8)
  out = colours.repeat(cell, 0).repeat(cell, 1)
  for i in range(len(values)):
    at = slice(i * cell, (i + 1) * cell)
    out[at, at] = framed(out[at, at][1:-1, 1:-1], WRONG, 1)
  return out


def framed(image: np.ndarray, colour: tuple[int, int, int], width: int = 3) -> np.ndarray:
  """The picture with a frame around it."""
  out = np.empty((image.shape[0] + 2 * width, image.shape[1] + 2 * width, 3), np.uint8)
  out[:] = np.array(colour, np.uint8)
  out[width:-width, width:-width] = image
  return out


def grid(rows: Any) -> np.ndarray:
  """Rows of pictures of one size -> one picture, white between them."""
  return np.concatenate(
    [np.concatenate([framed(x, (255, 255, 255), GAP) for x in row], 1) for row in rows]
  )
