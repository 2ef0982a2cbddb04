"""Linear probe: logistic regression on frozen features (CLIP, arXiv:2103.00020, Sec. 3.2).

Two solvers. `lbfgs` is scikit-learn's: the exact minimum, for features that fit its one process.
`sgd` trains a linear head for each pair of learning rate and weight decay, all at once on the
device mesh (DINO, arXiv:2104.14294, and DINOv2, arXiv:2304.07193, choose among such heads).

Where there is more than one setting, each is scored on a part of the training split that is held
out; the best is fitted anew on all of it and meets the test split once.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from big_vision_like import axes
from big_vision_like.config import Config, UserError, number, unknown, whole_number
from big_vision_like.evaluators import Split, need, replicated

SOLVERS = ("lbfgs", "sgd")
Setting = Mapping[str, float]


class Evaluator:
  """Keys: source_train (fitted), source (scored), pp (yields image and label), batch_size, solver
  (lbfgs or sgd), standardize (True), held_out (0.1, the share of the training split that chooses),
  pixels (True), and those of the solver:

      lbfgs   C (1, or several: scikit-learn's inverse L2 strength), max_iter (1000)
      sgd     lr (0.001 to 1 in seven steps), weight_decay (0; both one or several), epochs (100),
              momentum (0.9), train_batch_size (1024), seed (0)

  Features are `predict["image_embed"]`, standardised by the training split's mean and deviation.
  `pixels` is the same probe on the image itself: what a representation has to beat. It does not
  depend on the state and is fitted once.

  Raises:
    UserError: an unknown solver, a number out of its range.
  """

  def __init__(self, config: Config, predict: Mapping[str, Callable], mesh: jax.sharding.Mesh):
    self.embed = need(predict, "image_embed", config)
    needs = ("image", "label")
    self.train = Split(config, mesh, needs=needs, source="source_train")
    self.test = Split(config, mesh, needs=needs)
    self.standardize = config.get("standardize", True)
    self.held_out = number(config, "held_out", 0.1, above=0)
    if self.held_out >= 1:
      raise UserError(f"{config.path}.held_out = {self.held_out!r}; expected a share below 1")
    solver = config.get("solver", "lbfgs")
    if solver not in SOLVERS:
      raise unknown(f"{config.path}.solver", solver, SOLVERS)
    if solver == "lbfgs":
      max_iter = int(number(config, "max_iter", 1000, above=0))
      self.settings = [{"C": c} for c in numbers(config, "C", 1.0, above=0)]
      self.solve = functools.partial(lbfgs, max_iter=max_iter)
    else:
      rates = numbers(config, "lr", (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0), above=0)
      pairs = itertools.product(rates, numbers(config, "weight_decay", 0.0))
      self.settings = [{"lr": lr, "weight_decay": decay} for lr, decay in pairs]
      size = whole_number(config.get("train_batch_size", 1024), f"{config.path}.train_batch_size")
      self.solve = functools.partial(
        sgd,
        epochs=number(config, "epochs", 100, above=0),
        momentum=number(config, "momentum", 0.9),
        batch_size=size,
        seed=config.get("seed", 0),
        mesh=mesh,
      )
    self.has_pixels, self.pixels = config.get("pixels", True), None

  def _scores(self, rows: Callable[[Split], dict[str, np.ndarray]]) -> dict[str, float]:
    fit, score = rows(self.train), rows(self.test)
    args = (fit["x"], fit["label"], score["x"], score["label"], self.settings, self.solve)
    return best_probe(*args, standardize=self.standardize, held_out=self.held_out)

  def run(self, state: Any) -> dict[str, float]:
    """`accuracy` of the features and `pixels` of the raw image; with several settings also that
    of the best (`C`, or `lr` and `weight_decay`) and its accuracy on the `held_out` part."""
    out = self._scores(lambda split: split.map(self._embed(state)))
    if self.has_pixels and self.pixels is None:
      self.pixels = self._scores(Split.pixels)["accuracy"]
    return out | ({"pixels": self.pixels} if self.has_pixels else {})

  def _embed(self, state: Any) -> Callable:
    return lambda batch: {"x": self.embed(state.params, state.aux, batch)}


def numbers(cfg: Config, key: str, default: Any, above: float | None = None) -> tuple[float, ...]:
  """`cfg[key]`, one number or several, each checked as `config.number` does."""
  values = cfg.get(key, default)
  values = values if isinstance(values, (tuple, list)) else (values,)
  if not values:
    raise UserError(f"{cfg.path}.{key} = {values!r}; expected a number or several")
  return tuple(number(Config({key: v}, cfg.path), key, above=above) for v in values)


def best_probe(
  x_train: np.ndarray,
  y_train: np.ndarray,
  x_test: np.ndarray,
  y_test: np.ndarray,
  settings: Sequence[Setting],
  solve: Callable,
  *,
  standardize: bool = True,
  held_out: float = 0.1,
) -> dict[str, float]:
  """`accuracy` on the test rows [n, ...] of the setting that is best on the held-out rows.

  `solve(x, y, settings)` gives, for each setting, a function from features to classes. Features
  that are not finite score zero.
  """
  from sklearn.preprocessing import StandardScaler

  x_train, x_test = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (x_train, x_test))
  if not (np.isfinite(x_train).all() and np.isfinite(x_test).all()):
    return {"accuracy": 0.0}
  if standardize:
    scale = StandardScaler().fit(x_train)
    x_train, x_test = scale.transform(x_train), scale.transform(x_test)
  out = {}
  if len(settings) > 1:
    order = np.random.default_rng(0).permutation(len(x_train))
    choose, keep = np.split(order, [max(1, round(held_out * len(order)))])
    heads = solve(x_train[keep], y_train[keep], settings)
    scores = [float((head(x_train[choose]) == y_train[choose]).mean()) for head in heads]
    best = int(np.argmax(scores))
    settings = settings[best : best + 1]
    out = {**settings[0], "held_out": scores[best]}
  (head,) = solve(x_train, y_train, settings)
  return {"accuracy": float((head(x_test) == y_test).mean()), **out}


def lbfgs(
  x: np.ndarray, y: np.ndarray, settings: Sequence[Setting], max_iter: int = 1000
) -> list[Callable]:
  """L2-regularised logistic regression by scikit-learn, one fit for each C."""
  from sklearn.linear_model import LogisticRegression

  fit = lambda c: LogisticRegression(C=c, max_iter=max_iter).fit(x, y)
  return [fit(setting["C"]).predict for setting in settings]


# -------------------------------------------------------------------------------------- SGD sweep


def sgd(
  x: np.ndarray,
  y: np.ndarray,
  settings: Sequence[Setting],
  *,
  epochs: float,
  momentum: float,
  batch_size: int,
  seed: int,
  mesh: jax.sharding.Mesh,
) -> list[Callable]:
  """A head for each (lr, weight_decay), trained at once: softmax regression by SGD with momentum.

      g = grad of the mean cross entropy + weight_decay W     (none on the bias)
      m = momentum m + g,  W = W - lr cos(t) m                cosine to zero, W starts at zero

  The batches are split over the devices, the heads are whole on each.
  """
  classes, y = np.unique(y, return_inverse=True)
  batch_size = -(-min(batch_size, len(x)) // axes.num_batch_shards(mesh))
  batch_size *= axes.num_batch_shards(mesh)
  steps = max(1, round(epochs * len(x) / batch_size))
  shape = (len(settings), x.shape[1], len(classes))
  zeros = {
    "kernel": np.zeros(shape, np.float32),
    "bias": np.zeros((shape[0], shape[2]), np.float32),
  }
  whole = lambda tree: jax.tree.map(lambda v: replicated(v, mesh), tree)
  of = lambda key: whole(np.array([s[key] for s in settings], np.float32))
  heads, moved, rates, decays = whole(zeros), whole(zeros), of("lr"), of("weight_decay")
  same = jax.tree.map(lambda v: v.sharding, (heads, moved))

  @functools.partial(jax.jit, out_shardings=same, donate_argnums=(0, 1))
  def update(heads: Any, moved: Any, batch: Any, share: jax.Array) -> Any:
    def one(head: Any, m: Any, lr: jax.Array, decay: jax.Array) -> Any:
      g = jax.grad(_xent)(head, batch["x"], batch["y"])
      g["kernel"] += decay * head["kernel"]
      m = jax.tree.map(lambda m, g: momentum * m + g, m, g)
      rate = lr * 0.5 * (1 + jnp.cos(jnp.pi * share))
      return jax.tree.map(lambda w, m: w - rate * m, head, m), m

    return jax.vmap(one)(heads, moved, rates, decays)

  with jax.set_mesh(mesh):
    for step, rows in enumerate(row_batches(len(x), batch_size, steps, seed)):
      rows = np.array_split(rows, jax.process_count())[jax.process_index()]
      batch = axes.put_batch(mesh, {"x": x[rows].astype(np.float32), "y": y[rows]})
      heads, moved = update(heads, moved, batch, np.float32(step / steps))
  found = jax.tree.map(np.asarray, heads)
  logits = lambda i, x: x @ found["kernel"][i] + found["bias"][i]
  return [lambda x, i=i: classes[logits(i, x).argmax(axis=1)] for i in range(len(settings))]


def _xent(head: Mapping[str, jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
  logits = x @ head["kernel"] + head["bias"][None]
  return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))


def row_batches(count: int, size: int, steps: int, seed: int) -> Iterator[np.ndarray]:
  """`steps` batches of `size` of the rows 0 to count - 1: all, in a new order each epoch."""
  rng, left = np.random.default_rng(seed), np.zeros(0, int)
  for _ in range(steps):
    while len(left) < size:
      left = np.concatenate([left, rng.permutation(count)])
    yield left[:size]
    left = left[size:]
