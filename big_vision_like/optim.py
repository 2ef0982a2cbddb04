"""The optimizer and its schedules, from `config.optim`.

    update = -lr(step) * mult * (direction(grad) + weight_decay * param)

`clip_norm` clips the gradients of all parameters together; `direction` is an optax transform by
name; the decay is decoupled (arXiv:1711.05101) and follows the learning rate and its schedule, as
in `optax.adamw` (big_vision's `wd` leaves the peak rate out: its `wd` is `lr * weight_decay` here);
`mult` comes from `lr_mults` and `layer_decay`; `project` keeps parameters in boxes. Regexes follow
`tree.matches`, the first match wins, and one that matches no parameter is an error.

A scanned stack (a path component `blocks`) has its layers on a leading axis. What works per layer
(trust ratios, block clipping, orthogonalisation, layer-wise decay) treats each slice as a leaf of
its own, so that a scanned and an unrolled model train alike.
"""

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from big_vision_like import schedules, tree
from big_vision_like.config import Config, Durations, UserError, number, parse_spec, unknown, wrap
from big_vision_like.schedules import Schedule

Shapes = Mapping[str, tuple[int, ...]]  # path -> shape
COMMON = ("name", "lr", "schedule", "weight_decay", "weight_decay_end", "wd_mask", "lr_mults")
COMMON += ("layer_decay",)
WHOLE = ("clip_norm", "project", "groups")  # keys that no group can override
EMBEDDING = r"(\w*embed\w*|cls(_token)?|mask_token|registers?)(/.*)?"


def make(
  cfg: Mapping[str, Any], *, total_steps: int, durations: Durations, params: Any
) -> tuple[optax.GradientTransformation, dict[str, Schedule]]:
  """`config.optim` -> the transformation, and the learning rates by name for the log.

  Args:
    cfg: `name`, `lr` and, where wanted, `schedule`, `weight_decay`, `weight_decay_end` (where the
      decay goes by half a cosine over the run, as in DINO), `wd_mask` (a regex or several;
      by default leaves named `kernel` of two dimensions or more), `lr_mults=[(regex, mult)]`,
      `layer_decay` (arXiv:2106.08254: rate times decay^(depth - i) in block i counted from 0,
      decay^(depth + 1) in embeddings, 1 elsewhere), `clip_norm`,
      `project=[(regex, "clip(lo, hi)")]` and `groups=[(regex, overrides)]`: parameters with an
      optimizer of their own, which inherits what it does not override (a group with another
      `name` inherits none of the transform's own keys). All other keys belong to the transform.
    total_steps: length of the run, the end of the schedules.
    durations: reads `warmup_*`, `cooldown_*`, `timescale_*`.
    params: arrays or `jax.ShapeDtypeStruct`s; only paths and shapes are used.

  Returns:
    The transformation, and `{"lr": fn, "lr_group0": fn, ...}`, each `step -> rate`.

  Raises:
    UserError: an unknown name or key, a value of the wrong type, a regex that matches nothing.
  """
  cfg = wrap(cfg)
  shapes = {name: tuple(x.shape) for name, x in tree.flatten(params).items()}
  build = lambda c: _make_group(c, total_steps, durations, shapes)
  main = Config({k: v for k, v in cfg.items() if k not in WHOLE}, cfg.path)
  whole = Config({k: v for k, v in cfg.items() if k in WHOLE}, cfg.path)
  tx, schedule = build(main)
  rates = {"lr": schedule}

  if groups := _pairs(whole, "groups", Mapping):
    labels = dict.fromkeys(shapes, "main")
    txs = {"main": tx}
    for i, (regex, overrides) in reversed(list(enumerate(groups))):  # first match wins
      where = f"{cfg.path}.groups {regex!r}"
      if bad := [k for k in overrides if k in WHOLE]:
        raise UserError(f"{where}: {bad[0]} holds for all parameters; set it in {cfg.path}")
      inherited = main.to_dict()
      if overrides.get("name", main.name) != main.name:
        inherited = {k: v for k, v in inherited.items() if k in COMMON}
      label = f"group{i}"
      txs[label], rates[f"lr_{label}"] = build(Config({**inherited, **overrides}, where))
      labels |= dict.fromkeys(tree.find(regex, shapes, where), label)
    tx = optax.partition(txs, tree.unflatten(params, labels))

  before, after = [], []
  if (clip := number(whole, "clip_norm", None, above=0)) is not None:
    before.append(_clip_by_global_norm(clip))
  if boxes := _pairs(whole, "project", str):
    after.append(_project(boxes, shapes, f"{cfg.path}.project"))
  return optax.chain(*before, tx, *after), rates


