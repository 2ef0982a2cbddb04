"""Training steps on a CPU: against big_vision's and PyTorch's, and what they cost by count.

    step/<size>/{big_vision, big_vision_scan, torch, torch_compiled}   seconds of a step
    peak/<size>                  share of the f32 matmul peak
    memory/<size>                temporary bytes of scan + remat against big_vision's scan
    compile/<size>/<form>        seconds to trace and compile, ours and big_vision's
    flops/<method>               of the lowered step of its paper's config over the analytic count
    mae/<variant>, flip/...      what leaving patches out saves

A step is value, gradients, clipping, AdamW and the norms a log wants, the state donated; 8 pairs,
two towers of one size, 64 tokens, 32,000 words. `big_vision.py` is the first peer.
"""

import functools
import importlib
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from big_vision_like import flops, sharding, step, train
from big_vision_like import state as state_lib
from big_vision_like.config import wrap
from big_vision_like.models import two_towers, vit
from tools.bench import analytic, big_vision, harness, torch_peers
from tools.bench.harness import Options, Row, Run, Target, compare, share_of_peak

METHODS = pathlib.Path(train.__file__).parent / "methods"
OPTIM = dict(name="adamw", lr=1e-3, b2=0.95, weight_decay=0.1, clip_norm=1.0)
TOKENS, VOCABULARY = 64, 32_000


class Size(NamedTuple):
  """Of both towers, and the bounds of its rows.

  Attributes:
    variant: of `models.vit`.
    res: pixels, a side.
    batch: pairs.
    big_vision, torch, peak, memory: rows 9 to 12 of the targets, or None.
  """

  variant: str
  res: int
  batch: int = 8
  big_vision: Target | None = None
  torch: Target | None = None
  peak: Target | None = None
  memory: Target | None = None


SIZES = {
  "siglip_s16_224": Size(
    "S/16",
    224,
    big_vision=Target("9", 1.15, 1.4),
    torch=Target("10", 1.0, 1.3),
    peak=Target("11", 0.55, 0.70),
    memory=Target("12", 0.85, 0.70, at_most=True),
  ),
  "siglip_ti16_96": Size(
    "Ti/16", 96, big_vision=Target("9", 1.0, 1.25), torch=Target("10", 1.0, 1.3)
  ),
}
TINY = {"siglip_mu16_32": Size("mu/16", 32, batch=4)}
FLOPS = Target("6", 1.03, 1.015, at_most=True)
MAE = {  # the stretch of row 7 is the theory
  "B/16": Target("7", 1.75, analytic.mae_saving("B/16")),
  "L/16": Target("7", 2.9, analytic.mae_saving("L/16")),
  "H/14": Target("7", 3.35, analytic.mae_saving("H/14")),
}
FLIP = {
  0.5: (Target("8", 2.0), Target("8", 1.6)),
  0.25: (Target("8", 4.0), Target("8", 2.3, 2.37)),
}


def rows(options: Options) -> Iterator[Row]:
  """All of them; the counts first, which no other process can disturb."""
  yield from _counts(options)
  for name, size in (TINY if options.smoke else SIZES).items():
    yield from _memory(options, name, size)
    yield from _compiles(options, name, size)
    yield from _steps(options, name, size)


# ------------------------------------------------------------------------------------------- steps


def config_of(size: Size, *, scan: bool, remat: str = "none") -> dict[str, Any]:
  """SigLIP of this size in float32, with AdamW."""
  layout = dict(scan=scan, remat=remat, dtype="float32")
  name = size.variant.split("/")[0]
  res = (size.res, size.res)
  return dict(
    method="siglip",
    seed=0,
    grad_accum=1,
    total_steps=1000,
    mesh=dict(fsdp=1),
    sharding=dict(rules=()),
    model=dict(
      image=dict(variant=size.variant, pool="map", image_size=res, **layout),
      text=dict(variant=name, vocab_size=VOCABULARY, max_len=TOKENS, pool="last", **layout),
    ),
    loss=dict(impl="ring"),
    input=dict(
      spec=dict(image=f"float32({size.res}, {size.res}, 3)", text=f"int32({TOKENS})"),
      batch_size=size.batch,
    ),
    optim=OPTIM,
  )


class Built(NamedTuple):
  """A step that is not compiled yet.

  Attributes:
    jitted: (state, batch) -> (state, metrics).
    state: shapes of its state.
    init: () -> the state.
    flops: of the model.
  """

  jitted: Callable
  state: Any
  init: Callable[[], Any]
  flops: int = 0


