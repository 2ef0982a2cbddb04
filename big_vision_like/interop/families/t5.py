"""T5's encoder, alone or out of a whole T5, T5 1.1 or Flan-T5."""

from typing import Any

from big_vision_like.config import unknown
from big_vision_like.interop.families import GELU, HF, Family
from big_vision_like.interop.tables import Rule

# `gated-gelu` is the tanh flavour there.
_ACTIVATIONS = {**GELU, "relu": "relu", "silu": "silu"}


def _model(hf: HF) -> dict[str, Any]:
  projection = hf.get("feed_forward_proj", "relu")
  name = "gelu_new" if projection == "gated-gelu" else projection.removeprefix("gated-")
  if name not in _ACTIVATIONS:
    raise unknown("config.json: feed_forward_proj", projection, list(_ACTIVATIONS))
  return dict(
    width=hf.get("d_model", 512),
    depth=hf.get("num_layers", 6),
    mlp_dim=hf.get("d_ff", 2048),
    num_heads=hf.get("num_heads", 8),
    head_dim=hf.get("d_kv", 64),
    vocab_size=hf.get("vocab_size", 32_128),
    activation=_ACTIVATIONS[name],
    gated=projection.startswith("gated-"),
    num_buckets=hf.get("relative_attention_num_buckets", 32),
    max_distance=hf.get("relative_attention_max_distance", 128),
    eps=hf.get("layer_norm_epsilon", 1e-6),
    pool="none",
  )


def _rules(hf: HF) -> list[Rule]:
  ours, attn, mlp = "encoder/block_{i}", "layer.0.SelfAttention", "layer.1.DenseReluDense"
  gated = hf.get("feed_forward_proj", "relu").startswith("gated-")
  names = {"wi_0": "gate", "wi_1": "up"} if gated else {"wi": "up"}
  kernel = lambda theirs, name: Rule(
    f"encoder.block.{{i}}.{theirs}.weight", f"{ours}/{name}/kernel", "o i -> i o"
  )
  return [
    Rule("shared.weight", "embed/embedding"),
    Rule(f"encoder.block.0.{attn}.relative_attention_bias.weight", "rel_pos_bias"),
    Rule("encoder.block.{i}.layer.0.layer_norm.weight", f"{ours}/ln1/scale"),
    *(kernel(f"{attn}.{x[0]}", f"attn/{x}") for x in ("query", "key", "value", "out")),
    Rule("encoder.block.{i}.layer.1.layer_norm.weight", f"{ours}/ln2/scale"),
    *(kernel(f"{mlp}.{theirs}", f"mlp/{name}") for theirs, name in names.items()),
    kernel(f"{mlp}.wo", "mlp/down"),
    Rule("encoder.final_layer_norm.weight", "norm/scale"),
  ]


def _config(model: Any, channels: int) -> dict[str, Any]:
  name = next(k for k, v in _ACTIVATIONS.items() if v == model.activation)
  if model.gated:  # there `gelu` is the tanh flavour, so that the exact one cannot be said
    name = "gated-" + ("gelu" if model.activation == "tanh" else name)
  return dict(
    model_type="t5",
    architectures=["T5EncoderModel"],
    d_model=model.width,
    num_layers=model.depth,
    d_ff=model.mlp_dim,
    num_heads=model.num_heads,
    d_kv=model.head_dim,
    vocab_size=model.vocab_size,
    feed_forward_proj=name,
    relative_attention_num_buckets=model.num_buckets,
    relative_attention_max_distance=model.max_distance,
    layer_norm_epsilon=model.eps,
  )


# The rest of a whole T5, and copies of the embedding.
_IGNORE = r"(encoder|decoder)\.embed_tokens\.weight|decoder\..*|lm_head\..*"
FAMILIES = {"t5": Family(_model, _rules, ignore=_IGNORE, kind="t5", config=_config)}
