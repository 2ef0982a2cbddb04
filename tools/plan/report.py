"""Puts a plan together, as a dict that is also its JSON, and shows it to people."""

import math
from collections.abc import Mapping
from typing import Any

import jax

from big_vision_like import axes, sharding, tree
from big_vision_like import train as trainer
from big_vision_like.config import UserError
from big_vision_like.layers.stack import REMAT
from tools.plan import aot, estimate, hlo, roofline
from tools.plan.chips import GIB, Topology


def make_mesh(config: Mapping[str, Any], topology: Topology, devices: Any) -> Any:
  """A mesh of `devices`, or an abstract one of as many where there are none to compile for."""
  if devices is not None:
    return sharding.make_mesh(config["mesh"], devices)
  sizes = sharding.mesh_sizes(config["mesh"], topology.size)
  auto = (jax.sharding.AxisType.Auto,) * len(sizes)
  return jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=auto)


def make(
  config: Mapping[str, Any], topology: Topology, devices: Any, progress: aot.Progress
) -> dict[str, Any]:
  """The plan of one config on one topology; `devices` None: by shape analysis alone.

  Raises:
    UserError: what `train.build` refuses.
  """
  mesh = make_mesh(config, topology, devices)
  with estimate.kernels_of(topology.chip.kind):
    with progress.stage("shapes and FLOPs"):
      built = trainer.build(config, num_examples=None, mesh=mesh)
      rows = math.ceil(
        built.config.input.batch_size / axes.num_batch_shards(mesh) / estimate.micro_batches(config)
      )
      shapes = estimate.shapes(built, rows)
      model_flops, hardware = trainer.model_flops(built), estimate.hardware_flops(built)
    step = loss = None
    if devices is not None:
      step = aot.compile_step(built, progress)
      loss = aot.compile_loss(built, progress)
    memory = _memory(built, topology, shapes, step)
    with progress.stage("what would free how much"):
      knobs = _knobs(config, built, topology, rows, shapes)
  params = tree.num_params(built.abstract.params)
  compiled = isinstance(step, aot.Compiled)
  readable = compiled and step.cost is not None
  if readable:
    moved, sent = step.cost.hbm_bytes, hlo.merged(step.cost.collectives)
  else:
    represented = estimate.represented_bytes(built)
    moved = estimate.hbm_bytes(config, built.table, params, shapes.activations)
    sent = estimate.collectives(config, built.table, shapes.tensor_sums, represented)
  batch_size = built.config.input.batch_size
  seconds = roofline.times(topology, built.table.mesh, hardware, moved, sent)
  run = roofline.run(topology, seconds.step, batch_size, built.total_steps, model_flops)
  return {
    "topology": str(topology),
    "devices": topology.size,
    "mesh": built.table.mesh,
    "chip": topology.chip._asdict(),
    "compiled": compiled,
    "traffic_by": "compiler" if readable else "estimate",
    "compile_seconds": step.seconds if step else None,
    "method": config["method"],
    "parameters": params,
    "batch_size": batch_size,
    "micro_batches": estimate.micro_batches(config),
    "total_steps": built.total_steps,
    "sharding": built.table.to_json(),
    "sharding_text": built.table.render(max_rows=12),
    "memory": memory,
    "loss_alone": _loss(loss, memory),
    "knobs": knobs,
    "flops": {"model": model_flops, "hardware": hardware},
    "hbm_bytes": moved,
    "collectives": [c._asdict() | {"wire_bytes": int(c.wire_bytes)} for c in sent],
    "loops_of_unknown_length": step.cost.unknown_loops if readable else 0,
    "seconds": seconds._asdict() | {"step": seconds.step, "bound": seconds.bound},
    "run": run._asdict(),
    "assumptions": list(roofline.ASSUMPTIONS),
  }