def _ours(size: Size, *, scan: bool, remat: str = "none") -> Built:
  config = config_of(size, scan=scan, remat=remat)
  mesh = sharding.make_mesh(config["mesh"], jax.devices()[:1])
  built = train.build(config, num_examples=None, mesh=mesh)
  jitted = step.make_train_step(built.method, built.tx, seed=0)
  init = lambda: state_lib.init(built.method, built.tx, jax.random.key(0), built.batch)
  key = jax.random.key(0)
  shapes = state_lib.abstract(built.method, built.tx, key, built.batch)
  return Built(jitted, shapes, init, train.model_flops(built))


def _big_vision(size: Size, *, scan: bool) -> Built:
  """Its scan comes with remat that keeps nothing but the inputs of blocks."""
  width, depth, mlp_dim, heads = vit.SIZES[size.variant.split("/")[0]]
  model = big_vision.SigLip(
    width, depth, mlp_dim, heads, vocab_size=VOCABULARY, scan=scan, remat=scan
  )
  tx = big_vision.optimizer(
    lambda _: OPTIM["lr"], OPTIM["weight_decay"], OPTIM["clip_norm"], b2=OPTIM["b2"]
  )
  image, text = (jnp.zeros((1, *x.shape[1:]), x.dtype) for x in _batch(size).values())

  def init():
    params = model.init(jax.random.key(0), image, text)["params"]
    return params, tx.init(params)

  return Built(big_vision.train_step(model, tx), jax.eval_shape(init), jax.jit(init))


@functools.cache
def _batch(size: Size) -> dict[str, jax.Array]:
  rng = np.random.default_rng(0)
  image = rng.standard_normal((size.batch, size.res, size.res, 3), np.float32)
  text = rng.integers(0, VOCABULARY, (size.batch, TOKENS), np.int32)
  return {"image": jnp.asarray(image), "text": jnp.asarray(text)}


def _compile(built: Built, size: Size) -> Any:
  return built.jitted.lower(built.state, _batch(size)).compile()


def _running(built: Built, size: Size) -> Run:
  compiled, state = _compile(built, size), built.init()

  def run():
    nonlocal state
    state, metrics = compiled(state, _batch(size))
    return state, metrics

  return run


def _steps(options: Options, name: str, size: Size) -> Iterator[Row]:
  """Ours unrolled; one at a time in memory is not needed: the largest has 60 M parameters."""
  ours = functools.cache(lambda: _ours(size, scan=False))
  run = functools.cache(lambda: _running(ours(), size))

  def torch(compile: bool) -> Run:
    towers = two_towers.make(wrap(config_of(size, scan=False)).model)
    return torch_peers.siglip(towers.image, towers.text, size.batch)(compile)

  peers = {
    "big_vision": lambda: _running(_big_vision(size, scan=False), size),
    "big_vision_scan": lambda: _running(_big_vision(size, scan=True), size),
    "torch": lambda: torch(compile=False),
    "torch_compiled": lambda: torch(compile=True),
  }
  targets = {"big_vision": size.big_vision, "torch": size.torch}
  yield from compare(
    options, f"step/{name}", run, peers, targets={k: v for k, v in targets.items() if v}
  )
  if options.wants(f"peak/{name}"):
    peak = harness.matmul(options)
    yield share_of_peak(options, f"peak/{name}", run(), ours().flops, peak, target=size.peak)


def _memory(options: Options, name: str, size: Size) -> Iterator[Row]:
  if not options.wants(f"memory/{name}"):
    return
  temp = lambda built: _compile(built, size).memory_analysis().temp_size_in_bytes
  mine, peer = temp(_ours(size, scan=True, remat="full")), temp(_big_vision(size, scan=True))
  what, values = "temporary bytes / big_vision's", {"temp_bytes": mine, "peer_temp_bytes": peer}
  yield Row(f"memory/{name}", what, mine / peer, target=size.memory, values=values)


def _compiles(options: Options, name: str, size: Size) -> Iterator[Row]:
  """Without the persistent cache. Once each: nothing is timed against anything but itself."""
  forms = {
    "scan": lambda: _ours(size, scan=True),
    "unroll": lambda: _ours(size, scan=False),
  }
  wanted = [form for form in forms if options.wants(f"compile/{name}/{form}")]
  if not wanted:
    return

  def seconds(build: Callable[[], Built]) -> float:
    built, _ = build(), _batch(size)
    began = options.clock()
    _compile(built, size)
    return options.clock() - began

  cached = jax.config.jax_enable_compilation_cache
  jax.config.update("jax_enable_compilation_cache", False)
  try:
    peer = seconds(lambda: _big_vision(size, scan=False))
    for form in wanted:
      mine = seconds(forms[form])
      values = {"seconds": mine, "big_vision_unrolled_seconds": peer}
      what = "compile time / big_vision's unrolled"
      yield Row(f"compile/{name}/{form}", what, mine / peer, values=values)
  finally:
    jax.config.update("jax_enable_compilation_cache", cached)


