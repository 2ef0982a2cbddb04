"""Optimizers from `config.optim`: any by name, schedules, decay masks, per-regex rates, boxes.

    config.optim = dict(
      name="adamw", lr=1e-3, weight_decay=0.1, clip_norm=1.0, b2=0.95,
      schedule=dict(name="cosine", warmup_percent=2.0),
      wd_mask=".*kernel", lr_mults=[("image/.*", 0.1)], layer_decay=0.75,
      project=[("logit_scale", "clip(0, 4.6052)")], groups=[("critic/.*", dict(lr=1e-4))],
    )

One update: clip by global norm -> direction of the named optimizer -> + weight_decay * p where the
mask says so -> times the leaf's multiplier -> times -lr * schedule(step) -> boxes. Weight decay is
AdamW's (arXiv:1711.05101 as optax has it): times the learning rate. Where a recipe decouples it
(big_vision), divide its value by its learning rate.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from big_vision_like import tree
from big_vision_like.config import Config, Durations, UserError, call, parse_spec, unknown, wrap

Schedule = Callable[[Any], Any]


# -------------------------------------------------------------------------------------- schedules


def _cosine(t: Any, end: float) -> Any:
  return end + (1 - end) * 0.5 * (1 + jnp.cos(jnp.pi * t))


def _linear(t: Any, end: float) -> Any:
  return end + (1 - end) * (1 - t)


def schedule(cfg: Config, *, total_steps: int, durations: Durations) -> Schedule:
  """step -> factor of the learning rate, 1 at its peak.

  `name`: cosine or linear (to `end_factor`), rsqrt (`timescale` steps, Zhai et al. 2022), constant.
  `warmup_*`: linear from 0. `cooldown_*`: linear to 0 at the end, of whatever the schedule says.

  Raises:
    UserError: an unknown name or key, or a warm-up and cool-down longer than the run.
  """
  warmup = durations(cfg, "warmup", 0)
  cooldown = durations(cfg, "cooldown", 0)
  name = cfg.get("name", "cosine")
  names = ("cosine", "linear", "rsqrt", "constant")
  if name not in names:
    raise unknown("config.optim.schedule.name", name, names)
  end = cfg.get("end_factor", 0.0) if name in ("cosine", "linear") else 0.0
  timescale = cfg.get("timescale", 10_000) if name == "rsqrt" else 1
  if warmup + cooldown > total_steps:
    raise UserError(
      f"config.optim.schedule: warm-up {warmup} + cool-down {cooldown} steps exceed the run of "
      f"{total_steps}"
    )

  def factor(step: Any) -> Any:
    step = jnp.asarray(step, jnp.float32)
    t = jnp.clip((step - warmup) / max(total_steps - warmup, 1), 0.0, 1.0)
    if name == "cosine":
      value = _cosine(t, end)
    elif name == "linear":
      value = _linear(t, end)
    elif name == "rsqrt":
      value = jnp.sqrt(timescale / (timescale + jnp.maximum(step - warmup, 0.0)))
    else:
      value = jnp.ones(())
    if warmup:
      value = value * jnp.minimum(1.0, step / warmup)
    if cooldown:
      value = value * jnp.clip((total_steps - step) / cooldown, 0.0, 1.0)
    return value

  return factor


# ------------------------------------------------------------------------------------- directions
# Each returns (what runs before weight decay, what runs after it): trust ratios see the decay.


def _adamw(b1=0.9, b2=0.999, eps=1e-8, mu_dtype=None):
  return [optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype)], []


def _adafactor(b1=0.9, beta2_cap=0.999, decay_rate=0.8, min_dim_size_to_factor=32, eps=1e-30):
  """Scaling Vision Transformers (arXiv:2106.04560), Sec. 3.4: factored second moment whose decay
  1 - t^-0.8 is capped, momentum in bfloat16, no relative steps, no update clipping."""

  def decay(step, rate):
    return jnp.minimum(beta2_cap, 1.0 - (step + 1.0) ** -rate)

  factored = optax.scale_by_factored_rms(
    decay_rate=decay_rate,
    min_dim_size_to_factor=min_dim_size_to_factor,
    epsilon=eps,
    decay_rate_fn=decay,
  )
  momentum = [optax.ema(b1, debias=False, accumulator_dtype=jnp.bfloat16)] if b1 else []
  return [factored, *momentum], []


def _lion(b1=0.9, b2=0.99, mu_dtype=None):
  return [optax.scale_by_lion(b1, b2, mu_dtype=mu_dtype)], []


def _sgd(momentum=0.9, nesterov=False):
  return ([optax.trace(momentum, nesterov)] if momentum else []), []


def _lars(momentum=0.9, trust_coefficient=0.001, eps=0.0, nesterov=False):
  return [], [trust_ratio(trust_coefficient, eps), optax.trace(momentum, nesterov)]


def _lamb(b1=0.9, b2=0.999, eps=1e-6):
  return [optax.scale_by_adam(b1, b2, eps)], [trust_ratio(1.0, 0.0)]


def _muon(beta=0.95, ns_steps=5, nesterov=True, b1=0.9, b2=0.95, eps=1e-8):
  """Matrices inside the network by orthogonalised momentum, everything else by Adam.

  0.2 sqrt(max(m, n)) gives the update Adam's RMS (arXiv:2502.16982, Sec. 2.2).
  """
  dims = optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)

  def rescale(updates, params=None):
    del params
    return jax.tree.map(lambda u: u * 0.2 * max(u.shape[-2:]) ** 0.5, updates)

  def is_matrix(params):
    inner = lambda n, p: p.ndim >= 2 and tree.matches(".*kernel", n) and "head/" not in n
    return tree.map_with_name(lambda n, p: "muon" if inner(n, p) else "adam", params)

  muon = optax.chain(
    optax.contrib.scale_by_muon(
      ns_steps=ns_steps,
      beta=beta,
      nesterov=nesterov,
      weight_dimension_numbers=lambda params: jax.tree.map(lambda _: dims, params),
    ),
    optax.stateless(rescale),
  )
  adam = optax.scale_by_adam(b1, b2, eps)
  return [optax.partition({"muon": muon, "adam": adam}, is_matrix)], []


OPTIMIZERS = {
  "adam": _adamw,
  "adamw": _adamw,
  "adafactor": _adafactor,
  "lion": _lion,
  "sgd": _sgd,
  "lars": _lars,
  "lamb": _lamb,
  "muon": _muon,
}


def trust_ratio(coefficient: float, eps: float) -> optax.GradientTransformation:
  """u * coefficient |p| / (|u| + eps) per layer: a scanned stack's leading axis counts layers."""

  def scale(name: str, u: jax.Array, p: jax.Array) -> jax.Array:
    axes = tuple(range(1 if "blocks/" in name else 0, u.ndim))
    norm = lambda x: jnp.sqrt(jnp.sum(jnp.square(x), axis=axes, keepdims=True))
    up, pp = norm(u), norm(p)
    ratio = jnp.where((up > 0) & (pp > 0), coefficient * pp / (up + eps), 1.0)
    return u * ratio

  return optax.stateless(lambda updates, params: tree.map_with_name(scale, updates, params))