def _make_group(
  cfg: Config, total_steps: int, durations: Durations, shapes: Shapes
) -> tuple[optax.GradientTransformation, Schedule]:
  schedule = schedules.make(
    cfg.get("schedule", {"name": "constant"}), number(cfg, "lr"), total_steps, durations
  )
  decay = number(cfg, "weight_decay", 0.0)
  decay_end = number(cfg, "weight_decay_end", decay)
  decayed = _decayed(cfg, shapes)
  core = _core(cfg, shapes, decayed)
  steps = [*core.direction]
  if decay or decay_end:
    rate = decay if decay == decay_end else schedules.cosine(decay, decay_end, total_steps)
    mask = lambda params: tree.map_with_name(lambda name, _: name in decayed, params)
    steps.append(optax.add_decayed_weights(rate, mask))
  steps += [*core.trust, optax.scale_by_learning_rate(schedule)]
  if mults := _lr_mults(cfg, shapes):
    steps.append(_by_name(lambda name, u, p: u * mults[name].astype(u.dtype)))
  return optax.chain(*steps, *core.momentum), schedule


def _by_name(fn: Callable) -> optax.GradientTransformation:
  """A stateless transform, `fn(path, update, param)`; leaves of other groups are not visited."""
  return optax.stateless(lambda updates, params: tree.map_with_name(fn, updates, params))


def _clip_by_global_norm(limit: float) -> optax.GradientTransformation:
  """optax's, as one factor for all leaves.

  optax divides each element by the norm; XLA:CPU computes no division twice, so it would write all
  clipped gradients to memory before the moments read them.
  """

  def clip(updates: Any, params: Any) -> Any:
    norm = optax.tree.norm(updates)
    factor = jnp.where(norm < limit, 1.0, limit / norm)
    return jax.tree.map(lambda u: u * factor.astype(u.dtype), updates)

  return optax.stateless(clip)


# -------------------------------------------------------------------------------------- transforms


class Core(NamedTuple):
  """What an optimizer does before the decay is added, after it, and after the learning rate."""

  direction: Sequence[optax.GradientTransformation] = ()
  trust: Sequence[optax.GradientTransformation] = ()
  momentum: Sequence[optax.GradientTransformation] = ()


def _adam(
  shapes, decayed, *, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, mu_dtype=None, nesterov=False
):
  return Core([optax.scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov)])


def _lion(shapes, decayed, *, b1=0.9, b2=0.99, mu_dtype=None):
  return Core([optax.scale_by_lion(b1, b2, mu_dtype)])


def _sgd(shapes, decayed, *, momentum=0.9, nesterov=False):
  return Core([optax.trace(momentum, nesterov)] if momentum else [])


def _adafactor(
  shapes,
  decayed,
  *,
  b1=0.9,
  beta2_cap=0.999,
  decay_rate=0.8,
  clipping=1.0,
  min_dim_size_to_factor=128,
  eps=1e-30,
  mu_dtype="bfloat16",
):
  """Adafactor (arXiv:1804.04235) as in Scaling Vision Transformers (arXiv:2106.04560, Sec. 3.4).

  Momentum `b1` in bfloat16, no scaling by the parameter, beta2 = 1 - t^-decay_rate, capped.
  128 as smallest factored dimension also keeps a stack's depth from being factored.
  """
  rate = lambda step, exponent: jnp.minimum(beta2_cap, 1.0 - (step + 1.0) ** -exponent)
  out = [
    optax.scale_by_factored_rms(
      decay_rate=decay_rate,
      min_dim_size_to_factor=min_dim_size_to_factor,
      epsilon=eps,
      decay_rate_fn=rate,
    )
  ]
  if clipping:
    out.append(_per_layer(optax.clip_by_block_rms(clipping)))
  if b1:
    out.append(optax.ema(b1, debias=False, accumulator_dtype=mu_dtype))
  return Core(out)


def _lars(shapes, decayed, *, momentum=0.9, nesterov=False, trust_coefficient=0.001, eps=0.0):
  """LARS (arXiv:1708.03888); as is the practice, leaves without decay keep their plain gradient."""
  trust = optax.scale_by_trust_ratio(trust_coefficient=trust_coefficient, eps=eps)
  return Core([], [_per_layer(trust, decayed)], [optax.trace(momentum, nesterov)])


def _lamb(shapes, decayed, *, b1=0.9, b2=0.999, eps=1e-6):
  """LAMB (arXiv:1904.00962)."""
  return Core([optax.scale_by_adam(b1, b2, eps)], [_per_layer(optax.scale_by_trust_ratio())])


