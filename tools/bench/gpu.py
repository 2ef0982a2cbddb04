"""Training steps on one GPU: share of the measured bf16 peak, and ahead of PyTorch at equal batch.

    pair/<model>/torch, .../torch_compiled   ours and transformers' model, in turns
    step/<model>/<scan or unroll>/<remat>    ours alone, at the largest batch that fits
    step/<model>/best                        the best of those

The full step: bf16 compute, f32 parameters, AdamW, the state donated; attention by cuDNN where
`layers.attention` picks it. `--smoke` is a tiny f32 model on any device. Flags to try, shown in the
rows: `--xla-flags=--xla_gpu_enable_latency_hiding_scheduler=true`.
Nothing here reads data: neither grain nor tensorflow-datasets has to be installed.
"""

import functools
import gc
import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from big_vision_like import sharding, step, train
from big_vision_like import state as state_lib
from big_vision_like.config import UserError, replaced, wrap
from tools.bench import harness, torch_peers
from tools.bench.harness import Options, Row, Run, Target, compare, share_of_peak

# torch takes the rest of the card. Held from the start and not grown: a step's temporaries are one
# piece, which a pool grown piece by piece may not have.
ENV = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.6"}

OPTIM = dict(name="adamw", lr=1e-4, b2=0.95, weight_decay=0.05, schedule=dict(name="constant"))
VARIANTS = (  # scan over depth, remat policy
  (True, "none"),
  (False, "none"),
  (True, "dots_no_batch"),
  (True, "full"),
)
AHEAD = Target("G (peer)", 1.0)


class Model(NamedTuple):
  """One model of the suite.

  Attributes:
    config: name of the file in `configs/`.
    arg: its arguments.
    batches: sizes to try alone, from large to small; pairs start at a quarter of the first, since
      both models are in memory.
    share: bound of the share of the peak, or None.
    peer: `(method's config, batch, bfloat16) -> (compile -> run)`, or None.
  """

  config: str
  arg: str
  batches: tuple[int, ...]
  share: Target | None = None
  peer: Callable[..., Callable[[bool], Run]] | None = None


def _siglip_peer(config: Any, batch: int, bfloat16: bool) -> Callable[[bool], Run]:
  from big_vision_like.models import two_towers

  model = two_towers.make(config.model)
  return torch_peers.siglip(model.image, model.text, batch, bfloat16=bfloat16)


def _mae_peer(config: Any, batch: int, bfloat16: bool) -> Callable[[bool], Run]:
  from big_vision_like.models import mae_decoder, vit

  encoder, decoder = vit.make(**config.model), mae_decoder.make(**config.decoder)
  return torch_peers.mae(encoder, decoder, config.loss.mask_ratio, batch, bfloat16=bfloat16)


