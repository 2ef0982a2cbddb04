"""The contrastive losses: memory by compiling, speed by running, precision against float64.

    memory/...     temporary bytes per device of value and gradients, width 512, f32; nothing runs
    growth/...     the same, 32 devices against 2 at an equal batch per device
    speed/...      seconds of value and all four gradients
    precision/...  largest relative error of the loss and of each gradient

The formula of the peers is -1/B sum_ij log sigmoid(z_ij l_ij) with z the matrix of labels, as the
authors' code has it (arXiv:2303.15343, Algorithm 1).
"""

import functools
import math
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from big_vision_like import sharding
from big_vision_like.losses import contrastive
from tools.bench.harness import Options, Row, Run, Target, compare

DEVICES = 32

IMPLS = ("formula", "dense", "all_gather", "ring")
MILLION = 1 << 20
LESS = {  # global batch -> how many times less memory than the formula, on 8 devices
  16_384: Target("2", 40, 47),
  32_768: Target("2", 80, 95),
  MILLION: Target("2", 2500, 3000),
}
FASTER = {  # from a batch of 8,192 on
  "formula": Target("4", 1.15, 1.3),
  "open_clip": Target("4", 1.5, 1.7),
  "open_clip_chunked": Target("4", 1.05, 1.2),
}
RELATIVE_ERROR = {
  "float32": Target("5", 3e-6, 2e-6, at_most=True),
  "bfloat16": Target("5 (bf16)", 1e-2, at_most=True),
}


class Sizes(NamedTuple):
  """What is measured: for people, and the smallest that still shows every row."""

  width: int = 512
  devices: int = 8
  memory: tuple[int, ...] = (4096, 8192, 16_384, 32_768, MILLION)
  growth: tuple[int, ...] = (2, 8, 32)  # devices
  local: int = 4096
  speed: tuple[int, ...] = (4096, 8192, 16_384)
  precision: tuple[int, ...] = (4096, 32_768)
  tile: int = 1024  # of the float64 reference


SMOKE = Sizes(32, 2, (256,), (2, 4), 64, (256,), (256,), 128)


def rows(options: Options) -> Iterator[Row]:
  """All rows of the suite."""
  sizes = SMOKE if options.smoke else Sizes()
  yield from _memory(options, sizes)
  yield from _growth(options, sizes)
  yield from _precision(options, sizes)
  yield from _speed(options, sizes)


# --------------------------------------------------------------------------------------- the losses