def _memory(built: Any, topology: Topology, shapes: estimate.Shapes, step: Any) -> dict[str, Any]:
  """Bytes of one device by what they are for; `by`: who says so."""
  held = built.table.totals()
  parts = {name: held.get(name, 0) for name in ("params", "opt", "aux")}
  parts["batch"] = tree.num_bytes(built.batch) // axes.num_batch_shards(built.mesh)
  limit = topology.chip.hbm
  if isinstance(step, aot.Compiled):
    temporaries, by = step.memory.temporaries, "compiler"
    peak, fits = step.memory.peak, step.memory.peak <= limit
  elif isinstance(step, aot.Refused):
    rest = sum(parts.values())
    temporaries = step.needs - (0 if step.only_temporaries else rest)
    peak, limit, fits, by = temporaries + rest, step.limit, False, "compiler, which refused"
  else:
    temporaries, by = shapes.activations + parts["params"], "estimate"
    peak = temporaries + sum(parts.values())
    fits = peak <= limit
  return {
    **parts,
    "temporaries": temporaries,
    "peak": peak,
    "limit": limit,
    "fits": fits,
    "by": by,
    "estimated_activations": shapes.activations,
  }


def _loss(loss: Any, memory: Mapping[str, Any]) -> dict[str, Any] | None:
  """What the comparison of the whole batch needs of its own, and its share of the peak."""
  if loss is None:
    return None
  size = loss.memory.temporaries if isinstance(loss, aot.Compiled) else loss.needs
  return {"temporaries": size, "share_of_peak": size / memory["peak"]}