def _muon(
  shapes, decayed, *, beta=0.95, ns_steps=5, nesterov=True, rms=0.2, b1=0.9, b2=0.999, eps=1e-8
):
  """Muon for the hidden matrices, Adam for the rest.

  Hidden: two-dimensional kernels outside components named `*embed*` and `*head*`. Their update is
  scaled to the root mean square `rms` of Adam's (arXiv:2502.16982, Eq. 4), so one rate serves both.
  """
  outside = re.compile(r"(^|/)[^/]*(embed|head)[^/]*(/|$)")
  hidden = {
    name
    for name, shape in shapes.items()
    if name.rsplit("/", 1)[-1] == "kernel" and _ndim(name, shape) == 2 and not outside.search(name)
  }
  # The last two axes are the matrix; a stack's depth in front of them is a batch of matrices.
  numbers = lambda updates: jax.tree.map(
    lambda u: optax.contrib.MuonDimensionNumbers(u.ndim - 2, u.ndim - 1), updates
  )
  matrices = optax.chain(
    optax.contrib.scale_by_muon(
      ns_steps=ns_steps, beta=beta, nesterov=nesterov, weight_dimension_numbers=numbers
    ),
    _by_name(lambda name, u, p: u * (rms * math.sqrt(max(u.shape[-2:])))),
  )
  labels = lambda params: tree.map_with_name(
    lambda name, _: "muon" if name in hidden else "adam", params
  )
  return Core(
    [optax.partition({"muon": matrices, "adam": optax.scale_by_adam(b1, b2, eps)}, labels)]
  )


TRANSFORMS = {
  "adam": _adam,
  "adamw": _adam,
  "adafactor": _adafactor,
  "lamb": _lamb,
  "lars": _lars,
  "lion": _lion,
  "muon": _muon,
  "sgd": _sgd,
}
# Taken from optax as `scale_by_<name>`; their keys are its keywords.
FROM_OPTAX = (
  "adadelta",
  "adamax",
  "adan",
  "amsgrad",
  "belief",
  "novograd",
  "radam",
  "rms",
  "rss",
  "sm3",
  "stddev",
  "yogi",
)


def _core(cfg: Config, shapes: Shapes, decayed: set[str]) -> Core:
  """The transform that `cfg.name` asks for, with all keys of `cfg` that are not common ones."""
  name = cfg.name
  if name in TRANSFORMS:
    fn, args = TRANSFORMS[name], (shapes, decayed)
  elif name in FROM_OPTAX:
    fn, args = getattr(optax, f"scale_by_{name}"), ()
  else:
    raise unknown(f"{cfg.path}.name", name, (*TRANSFORMS, *FROM_OPTAX))
  params = dict(list(inspect.signature(fn).parameters.items())[len(args) :])
  kwargs = {}
  for key in cfg:
    if key in COMMON:
      continue
    if key not in params:
      raise unknown(f"{cfg.path}: key", key, (*params, *COMMON, *WHOLE))
    default = params[key].default
    if isinstance(default, bool):
      if not isinstance(cfg[key], bool):
        raise UserError(f"{cfg.path}.{key} = {cfg[key]!r}; expected True or False")
      kwargs[key] = cfg[key]
    elif isinstance(default, (int, float)):
      kwargs[key] = number(cfg, key)
    else:
      kwargs[key] = cfg[key]
    if key.endswith("dtype") and cfg[key] not in (None, "float32", "bfloat16"):
      raise UserError(f"{cfg.path}.{key} = {cfg[key]!r}; expected 'float32' or 'bfloat16'")
  core = fn(*args, **kwargs)
  return core if isinstance(core, Core) else Core([core])


def _per_layer(
  tx: optax.GradientTransformation, only: set[str] | None = None
) -> optax.GradientTransformation:
  """A stateless transform leaf by leaf, layer by layer; `only` these leaves, where given."""
  one = lambda u, p: tx.update(u, optax.EmptyState(), p)[0]

  def fn(name, u, p):
    if only is not None and name not in only:
      return u
    return (jax.vmap(one) if _is_stacked(name) else one)(u, p)

  return _by_name(fn)


# ------------------------------------------------------------------------------------ which leaves


def _is_stacked(name: str) -> bool:
  return "blocks" in name.split("/")


def _ndim(name: str, shape: tuple[int, ...]) -> int:
  """Dimensions of the leaf in one layer."""
  return len(shape) - _is_stacked(name)


def _decayed(cfg: Config, shapes: Shapes) -> set[str]:
  masks = cfg.get("wd_mask")
  if masks is None:
    is_kernel = lambda name, shape: name.rsplit("/", 1)[-1] == "kernel" and _ndim(name, shape) > 1
    return {name for name, shape in shapes.items() if is_kernel(name, shape)}
  masks, where = (masks,) if isinstance(masks, str) else masks, f"{cfg.path}.wd_mask"
  if not isinstance(masks, Sequence) or not all(isinstance(m, str) for m in masks):
    raise UserError(f"{where} = {masks!r}; expected a regex or a list of them")
  return {name for regex in masks for name in tree.find(regex, shapes, where)}


