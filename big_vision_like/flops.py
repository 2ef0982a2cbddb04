"""FLOPs of a function, from its jaxpr: every trip of a scan and every device of a shard_map counts.

XLA's `cost_analysis` counts a loop's body once. Here 2 x multiply-accumulates of matrix products
and convolutions are summed, what the field calls model FLOPs; elementwise work is left out.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

# Products of queries, keys or values in cuDNN's attention, as many as the XLA version has: the
# backward pass computes the scores again, which the model did not ask for.
CUDNN_ATTENTION = {
  "dot_product_attention_fwd_wrapper": 2,
  "dot_product_attention_bwd_wrapper": 4,
}


def count(fn: Callable, *args: Any) -> int:
  """FLOPs of `fn(*args)`; arguments may be `jax.ShapeDtypeStruct`s. Nothing runs, nothing compiles.

  A `while` loop counts its body once (its trips are not known), a `cond` its dearest branch.
  """
  return _of_jaxpr(jax.make_jaxpr(fn)(*args).jaxpr)


def _of_jaxpr(jaxpr: core.Jaxpr) -> int:
  return sum(_of_equation(eqn) for eqn in jaxpr.eqns)


def _of_equation(eqn: core.JaxprEqn) -> int:
  name, params = eqn.primitive.name, eqn.params
  if name == "dot_general":
    (contract, _), _ = params["dimension_numbers"]
    left = eqn.invars[0].aval.shape
    return 2 * eqn.outvars[0].aval.size * math.prod(left[i] for i in contract)
  if name == "conv_general_dilated":
    kernel = eqn.invars[1].aval.shape
    out_features = params["dimension_numbers"].rhs_spec[0]
    # Every output element sums over the kernel's window and its input features (per group). Where
    # the input is dilated (a gradient of strides, a transposed convolution) the holes are no work.
    window = math.prod(kernel) // kernel[out_features]
    return 2 * eqn.outvars[0].aval.size * window // math.prod(params["lhs_dilation"])
  if name in CUDNN_ATTENTION:
    query, key = (v.aval.shape for v in eqn.invars[:2])
    # [B, N, H, d], or [B, H, N, d] in layout 1.
    length = key[2 if params["layout"] else 1]
    return CUDNN_ATTENTION[name] * 2 * math.prod(query) * length
  inner = [_of_jaxpr(jaxpr) for jaxpr in subjaxprs(params)]
  if not inner:
    return 0
  if name == "cond":
    return max(inner)
  if name == "scan":
    return params["length"] * sum(inner)
  if name == "shard_map":
    # Axes that split no input repeat the same work, which the model did not ask for.
    return sum(inner) * math.prod(params["mesh"].shape[a] for a in _split_over(params["in_specs"]))
  if name.startswith("custom_"):  # the primal; its derivative rules are other jaxprs
    return inner[0]
  return sum(inner)


def _split_over(specs: Any) -> set[str]:
  entries = [entry for spec in specs for entry in spec if entry is not None]
  return {name for e in entries for name in (e if isinstance(e, tuple) else (e,))}


def subjaxprs(params: dict[str, Any]) -> list[core.Jaxpr]:
  out = []
  for value in params.values():
    for item in value if isinstance(value, (tuple, list)) else (value,):
      if isinstance(item, core.ClosedJaxpr):
        out.append(item.jaxpr)
      elif isinstance(item, core.Jaxpr):
        out.append(item)
  return out