def _knobs(
  config: Mapping[str, Any],
  built: Any,
  topology: Topology,
  rows: int,
  shapes: estimate.Shapes,
) -> list[dict[str, Any]]:
  """What could be turned, and the bytes of a device that it frees; all estimated."""
  out, seen = [], {shapes.activations}
  if estimate.has(config, "remat"):
    for policy in REMAT:
      size = estimate.shapes(built, rows, policy).activations
      if size not in seen:
        out.append((f"remat = {policy} on every tower", shapes.activations - size))
        seen.add(size)
  if rows > 1:
    key = "grad_cache" if built.method.split else "grad_accum"
    value = 2 * (config.get(key) or 1)
    out.append((f"config.{key} = {value}", shapes.activations // 2))
  held, mesh = built.table.totals(), built.table.mesh
  shards = mesh[axes.REPLICA] * mesh[axes.FSDP]
  rules = built.config.sharding.rules or sharding.DEFAULT_RULES
  best = (sum(held.values()), "")
  for replica in (2**i for i in range(shards.bit_length()) if shards % 2**i == 0):
    sizes = {**mesh, axes.REPLICA: replica, axes.FSDP: shards // replica}
    _, table = sharding.plan(built.abstract, rules, make_mesh({"mesh": sizes}, topology, None))
    what = f"config.mesh.replica = {replica} (fsdp = {shards // replica})"
    best = min(best, (sum(table.totals().values()), what), key=lambda x: x[0])
  out.append((best[1], sum(held.values()) - best[0]))
  if held.get("opt", 0) > held["params"]:
    optim = {"name": "adafactor", "lr": 1e-3, "schedule": {"name": "constant"}}
    try:
      other = trainer.build({**config, "optim": optim}, num_examples=None, mesh=built.mesh)
    except UserError:  # a method with optimizer groups of its own has no such choice
      return _ranked(out)
    out.append(("config.optim.name = adafactor", held["opt"] - other.table.totals().get("opt", 0)))
  return _ranked(out)


def _ranked(knobs: list[tuple[str, int]]) -> list[dict[str, Any]]:
  return [
    {"knob": what, "frees": size, "estimated": True}
    for what, size in sorted(knobs, key=lambda x: -x[1])
    if size > 0
  ]


# ------------------------------------------------------------------------------------------- text


def size(n: float) -> str:
  """Bytes for people."""
  for unit, scale in (("TiB", 2**40), ("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
    if abs(n) >= scale:
      return f"{n / scale:,.2f} {unit}"
  return f"{n:.0f} B"


def time(seconds: float) -> str:
  return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def render(plan: Mapping[str, Any]) -> str:
  """The plan as text; the whole sharding table is only in the JSON."""
  memory, chip, run = plan["memory"], plan["chip"], plan["run"]
  fits = "fits" if memory["fits"] else "DOES NOT FIT"
  if plan["compiled"]:
    how = f"compiled ahead of time in {plan['compile_seconds']:.0f} s"
    if plan["traffic_by"] == "estimate":
      how += "; its text cannot be read: bytes moved, collectives and times below are ESTIMATED"
  elif memory["by"] == "estimate":
    how = "ESTIMATED by shape analysis: no compiler for this chip here"
  else:
    how = "refused by the compiler: bytes moved, collectives and times below are ESTIMATED"
  lines = [
    f"{plan['method']} on {plan['topology']}: {plan['devices']} devices, {how}",
    f"parameters {plan['parameters']:,}   batch {plan['batch_size']:,}"
    + (f" in {plan['micro_batches']} parts" if plan["micro_batches"] > 1 else "")
    + f"   steps {plan['total_steps']:,}",
    "",
    *_shortened(plan["sharding_text"]),
    "",
    f"memory of a device ({memory['by']}): {fits}: needs {size(memory['peak'])} "
    f"of {size(memory['limit'])}",
  ]
  names = {
    "params": "parameters",
    "opt": "optimizer state",
    "aux": "aux",
    "batch": "batch",
    "temporaries": "activations and temporaries",
    "estimated_activations": "  of these kept for the backward pass (estimate)",
  }
  lines += [f"  {what:<50}{size(memory[key]):>14}" for key, what in names.items()]
  if plan["loss_alone"]:
    alone = plan["loss_alone"]
    share = f"{100 * alone['share_of_peak']:.2f} % of the peak"
    lines.append(f"  {'the loss alone':<50}{size(alone['temporaries']):>14}  {share}")
  if plan["knobs"]:
    lines.append("what would free how much (estimates)")
    lines += [f"  {k['knob']:<50}{size(k['frees']):>14}" for k in plan["knobs"]]
  flops = plan["flops"]
  lines += [
    "",
    f"FLOPs of a step: model {flops['model']:.4g}, as it runs {flops['hardware']:.4g} "
    f"({flops['hardware'] / flops['model']:.3f} x)",
    f"HBM moved by a device: {size(plan['hbm_bytes'])}",
  ]
  lines += _collectives(plan)
  at = plan["seconds"]
  terms = ", ".join(f"{n} {time(at[n])}" for n in roofline.Times._fields)
  lines += [
    "",
    f"roofline: {time(at['step'])} a step, bound by {at['bound']}   ({terms})",
    f"at best {run['examples_per_second']:,.0f} examples/s, MFU {100 * run['mfu']:.1f} %; "
    f"{plan['total_steps']:,} steps: {run['days']:.2f} days, {run['chip_hours']:,.0f} chip-hours",
    f"chip: {chip['peak'] / 1e12:,.0f} TFLOP/s, {chip['hbm_bandwidth'] / 1e9:,.0f} GB/s, "
    f"{chip['links']} x {chip['link'] / 1e9:g} GB/s, network {chip['network'] / 1e9:g} GB/s",
    f"  ({chip['source']})",
    "assumed: " + "; ".join(plan["assumptions"]),
  ]
  if plan["loops_of_unknown_length"]:
    lines.append(f"{plan['loops_of_unknown_length']} loops of unknown length count once")
  return "\n".join(lines)


def _shortened(table: str, most: int = 3) -> list[str]:
  """The sharding table with a few of its notes; all are in the JSON."""
  lines = table.splitlines()
  notes = [i for i, line in enumerate(lines) if line.startswith("note: ")]
  if len(notes) <= most:
    return lines
  kept = lines[: notes[most]] + lines[notes[-1] + 1 :]
  kept.insert(notes[most], f"... and {len(notes) - most} more notes")
  return kept


def _collectives(plan: Mapping[str, Any], most: int = 12) -> list[str]:
  """One line for each kind and axis, then the largest ones."""
  rows = plan["collectives"]
  if not rows:
    return ["collectives: none"]
  totals: dict[tuple[str, str], list[float]] = {}
  for row in rows:
    total = totals.setdefault((row["kind"], "+".join(row["axes"])), [0, 0, 0])
    for i, x in enumerate((row["count"], row["count"] * row["bytes"], row["wire_bytes"])):
      total[i] += x
  lines = [f"  {'collective':<22}{'axis':<16}{'count':>8}{'bytes':>14}{'sent by a device':>18}"]
  line = lambda kind, names, count, total, wire: (
    f"  {kind:<22}{names:<16}{count:>8,}{size(total):>14}{size(wire):>18}"
  )
  lines += [line(*key, *total) for key, total in sorted(totals.items(), key=lambda x: -x[1][2])]
  lines.append(f"  the largest of {len(rows)} (bytes of one)")
  for row in rows[:most]:
    names = "+".join(row["axes"])
    lines.append(line(row["kind"], names, row["count"], row["bytes"], row["wire_bytes"]))
  return lines