# -------------------------------------------------------------------------------- per-leaf rates


def layer_ids(params: Any) -> Any:
  """Depth of each leaf counted from the top: 0 for the head, depth + 1 for embeddings.

  A leaf of a scanned stack (`.../encoder/blocks/...`) gets an array, one number a layer.
  """
  names = tree.flatten(params)
  depth: dict[str, int] = {}
  for name, leaf in names.items():
    if found := re.match(r"(.*?)encoder/(blocks|block_(\d+))/", name):
      layers = leaf.shape[0] if found[2] == "blocks" else int(found[3]) + 1
      depth[found[1]] = max(depth.get(found[1], 0), layers)

  def from_top(name: str, leaf: Any) -> Any:
    root = next((r for r in sorted(depth, key=len, reverse=True) if name.startswith(r)), None)
    if root is None:
      return 0
    rest = name[len(root) :]
    if rest.startswith("encoder/blocks/"):
      ids = depth[root] - jnp.arange(leaf.shape[0])
      return ids.reshape(-1, *[1] * (leaf.ndim - 1))
    if found := re.match(r"encoder/block_(\d+)/", rest):
      return depth[root] - int(found[1])
    first = ("patch_embed/", "embed/", "pos_embed", "cls", "registers")
    return depth[root] + 1 if rest.startswith(first) else 0

  return tree.map_with_name(from_top, params)


def _multipliers(cfg: Config, params: Any) -> Any | None:
  rules = [tuple(rule) for rule in cfg.get("lr_mults", ())]
  decay = cfg.get("layer_decay")
  if not rules and decay is None:
    return None
  _check_used([regex for regex, _ in rules], params, "lr_mults")

  def of_leaf(name: str, _: Any, depth: Any) -> Any:
    index = tree.first_match([regex for regex, _ in rules], name)
    value = 1.0 if index is None else rules[index][1]
    return value if decay is None else value * jnp.power(decay, depth)

  return tree.map_with_name(of_leaf, params, layer_ids(params))


def _check_used(patterns: list[str], params: Any, key: str) -> None:
  for pattern in patterns:
    try:
      used = any(tree.matches(pattern, name) for name in tree.flatten(params))
    except re.error as e:
      raise UserError(f"config.optim.{key}: {pattern!r} is not a regex: {e}") from None
    if not used:
      raise UserError(f"config.optim.{key}: {pattern!r} matches no parameter")