def formula(zimg: jax.Array, ztxt: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
  """The sigmoid loss on all pairs at once; XLA decides what is gathered."""
  logits = jnp.dot(zimg, ztxt.T) * jnp.exp(scale) + bias
  labels = 2 * jnp.eye(zimg.shape[0]) - 1
  return -jnp.mean(jnp.sum(jax.nn.log_sigmoid(labels * logits), axis=-1))


def softmax_formula(zimg: jax.Array, ztxt: jax.Array, scale: jax.Array) -> jax.Array:
  """Both cross-entropies on all pairs at once."""
  logits = jnp.dot(zimg, ztxt.T) * jnp.exp(scale)
  log_probs = jax.nn.log_softmax(logits, axis=1), jax.nn.log_softmax(logits, axis=0)
  return -jnp.mean(sum(jnp.diagonal(p) for p in log_probs)) / 2


def _loss(kind: str, impl: str) -> Callable[..., jax.Array]:
  if impl == "formula":
    return {"sigmoid": formula, "softmax": softmax_formula}[kind]
  fn = {"sigmoid": contrastive.sigmoid_loss, "softmax": contrastive.softmax_loss}[kind]
  return functools.partial(fn, impl=impl)


def _value_and_grads(kind: str, impl: str, mesh: jax.sharding.Mesh) -> Any:
  """Jitted; embeddings and their gradients are split over the devices of `mesh`."""
  scalars = {"sigmoid": 2, "softmax": 1}[kind]
  split, whole = sharding.batch_sharding(mesh), NamedSharding(mesh, P())
  places = (split, split, *[whole] * scalars)
  fn = jax.value_and_grad(_loss(kind, impl), argnums=tuple(range(len(places))))
  return jax.jit(fn, in_shardings=places, out_shardings=(whole, places))


def _mesh(devices: int) -> jax.sharding.Mesh:
  return sharding.make_mesh({"fsdp": devices}, jax.devices()[:devices])


# ------------------------------------------------------------------------------------------ memory


@functools.cache
def temp_bytes(kind: str, impl: str, batch: int, width: int, devices: int) -> int:
  """Temporary bytes per device of value and gradients, f32, as XLA plans them. Compiles only."""
  mesh = _mesh(devices)
  z, scalar = jax.ShapeDtypeStruct((batch, width), jnp.float32), jax.ShapeDtypeStruct((), "float32")
  args = (z, z, scalar, scalar)[: 4 if kind == "sigmoid" else 3]
  with jax.set_mesh(mesh):
    compiled = _value_and_grads(kind, impl, mesh).lower(*args).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def _memory(options: Options, sizes: Sizes) -> Iterator[Row]:
  n, what = sizes.devices, "temporary bytes / bytes of the local embeddings of one tower"
  for kind in ("sigmoid", "softmax"):
    temp = functools.partial(temp_bytes, kind, width=sizes.width, devices=n)
    for batch in sizes.memory:
      local = batch // n * sizes.width * 4
      for impl in IMPLS:
        target = None
        if impl == "ring" and kind == "softmax":
          target = Target("1 (softmax)", 4.0, at_most=True)
        elif impl == "ring" and batch in (32_768, MILLION):
          target = Target("1", 2.5, 2.05, at_most=True)
        name = f"memory/{kind}/{impl}/{batch}"
        if options.wants(name):
          found = temp(impl=impl, batch=batch)
          values = {"devices": n, "temp_bytes": found, "local_bytes": local}
          yield Row(name, what, found / local, target=target, values=values)
      name = f"memory/{kind}/formula_over_ring/{batch}"
      if options.wants(name):
        ring, other = temp(impl="ring", batch=batch), temp(impl="formula", batch=batch)
        target = LESS.get(batch) if kind == "sigmoid" else None
        values = {"ring_bytes": ring, "formula_bytes": other}
        yield Row(name, "x less temporary memory", other / ring, target=target, values=values)


def _growth(options: Options, sizes: Sizes) -> Iterator[Row]:
  """At a fixed batch per device, from the fewest devices to the most that are there."""
  counts = [n for n in sizes.growth if n <= jax.device_count()]
  if len(counts) < 2:
    if options.wants("growth"):
      need = f"needs {sizes.growth[-1]} simulated devices, there is {jax.device_count()}"
      yield Row("growth", "temporary bytes, most devices / fewest", None, note=need)
    return
  what = f"temporary bytes, {counts[-1]} devices / {counts[0]}"
  for kind in ("sigmoid", "softmax"):
    for impl in IMPLS:
      name = f"growth/{kind}/{impl}"
      if options.wants(name):
        bytes_of = {n: temp_bytes(kind, impl, n * sizes.local, sizes.width, n) for n in counts}
        ratio = bytes_of[counts[-1]] / bytes_of[counts[0]]
        target = Target("3", 1.02, 1.0, at_most=True) if impl == "ring" else None
        values = {f"bytes_{n}": b for n, b in bytes_of.items()}
        yield Row(name, what, ratio, target=target, values={"local_batch": sizes.local, **values})


# --------------------------------------------------------------------------------------- precision


def embeddings(batch: int, width: int) -> tuple[np.ndarray, np.ndarray]:
  """Unit vectors, float32 [B, E] each; pairs have a cosine of about 0.7, others about 0."""
  rng = np.random.default_rng(0)
  image, noise = (rng.standard_normal((batch, width), np.float32) for _ in range(2))
  unit = lambda z: z / np.linalg.norm(z, axis=1, keepdims=True)
  return unit(image), unit(unit(image) + unit(noise))


def reference(
  zimg: np.ndarray, ztxt: np.ndarray, scale: float, bias: float, tile: int
) -> tuple[np.ndarray, ...]:
  """The sigmoid loss and its gradients (images, texts, t', b) in float64, `tile` rows at a time.

  dL/dl_ij = (sigmoid(l_ij) - [i = j]) / B, and the chain rule from there.
  """
  x, y = zimg.astype(np.float64), ztxt.astype(np.float64)
  n, t = len(x), math.exp(scale)
  loss, d_scale, d_bias = 0.0, 0.0, 0.0
  dx, dy = np.zeros_like(x), np.zeros_like(y)
  for start in range(0, n, tile):
    block = slice(start, min(start + tile, n))
    cosines = x[block] @ y.T
    logits = t * cosines + bias
    pair = np.arange(block.stop - start), np.arange(start, block.stop)
    small = np.exp(-np.abs(logits))  # one exponential for softplus and both tails of the sigmoid
    loss += np.sum(np.maximum(logits, 0) + np.log1p(small)) - np.sum(logits[pair])
    slope = np.where(logits >= 0, 1, small) / (1 + small)
    # sigmoid(l) - 1 without cancellation.
    slope[pair] = -np.where(logits[pair] >= 0, small[pair], 1) / (1 + small[pair])
    dx[block] = t * (slope @ y) / n
    dy += t * (slope.T @ x[block]) / n
    d_scale += t * np.sum(slope * cosines) / n
    d_bias += np.sum(slope) / n
  return np.asarray(loss / n), dx, dy, np.asarray(d_scale), np.asarray(d_bias)


def relative_errors(found: Any, true: Any) -> dict[str, float]:
  """Largest |difference| over the largest |value|, of the loss and each gradient."""
  names = ("loss", "d_img", "d_txt", "d_scale", "d_bias")
  size = lambda z: float(np.max(np.abs(z)))
  return {
    name: size(np.asarray(a, np.float64) - b) / size(b) for name, a, b in zip(names, found, true)
  }


def _precision(options: Options, sizes: Sizes) -> Iterator[Row]:
  """At the start of training (t = 10, b = -10) and at its end (t = 100, b = -15)."""
  mesh = _mesh(min(sizes.devices, jax.device_count()))
  for batch in sizes.precision:
    for dtype in RELATIVE_ERROR:
      for when, scale, bias in (("start", 10.0, -10.0), ("end", 100.0, -15.0)):
        # Beyond 8,192 the formula does not fit: all simulated devices share one memory.
        impls = ("ring", "formula") if batch <= 8192 else ("ring",)
        names = {i: f"precision/{dtype}/{batch}/{when}/{i}" for i in impls}
        wanted = {i: name for i, name in names.items() if options.wants(name)}
        if not wanted:
          continue
        z = [jnp.asarray(e, dtype) for e in embeddings(batch, sizes.width)]
        scalars = [jnp.float32(math.log(scale)), jnp.float32(bias)]
        # The reference sees the rounded inputs: the error is what the loss adds.
        host = [np.asarray(e, np.float32) for e in z]
        true = reference(*host, *map(float, scalars), sizes.tile)
        for impl, name in wanted.items():
          with jax.set_mesh(mesh):
            loss, grads = _value_and_grads("sigmoid", impl, mesh)(*z, *scalars)
          errors = relative_errors(jax.device_get((loss, *grads)), true)
          target = RELATIVE_ERROR[dtype] if impl == "ring" else None
          what = "largest relative error against float64"
          yield Row(name, what, max(errors.values()), target=target, values=errors)


# ------------------------------------------------------------------------------------------- speed


def _run(impl: str, batch: int, width: int, devices: int) -> Run:
  mesh = _mesh(devices)
  fn = _value_and_grads("sigmoid", impl, mesh)
  split = sharding.batch_sharding(mesh)
  z = [jax.device_put(e, split) for e in embeddings(batch, width)]
  scalars = [jax.device_put(jnp.float32(s), NamedSharding(mesh, P())) for s in (math.log(10), -10)]

  def run():
    with jax.set_mesh(mesh):
      return fn(*z, *scalars)

  return run


def _open_clip(batch: int, width: int, parts: int) -> Run:
  """open_clip's SigLipLoss, value and four gradients, torch on as many threads as there are cores.

  `parts` > 1 is what that many of its processes compute between them, one after the other: each
  sums its images' loss over all blocks of texts, and takes the gradient of that.
  """
  import importlib.util
  import pathlib

  import torch

  package = importlib.util.find_spec("open_clip")
  if package is None:
    raise ModuleNotFoundError("open_clip", name="open_clip_torch")
  # The one file: the package as a whole also wants torchvision.
  file = pathlib.Path(package.origin).parent / "loss.py"
  spec = importlib.util.spec_from_file_location("open_clip_loss", file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  loss = module.SigLipLoss()
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  image, text = (torch.tensor(e).requires_grad_() for e in embeddings(batch, width))
  scale, bias = (torch.tensor(s).requires_grad_() for s in (math.log(10), -10.0))
  size = batch // parts

  def run():
    for leaf in (image, text, scale, bias):
      leaf.grad = None
    total = 0.0
    for i in range(parts):
      mine = image[i * size : (i + 1) * size]
      share = sum(
        loss._loss(mine, text[j * size : (j + 1) * size], scale.exp(), bias, negative_only=i != j)
        for j in range(parts)
      )
      (share / parts).backward()
      total += share.detach() / parts
    return [x.numpy() for x in (total, image.grad, text.grad, scale.grad, bias.grad)]

  return run


def _speed(options: Options, sizes: Sizes) -> Iterator[Row]:
  """In a process that simulates more devices than it uses, their threads get in each other's way:
  small tiles suffer, large products do not.
  """
  for devices in (1, sizes.devices):
    if devices != jax.device_count() and not options.smoke:
      name = f"speed/{devices}_device{'s' if devices > 1 else ''}"
      if options.wants(name):
        note = f"run alone: JAX_NUM_CPU_DEVICES={devices} ... --only '^{name}/'"
        yield Row(name, "x faster than the peer", None, note=note)
      continue
    for batch in sizes.speed:
      args = (batch, sizes.width, devices)
      peers = {"formula": functools.partial(_run, "formula", *args)}
      if devices == 1:
        peers["open_clip"] = functools.partial(_open_clip, *args[:2], 1)
        peers["open_clip_chunked"] = functools.partial(_open_clip, *args[:2], 8)
      targets = FASTER if batch >= 8192 else {}
      name = f"speed/{devices}_device{'s' if devices > 1 else ''}/{batch}"
      ours = functools.partial(_run, "ring", *args)
      yield from compare(options, name, ours, peers, targets=targets)