def _lr_mults(cfg: Config, shapes: Shapes) -> dict[str, np.ndarray]:
  """path -> factor, [] or [depth, 1, ...] for a stack; empty where the config asks for none."""
  pairs = _pairs(cfg, "lr_mults", (int, float))
  decay = number(cfg, "layer_decay", None, above=0)
  if not pairs and decay is None:
    return {}
  mults = {name: np.float32(1) for name in shapes}
  for regex, mult in reversed(pairs):  # first match wins
    names = tree.find(regex, shapes, f"{cfg.path}.lr_mults")
    mults |= dict.fromkeys(names, np.float32(mult))
  if decay is None:
    return mults
  layers = _layer_mults(decay, shapes, f"{cfg.path}.layer_decay")
  return {name: np.asarray(mults[name] * layers[name], np.float32) for name in shapes}


def _layer_mults(decay: float, shapes: Shapes, where: str) -> dict[str, np.ndarray]:
  """decay^(layers above the leaf); every stack of blocks counts its own depth."""
  depths: dict[tuple[str, ...], int] = {}  # path of a stack's parent -> depth
  block = {}  # path -> (parent, number of its block, or all of them for a stack)
  for name, shape in shapes.items():
    parts = tuple(name.split("/"))
    for i, part in enumerate(parts):
      if part == "blocks" or re.fullmatch(r"block_\d+", part):
        index = np.arange(shape[0]) if part == "blocks" else int(part[len("block_") :])
        block[name] = parts[:i], index
        depths[parts[:i]] = max(depths.get(parts[:i], 0), int(np.max(index)) + 1)
        break
  if not depths:
    raise UserError(f"{where} = {decay}: no parameter lies in 'blocks/...' or 'block_<i>/...'")

  def depth_near(name: str) -> int:
    """Depth of the stack that shares most of the path: that of the same tower."""
    parts = name.split("/")
    common = lambda parent: next(
      (i for i, (a, b) in enumerate(zip(parent, parts)) if a != b), min(len(parent), len(parts))
    )
    return depths[max(depths, key=lambda parent: (common(parent), depths[parent]))]

  out = {}
  for name, shape in shapes.items():
    if name in block:
      parent, index = block[name]
      mult = decay ** (depths[parent] - np.asarray(index, np.float32))
      out[name] = mult.reshape(-1, *[1] * (len(shape) - 1)) if mult.ndim else mult
    else:
      is_embedding = re.search(rf"(?:^|/)(?:{EMBEDDING})$", name)
      out[name] = np.float32(decay ** (depth_near(name) + 1) if is_embedding else 1.0)
  return out


def _project(
  boxes: Sequence[tuple[str, str]], shapes: Shapes, where: str
) -> optax.GradientTransformation:
  """Changes the updates so that parameters end in their boxes (up to one rounding)."""
  bounds: dict[str, tuple[float, float]] = {}
  for regex, text in reversed(boxes):  # first match wins
    calls = parse_spec(text, where)
    is_number = lambda x: isinstance(x, (int, float)) and not isinstance(x, bool)
    if len(calls) != 1 or calls[0].name != "clip" or calls[0].kwargs or len(calls[0].args) != 2:
      raise UserError(f"{where}: {text!r} for {regex!r}; expected 'clip(lo, hi)'")
    low, high = calls[0].args
    if not (is_number(low) and is_number(high) and low <= high):
      raise UserError(f"{where}: {text!r} for {regex!r}; expected two numbers, the smaller first")
    bounds |= dict.fromkeys(tree.find(regex, shapes, where), (low, high))
  return _by_name(lambda n, u, p: jnp.clip(p + u, *bounds[n]) - p if n in bounds else u)


# ------------------------------------------------------------------------------------------ values


def _pairs(cfg: Config, key: str, kind: Any) -> list[tuple[str, Any]]:
  """`cfg[key]` as a list of (regex, value of `kind`); empty where missing."""
  pairs = cfg.get(key) or []
  ok = lambda p: (
    isinstance(p, (list, tuple))
    and len(p) == 2
    and isinstance(p[0], str)
    and isinstance(p[1], kind)
    and not isinstance(p[1], bool)
  )
  if not isinstance(pairs, (list, tuple)) or not all(ok(p) for p in pairs):
    raise UserError(f"{cfg.path}.{key} = {pairs!r}; expected a list of (regex, value) pairs")
  return list(pairs)