def _project(rules: list[tuple[str, str]], params: Any) -> optax.GradientTransformation:
  """Parameter boxes: changes the update so that the new value lies inside."""
  _check_used([regex for regex, _ in rules], params, "project")
  boxes = []
  for regex, text in rules:
    calls = parse_spec(text, f"config.optim.project {regex!r}")
    if len(calls) != 1 or calls[0].name != "clip" or len(calls[0].args) != 2:
      raise UserError(f"config.optim.project: {text!r} for {regex!r}; expected 'clip(low, high)'")
    boxes.append(calls[0].args)

  def into_box(name: str, u: jax.Array, p: jax.Array) -> jax.Array:
    index = tree.first_match([regex for regex, _ in rules], name)
    return u if index is None else jnp.clip(p + u, *boxes[index]) - p

  return optax.stateless(lambda updates, params: tree.map_with_name(into_box, updates, params))


# ------------------------------------------------------------------------------------------- make

COMMON = ("name", "lr", "weight_decay", "wd_mask", "clip_norm", "schedule", "lr_mults")
COMMON += ("layer_decay", "project", "groups")


def make(
  cfg: Mapping[str, Any], *, total_steps: int, durations: Durations, params: Any
) -> tuple[optax.GradientTransformation, dict[str, Schedule]]:
  """`config.optim` -> (optax transformation, {"lr": step -> learning rate}).

  `params` are arrays or shapes. `groups = [(regex, overrides)]` gives the leaves that match other
  settings (two players of an adversarial method); each group clips and logs (`lr_1`) by itself.

  Raises:
    UserError: an unknown optimizer, key or schedule, a value that is not a number, or a regex that
      matches nothing.
  """
  cfg = wrap(cfg)
  groups = [(regex, dict(over)) for regex, over in cfg.get("groups", ())]
  rest = {k: v for k, v in cfg.items() if k != "groups"}
  kwargs = dict(total_steps=total_steps, durations=durations)
  if not groups:
    return _one(cfg, params, **kwargs)

  _check_used([regex for regex, _ in groups], params, "groups")
  patterns = [regex for regex, _ in groups]
  index = lambda name: (found := tree.first_match(patterns, name)) is not None and found + 1
  labels = tree.map_with_name(lambda name, _: str(int(index(name))), params)
  transforms, schedules = {}, {}
  for i, over in enumerate([{}, *[over for _, over in groups]]):
    flat = {n: p for n, p in tree.flatten(params).items() if int(index(n)) == i}
    settings = Config({**rest, **over}, cfg.path)
    transforms[str(i)], found = _one(settings, tree.nest(flat), **kwargs)
    schedules |= {f"{k}_{i}" if i else k: fn for k, fn in found.items()}
  return optax.partition(transforms, labels), schedules


def _one(
  cfg: Config, params: Any, *, total_steps: int, durations: Durations
) -> tuple[optax.GradientTransformation, dict[str, Schedule]]:
  name = cfg.name
  if name not in OPTIMIZERS:
    raise unknown("config.optim.name", name, list(OPTIMIZERS))
  for key in ("lr", "weight_decay", "clip_norm", "layer_decay"):
    value = cfg.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
      raise UserError(f"config.optim.{key} = {value!r}; expected a number")
  own = {k: cfg[k] for k in cfg if k not in COMMON}
  before, after = call(OPTIMIZERS[name], own, f"config.optim ({name})")
  lr = cfg.lr
  factor = schedule(
    cfg.get("schedule", {"name": "constant"}), total_steps=total_steps, durations=durations
  )
  rate = lambda step: lr * factor(step)

  chain = [optax.clip_by_global_norm(cfg.clip_norm)] if cfg.get("clip_norm") else []
  chain += before
  if cfg.get("weight_decay"):
    pattern = cfg.get("wd_mask", ".*kernel")
    _check_used([pattern], params, "wd_mask")
    # A function of the tree it is given: under `groups` that tree has holes.
    chain.append(optax.add_decayed_weights(cfg.weight_decay, lambda p: tree.mask(p, pattern)))
  chain += after
  if (mults := _multipliers(cfg, params)) is not None:
    by_name = tree.flatten(mults)
    scale = lambda n, u: u * jnp.asarray(by_name[n], u.dtype)
    chain.append(optax.stateless(lambda u, _: tree.map_with_name(scale, u)))
  chain.append(optax.scale_by_learning_rate(rate))
  if rules := [tuple(rule) for rule in cfg.get("project", ())]:
    chain.append(_project(rules, params))
  return optax.chain(*chain), {"lr": rate}