# ------------------------------------------------------------------------------------------ counts


def _unrolled(node: Any) -> Any:
  """The config without remat, and without scan wherever a transformer can have one."""
  if not isinstance(node, Mapping):
    return node
  out = {k: "none" if k == "remat" else _unrolled(v) for k, v in node.items()}
  name = node.get("name", "vit" if "remat" in node else None)
  return out | ({"scan": False} if name == "vit" else {})


def _lowered_flops(method: str, smoke: bool) -> tuple[float, int]:
  """Of XLA's own count of the step before it is optimised, and of `flops.count`.

  The first has everything, elementwise work and the optimizer too; the second is what the model
  asks for. Both are of the whole batch. Nothing runs, nothing compiles.
  """
  arg = "smoke" if smoke else None
  config = _unrolled(importlib.import_module(f"configs.{method}").get_config(arg).to_dict())
  mesh = sharding.make_mesh({"fsdp": 1}, jax.devices()[:1])
  built = train.build(config, num_examples=1_281_167, mesh=mesh)
  with jax.set_mesh(mesh):
    jitted = step.make_train_step(built.method, built.tx, seed=0, shardings=built.shardings)
    lowered = jitted.lower(built.abstract, built.batch)
  return lowered.cost_analysis()["flops"], train.model_flops(built)


def _counts(options: Options) -> Iterator[Row]:
  formulas = {
    "siglip": lambda batch: batch * analytic.siglip("B/16"),
    "mae": lambda batch: batch * analytic.mae("L/16"),
  }
  methods = ["siglip"] if options.smoke else sorted(f.stem for f in METHODS.glob("[a-z]*.py"))
  for method in methods:
    if not options.wants(f"flops/{method}"):
      continue
    compiled, counted = _lowered_flops(method, options.smoke)
    reference, values = counted, {"compiled": compiled, "counted": float(counted)}
    if method in formulas and not options.smoke:
      config = importlib.import_module(f"configs.{method}").get_config()
      reference = values["formula"] = float(formulas[method](config.input.batch_size))
    what = "compiled FLOPs / analytic"
    yield Row(f"flops/{method}", what, compiled / reference, target=FLOPS, values=values)
  for variant, target in MAE.items():
    if options.wants(f"mae/{variant}"):
      what, theory = "x fewer FLOPs than a ViT", {"theory": target.stretch}
      yield Row(f"mae/{variant}", what, mae_saving(variant), target=target, values=theory)
  for visible, targets in FLIP.items():
    for part, target, value in zip(("vision", "pair"), targets, flip_saving("B/16", visible)):
      if options.wants(f"flip/{part}/{1 - visible:.0%}"):
        yield Row(f"flip/{part}/{1 - visible:.0%}", "x fewer FLOPs", value, target=target)


def _forward_flops(module: Any, *args: Any, **kwargs: Any) -> int:
  """Of one forward pass; the backward pass of towers is twice it for any of them."""
  spec = lambda x: jax.ShapeDtypeStruct(*x)
  args, kwargs = [spec(x) for x in args], {k: spec(v) for k, v in kwargs.items()}
  params = jax.eval_shape(module.init, jax.random.key(0), *args, **kwargs)
  return flops.count(lambda p, a, k: module.apply(p, *a, **k), params, args, kwargs)


def mae_saving(variant: str) -> float:
  """FLOPs of a ViT that sees every patch over those of the MAE config of this variant."""
  config = importlib.import_module("configs.mae").get_config(f"variant={variant},batch_size=1")
  built = train.build(
    config.to_dict(),
    num_examples=1_281_167,
    mesh=sharding.make_mesh({"fsdp": 1}, jax.devices()[:1]),
  )
  full = _forward_flops(vit.make(variant, pool="gap"), ((1, 224, 224, 3), jnp.float32))
  return 3 * full / train.model_flops(built)


def flip_saving(variant: str, visible: float) -> tuple[float, float]:
  """(image tower, pair): FLOPs of all patches over those where `visible` of them are kept.

  The tower takes `keep`, the numbers of the patches it is to see.
  """
  image, text = ((1, 224, 224, 3), jnp.float32), ((1, TOKENS), jnp.int32)
  towers = two_towers.make(
    wrap(
      {"c": dict(image=dict(variant=variant, pool="map"), text=dict(variant=variant.split("/")[0]))}
    ).c
  )
  patches = (224 // towers.image.patch_size[0]) ** 2
  keep = ((1, round(visible * patches)), jnp.int32)
  whole, few = _forward_flops(towers.image, image), _forward_flops(towers.image, image, keep=keep)
  words = _forward_flops(towers.text, text)
  return whole / few, (whole + words) / (few + words)
