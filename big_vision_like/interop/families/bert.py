"""BERT's encoder, bare or with the head of masked language modelling."""

from typing import Any

from big_vision_like.config import UserError
from big_vision_like.interop.families import (
  HF,
  Family,
  architecture,
  transformer,
  transformer_config,
)
from big_vision_like.interop.tables import Rule, dense, norm

_BASE = dict(
  hidden_size=768,
  num_hidden_layers=12,
  num_attention_heads=12,
  intermediate_size=3072,
  layer_norm_eps=1e-12,
)
_MLM = ("BertForMaskedLM", "BertForPreTraining")


def _model(hf: HF) -> dict[str, Any]:
  if hf.get("position_embedding_type", "absolute") != "absolute" or hf.get("is_decoder"):
    raise UserError("config.json: a BERT with relative positions or as a decoder")
  mlm = architecture(hf, "") in _MLM
  return transformer(hf, **_BASE) | dict(
    vocab_size=hf.get("vocab_size", 30_522),
    max_len=hf.get("max_position_embeddings", 512),
    type_vocab_size=hf.get("type_vocab_size", 2),
    pool="none" if mlm else "pooler",
    mlm=mlm,
  )


def _rules(hf: HF) -> list[Rule]:
  at = "" if architecture(hf, "BertModel") == "BertModel" else "bert."
  layer, ours, mlm = f"{at}encoder.layer.{{i}}", "encoder/block_{i}", "cls.predictions"
  return [
    Rule(f"{at}embeddings.word_embeddings.weight", "embed/embedding"),
    Rule(f"{at}embeddings.position_embeddings.weight", "pos_embed"),
    Rule(f"{at}embeddings.token_type_embeddings.weight", "type_embed"),
    *norm(f"{at}embeddings.LayerNorm", "embed_norm"),
    *dense(f"{layer}.attention.self.query", f"{ours}/attn/query"),
    *dense(f"{layer}.attention.self.key", f"{ours}/attn/key"),
    *dense(f"{layer}.attention.self.value", f"{ours}/attn/value"),
    *dense(f"{layer}.attention.output.dense", f"{ours}/attn/out"),
    *norm(f"{layer}.attention.output.LayerNorm", f"{ours}/ln1"),
    *dense(f"{layer}.intermediate.dense", f"{ours}/mlp/up"),
    *dense(f"{layer}.output.dense", f"{ours}/mlp/down"),
    *norm(f"{layer}.output.LayerNorm", f"{ours}/ln2"),
    *dense(f"{at}pooler.dense", "pooler"),
    *dense(f"{mlm}.transform.dense", "mlm_dense"),
    *norm(f"{mlm}.transform.LayerNorm", "mlm_norm"),
    Rule(f"{mlm}.bias", "mlm_bias"),
  ]


def _config(model: Any, channels: int) -> dict[str, Any]:
  return transformer_config(model) | dict(
    model_type="bert",
    architectures=["BertForMaskedLM" if model.mlm else "BertModel"],
    vocab_size=model.vocab_size,
    max_position_embeddings=model.max_len,
    type_vocab_size=model.type_vocab_size,
  )


# What is left of published files: the pooler and heads that we have no use for, a tied copy of the
# word embeddings, the numbers 0, 1, 2, ...
_IGNORE = r"cls\..*|(bert\.)?pooler\..*|.*\.position_ids"
FAMILIES = {"bert": Family(_model, _rules, ignore=_IGNORE, kind="bert", config=_config)}
