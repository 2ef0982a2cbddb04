"""What each remat policy keeps for the backward pass, and what it costs; prints a Markdown table.

    TPU_SKIP_MDS_QUERY=1 JAX_PLATFORMS=cpu python -m experiments.performance.remat

Value and gradient of the two towers of SigLIP (224 px, 64 tokens, bfloat16, scanned), parameters
sharded over all chips of the topology. Nothing runs: the first columns come from shapes and the
jaxpr, the last from XLA:TPU's own ahead-of-time compile, for which libtpu has to be importable.

    kept        bytes of one example that pass from the forward to the backward pass
    FLOPs       matrix products of the step, divided by those without remat
    temp        bytes of temporaries of one chip, gradients included
"""

import argparse
import re

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from big_vision_like import axes, flops, sharding, tree
from big_vision_like.layers.stack import REMAT
from big_vision_like.models import two_towers

GIB = 2**30


def towers(variant: str, remat: str) -> two_towers.TwoTowers:
  shared = dict(dtype="bfloat16", remat=remat)
  return two_towers.make(
    dict(
      image=dict(variant=variant, pool="map", **shared),
      text=dict(variant=variant.split("/")[0], **shared),
    )
  )


def batch_of(size: int, spec: jax.sharding.Sharding | None = None) -> tuple:
  image = jax.ShapeDtypeStruct((size, 224, 224, 3), jnp.float32, sharding=spec)
  return image, jax.ShapeDtypeStruct((size, 64), jnp.int32, sharding=spec)


def loss_of(model: two_towers.TwoTowers):
  def loss(params, image, text):
    zimg, ztxt, _ = model.apply({"params": params}, image, text, train=True)
    return jnp.sum(zimg * ztxt)

  return loss


def kept(model: two_towers.TwoTowers, params) -> int:
  """Bytes of one example between forward and backward: the slope over the batch leaves out the
  parameters."""

  def of(size: int) -> int:
    vjp = lambda p, *x: jax.vjp(loss_of(model), p, *x)[1]
    return tree.num_bytes(jax.eval_shape(vjp, params, *batch_of(size)))

  return of(2) - of(1)


def temp(model: two_towers.TwoTowers, params, mesh: jax.sharding.Mesh, per_chip: int) -> str:
  """GiB of temporaries of a chip, or what XLA asked for where the chip has less."""
  shardings, _ = sharding.plan(params, sharding.DEFAULT_RULES, mesh)
  place = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
  batch = batch_of(per_chip * mesh.size, NamedSharding(mesh, jax.P(axes.of_batch(mesh))))
  with jax.set_mesh(mesh):
    step = jax.jit(jax.value_and_grad(loss_of(model)), out_shardings=(None, shardings))
    lowered = step.lower(jax.tree.map(place, params, shardings), *batch)
  try:
    return f"{lowered.compile().memory_analysis().temp_size_in_bytes / GIB:.2f}"
  except jax.errors.JaxRuntimeError as e:
    if (found := re.search(r"temporaries \(([\d.]+)G\) exceeds", str(e))) is None:
      raise
    return f"{found[1]}, does not fit"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--topology", default="v5e:2x4")
  parser.add_argument("--variants", nargs="+", default=["B/16", "L/16"])
  parser.add_argument("--policies", nargs="+", default=list(REMAT), choices=list(REMAT))
  parser.add_argument("--batch-per-chip", type=int, default=64)
  args = parser.parse_args()

  from jax.experimental import topologies

  devices = topologies.get_topology_desc(platform="tpu", topology_name=args.topology).devices
  mesh = sharding.make_mesh({"fsdp": -1}, devices)
  print(f"{args.topology}, {args.batch_per_chip} pairs a chip, jax {jax.__version__}\n")
  print("| towers | policy | kept, MiB a pair | FLOPs | temp, GiB a chip |\n|---|---|---|---|---|")
  for variant in args.variants:
    base = None
    for policy in args.policies:
      model = towers(variant, policy)
      params = jax.eval_shape(model.init, jax.random.key(0), *batch_of(1))["params"]
      count = flops.count(jax.value_and_grad(loss_of(model)), params, *batch_of(2))
      base = base or count
      row = (
        variant,
        policy,
        f"{kept(model, params) / 2**20:.1f}",
        f"{count / base:.3f}",
        temp(model, params, mesh, args.batch_per_chip),
      )
      print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
  main()
