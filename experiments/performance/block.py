"""A transformer block and its gradient on CPUs, each hand-written form on and off; its products.

    python -m experiments.performance.block [--batch 8 --tokens 196 --width 384 --layers 2]

Where other work shares the cores, seconds on the clock say little: the CPU seconds of all threads
are printed beside them, and the runs take turns.
"""

import argparse
import functools
import os
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from big_vision_like.layers import fused

HEAD = 64


def plain_dense(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
  y = lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
  return y + bias.reshape((1,) * (y.ndim - 1) + (-1,))


def plain_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
  mean = jnp.mean(x, axis=-1, keepdims=True)
  var = jnp.maximum(0.0, jnp.mean(x * x, axis=-1, keepdims=True) - mean * mean)
  return (x - mean) * (lax.rsqrt(var + eps) * scale[None, None]) + bias[None, None]


PLAIN = dict(dense=plain_dense, norm=plain_norm, gelu=nn.gelu, attend=jax.nn.dot_product_attention)
OURS = dict(dense=fused.linear, norm=fused.layer_norm, gelu=fused.gelu_tanh, attend=fused.attention)
FORMS = {
  "plain": PLAIN,
  **{f"{name} ours": {**PLAIN, name: OURS[name]} for name in PLAIN},
  "all ours": OURS,
  "all ours, one product for q, k, v": {**OURS, "one_product": True},
}


def block(
  x: jax.Array, p: Mapping[str, Any], *, dense, norm, gelu, attend, one_product: bool = False
) -> jax.Array:
  """Pre-norm; x [B, N, D]."""
  heads = lambda y: y.reshape(*y.shape[:2], -1, HEAD)
  y = norm(x, *p["ln1"], 1e-6)
  if one_product:
    kernel, bias = (jnp.concatenate([p[n][i] for n in "qkv"], axis=-1) for i in (0, 1))
    q, k, v = (heads(z) for z in jnp.split(dense(y, kernel, bias), 3, axis=-1))
  else:
    q, k, v = (heads(dense(y, *p[n])) for n in "qkv")
  x = x + dense(attend(q, k, v).reshape(x.shape), *p["out"])
  return x + dense(gelu(dense(norm(x, *p["ln2"], 1e-6), *p["up"])), *p["down"])


def init(key: jax.Array, width: int) -> dict[str, tuple[jax.Array, jax.Array]]:
  sizes = dict.fromkeys(("q", "k", "v", "out"), (width, width))
  sizes |= {"up": (width, 4 * width), "down": (4 * width, width)}
  keys = jax.random.split(key, len(sizes))
  p = {
    n: (0.03 * jax.random.normal(k, s), jnp.zeros(s[1])) for k, (n, s) in zip(keys, sizes.items())
  }
  return p | {n: (jnp.ones(width), jnp.zeros(width)) for n in ("ln1", "ln2")}


def products() -> dict[str, Callable]:
  """The gradient of a kernel [D, F] in four forms, of x [rows, D] and g [rows, F]."""
  copied = lambda x: lax.optimization_barrier(x.T)
  return {
    "x^T g as it stands": lambda x, g: lax.dot_general(x, g, (((0,), (0,)), ((), ()))),
    "x^T copied, @ g": lambda x, g: copied(x) @ g,
    "g^T copied, x^T g^T^T": lambda x, g: lax.dot_general(x, copied(g), (((0,), (1,)), ((), ()))),
    "(g^T x)^T": lambda x, g: (copied(g) @ x).T,
  }


def measure(runs: Mapping[str, Callable[[], Any]], repeats: int) -> None:
  """Prints medians of CPU and clock seconds, the ratio to the first, and page faults."""
  for run in runs.values():
    jax.block_until_ready(run())
  clock, cpu, faults = ({name: [] for name in runs} for _ in range(3))
  for _ in range(repeats):
    for name, run in runs.items():
      before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
      began, began_cpu = time.perf_counter(), time.process_time()
      jax.block_until_ready(run())
      clock[name].append(time.perf_counter() - began)
      cpu[name].append(time.process_time() - began_cpu)
      faults[name].append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
  first = next(iter(runs))
  for name in runs:
    pairs = statistics.median(a / b for a, b in zip(clock[first], clock[name]))
    median = statistics.median(cpu[name])
    print(
      f"  {name:36s} cpu {median * 1e3:8.2f} ms ({statistics.median(cpu[first]) / median:.3f} x)"
      f"  clock, least {min(clock[name]) * 1e3:8.2f} ms (pairs {pairs:.3f} x)"
      f"  faults {statistics.median(faults[name]):.0f}",
      flush=True,
    )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  for name, value in dict(batch=8, tokens=196, width=384, layers=2, repeats=15).items():
    parser.add_argument(f"--{name}", type=int, default=value)
  args = parser.parse_args()
  rows, normal = args.batch * args.tokens, functools.partial(jax.random.normal, jax.random.key(0))
  for d, f in ((args.width, 4 * args.width), (4 * args.width, args.width)):
    print(f"gradient of a kernel [{d}, {f}] over {rows} rows")
    x, g = normal((rows, d)), normal((rows, f))
    fns = {name: jax.jit(fn) for name, fn in products().items()}
    measure({name: functools.partial(fn, x, g) for name, fn in fns.items()}, args.repeats)
  print(f"{args.layers} blocks, value and gradients")
  params = [init(key, args.width) for key in jax.random.split(jax.random.key(1), args.layers)]
  x = normal((args.batch, args.tokens, args.width))

  def run(form: Mapping[str, Any]) -> Callable[[], Any]:
    def loss(params, x):
      for p in params:
        x = block(x, p, **form)
      return jnp.sum(x * x)

    return functools.partial(jax.jit(jax.value_and_grad(loss, argnums=(0, 1))), params, x)

  measure({name: run(form) for name, form in FORMS.items()}, args.repeats)


if __name__ == "__main__":
  main()