def _model(config: str, variant: str, first: int, gate: float, stretch: float) -> Model:
  """Batches from `first` down to 8, by 3/4 and 2/3 in turns."""
  batches = [first]
  while batches[-1] > 16:
    batches += [batches[-1] * 3 // 4, batches[-1] // 2]
  peer = {"siglip": _siglip_peer, "mae": _mae_peer}[config]
  return Model(config, f"variant={variant}", tuple(batches), Target("G", gate, stretch), peer)


MODELS = {
  "siglip_s16": _model("siglip", "S/16", 1024, 0.40, 0.50),
  "siglip_b16": _model("siglip", "B/16", 512, 0.50, 0.60),
  "siglip_l16": _model("siglip", "L/16", 192, 0.55, 0.65),
  "siglip_so400m14": _model("siglip", "So400m/14", 96, 0.57, 0.66),
  "mae_b16": _model("mae", "B/16", 1024, 0.45, 0.57),
  "mae_l16": _model("mae", "L/16", 512, 0.50, 0.61),
  "dino_b16": Model("dino", "variant=B/16", (128, 96, 64, 48, 32, 16, 8)),
}
TINY_CHANGES = {
  "dtype": "float32",
  "vocab_size": 64,
  "decoder": dict(width=32, depth=1, num_heads=2, mlp_dim=64, gelu="exact"),
  "head": dict(prototypes=64, hidden=32, bottleneck=16),
  "augment": "normalize(key='global')|normalize(key='local')",
}
TINY = {
  "siglip_mu16": Model("siglip", "variant=mu/16,res=32", (8, 4), peer=_siglip_peer),
  "mae_mu8": Model("mae", "variant=mu/8,res=32", (8, 4), peer=_mae_peer),
  "dino_mu16": Model("dino", "variant=mu/16,num_local=1", (8, 4)),
}


def rows(options: Options) -> Iterator[Row]:
  """All rows of the suite.

  Raises:
    UserError: a suite of this size without a GPU.
  """
  if jax.default_backend() != "gpu" and not options.smoke:
    raise UserError(
      f"--suite gpu needs a GPU, found {jax.default_backend()}; --smoke runs anywhere"
    )
  for name, model in (TINY if options.smoke else MODELS).items():
    yield from _alone(options, name, model)
    yield from _pair(options, name, model)


# ------------------------------------------------------------------------------------------- steps


def config_of(model: Model, batch: int, scan: bool, remat: str, smoke: bool) -> dict[str, Any]:
  """The committed config of the paper at this batch, with AdamW and these choices of layout."""
  file = importlib.import_module(f"configs.{model.config}")
  config = file.get_config(f"{model.arg},batch_size={batch}").to_dict()
  changes = {"remat": remat, "optim": OPTIM}
  if smoke:
    changes |= TINY_CHANGES
    changes["spec"] = {
      k: v.replace("224", "32").replace("96", "16") for k, v in config["input"]["spec"].items()
    }
  config = replaced(config, **changes)
  for tower in (config["model"], config["model"].get("image"), config["model"].get("text")):
    if tower is not None and "remat" in tower:
      tower["scan"] = scan
  if "decoder" in config:
    config["decoder"]["scan"] = scan
  return config


def _random_batch(built: train.Built) -> dict[str, jax.Array]:
  """Numbers of the right shapes: pixels of a normal distribution or bytes, small token ids."""
  rng = np.random.default_rng(0)

  def draw(spec: jax.ShapeDtypeStruct) -> jax.Array:
    if jnp.issubdtype(spec.dtype, jnp.floating):
      return jnp.asarray(rng.standard_normal(spec.shape, np.float32), spec.dtype)
    return jnp.asarray(rng.integers(0, 60, spec.shape), spec.dtype)

  return jax.tree.map(draw, built.batch)


class Step(NamedTuple):
  """A compiled training step.

  Attributes:
    run: one more step of the same state.
    flops: the model's, of loss and gradients, without recomputation.
    values: constants for the row: batch, peak bytes as XLA plans them, the attention kernel.
  """

  run: Run
  flops: int
  values: dict[str, Any]


def build(model: Model, batch: int, scan: bool, remat: str, smoke: bool) -> Step:
  """Compiles the step and makes its state."""
  config = config_of(model, batch, scan, remat, smoke)
  mesh = sharding.make_mesh({"fsdp": 1}, jax.devices()[:1])
  built = train.build(config, num_examples=None, mesh=mesh)
  train_step = step.make_train_step(built.method, built.tx, seed=0, shardings=built.shardings)
  inputs = _random_batch(built)
  with jax.set_mesh(mesh):
    compiled = train_step.lower(built.abstract, inputs).compile()
    state = state_lib.init(built.method, built.tx, jax.random.key(0), built.batch, built.shardings)

  def run():
    nonlocal state
    with jax.set_mesh(mesh):
      state, metrics = compiled(state, inputs)
    return state, metrics

  memory = compiled.memory_analysis()
  held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
  values = {
    "batch": batch,
    "peak_bytes": held + memory.temp_size_in_bytes,
    "attention": "cudnn" if "fmha" in compiled.as_text() else "xla",
  }
  if flags := os.environ.get("XLA_FLAGS"):
    values["xla_flags"] = flags
  return Step(run, train.model_flops(built), values)


def out_of_memory(error: Exception) -> bool:
  """Of XLA, at compile or run time, or of torch."""
  return "RESOURCE_EXHAUSTED" in str(error) or type(error).__name__ == "OutOfMemoryError"


def first_that_fits(batches: Sequence[int], attempt: Callable[[int], Any]) -> Any:
  """`attempt(batch)` of the first batch that is not out of memory, or None."""
  for batch in batches:
    try:
      return attempt(batch)
    except Exception as e:
      if not out_of_memory(e):
        raise
    # Here the traceback, which holds what the attempt had allocated, is gone.
    gc.collect()
  return None


# -------------------------------------------------------------------------------------------- rows


def _pair(options: Options, name: str, model: Model) -> Iterator[Row]:
  """Ours scanned, without remat, against torch eager and compiled, which share their parameters."""
  kinds = {"torch": False, "torch_compiled": True}
  wanted = [k for k in kinds if options.wants(f"pair/{name}/{k}")]
  if model.peer is None or not wanted:
    return

  def attempt(batch: int) -> list[Row]:
    config = wrap(config_of(model, batch, True, "none", options.smoke))
    both = functools.cache(lambda: model.peer(config, batch, not options.smoke))
    ours = functools.cache(lambda: build(model, batch, True, "none", options.smoke))
    peers = {k: lambda compile=compile: both()(compile) for k, compile in kinds.items()}
    targets = dict.fromkeys(kinds, AHEAD)
    found = list(compare(options, f"pair/{name}", lambda: ours().run, peers, targets=targets))
    if all(row.ours is None for row in found):  # nothing ran: torch is not installed
      return found
    values = ours().values | {"torch_peak_bytes": torch_peers.peak_bytes()}
    return [_with_rates(row, values, ours().flops) for row in found]

  batches = [b for b in model.batches if b <= max(model.batches[0] // 4, model.batches[-1])]
  found = first_that_fits(batches, attempt)
  yield from found or [Row(f"pair/{name}", "", None, note="out of memory at every batch")]
  gc.collect()


def _with_rates(row: Row, values: Mapping[str, Any], flops: int) -> Row:
  batch = values["batch"]
  rates = {
    "examples_per_s": batch / row.ours.median,
    "peer_examples_per_s": batch / row.peer.median,
    "flop_per_s": flops / row.ours.median,
  }
  return row._replace(values={**values, **rates})


def _alone(options: Options, name: str, model: Model) -> Iterator[Row]:
  peak, best = functools.cache(lambda: harness.matmul(options)), None
  for scan, remat in VARIANTS[: 2 if options.smoke else None]:
    row_name = f"step/{name}/{'scan' if scan else 'unroll'}/{remat}"
    if not options.wants(row_name):
      continue

    def attempt(batch: int, scan=scan, remat=remat, row_name=row_name) -> Row:
      made = build(model, batch, scan, remat, options.smoke)
      row = share_of_peak(options, row_name, made.run, made.flops, peak(), values=made.values)
      rate = {"examples_per_s": batch / row.ours.median}
      return row._replace(values={**row.values, **rate})

    row = first_that_fits(model.batches, attempt)
    row = row or Row(row_name, "", None, note="out of memory at every batch")
    yield row
    if row.value is not None and (best is None or row.value > best.value):
      best = row
    gc.collect()
  if best is not None:
    note = f"of {best.name}"
    yield best._replace(name=f"step/{name}/best", target=model.share, note=note)
