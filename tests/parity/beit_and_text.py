"""BEiT, data2vec-vision, BERT and T5: small models, their inputs, and what the references say."""

import numpy as np

from tests.parity import weights

BATCH = 2
_VISION = dict(
  hidden_size=32,
  num_hidden_layers=2,
  num_attention_heads=4,
  intermediate_size=48,
  image_size=16,
  patch_size=4,
)
_BEIT = dict(model_type="beit", **_VISION)
_DATA2VEC = dict(model_type="data2vec-vision", **_VISION)
_TEXT = dict(
  model_type="bert",
  hidden_size=16,
  num_hidden_layers=2,
  num_attention_heads=2,
  intermediate_size=24,
  vocab_size=30,
  max_position_embeddings=10,
)
_T5 = dict(
  model_type="t5",
  architectures=["T5EncoderModel"],
  d_model=16,
  d_kv=12,
  d_ff=24,
  num_layers=2,
  num_heads=2,
  vocab_size=30,
  relative_attention_num_buckets=8,
  relative_attention_max_distance=10,
)

CASES = {
  # Relative positions of each layer; an input of another shape, so that the tables are resampled.
  "beit": dict(
    _BEIT,
    architectures=["BeitForImageClassification"],
    use_relative_position_bias=True,
    num_labels=5,
    input_size=(16, 24),
  ),
  "beit_masked": dict(
    _BEIT,
    architectures=["BeitForMaskedImageModeling"],
    use_shared_relative_position_bias=True,
    use_absolute_position_embeddings=True,
    use_mask_token=True,
    vocab_size=20,
  ),
  "beit_cls": dict(
    _BEIT,
    architectures=["BeitForImageClassification"],
    use_absolute_position_embeddings=True,
    use_mean_pooling=False,
    layer_scale_init_value=0.0,
    layer_norm_eps=1e-6,
    num_labels=3,
  ),
  "data2vec_vision": dict(
    _DATA2VEC,
    architectures=["Data2VecVisionForImageClassification"],
    use_relative_position_bias=True,
    use_shared_relative_position_bias=True,
    use_mask_token=True,
    num_labels=5,
  ),
  "data2vec_vision_bare": dict(
    _DATA2VEC,
    architectures=["Data2VecVisionModel"],
    use_shared_relative_position_bias=True,
    use_mask_token=True,
    patch_size=8,
    input_size=(24, 16),
  ),
  "bert": dict(_TEXT, architectures=["BertModel"]),
  "bert_masked": dict(
    _TEXT, architectures=["BertForMaskedLM"], hidden_act="gelu_new", layer_norm_eps=1e-5
  ),
  "t5": dict(_T5, feed_forward_proj="relu"),
  "t5_gated": dict(_T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
}


def config(name: str) -> dict:
  """Their config of the case."""
  return {k: v for k, v in CASES[name].items() if k != "input_size"}


def inputs(name: str) -> dict[str, np.ndarray]:
  """image, mask and labels, or tokens, mask, types and labels."""
  case = CASES[name]
  noise = lambda *shape: weights.tensor("input/noise", shape)
  if "patch_size" in case:
    height, width = case.get("input_size", (case["image_size"],) * 2)
    out = {"image": weights.image(BATCH, height, width, 3)}
    if name in ("beit_masked", "data2vec_vision_bare"):
      count = height * width // case["patch_size"] ** 2
      out["mask"] = noise(BATCH, count) > 0.1 * count**-0.5
      out["labels"] = weights.tokens(BATCH, count, case.get("vocab_size", 2))
    else:
      out["labels"] = np.arange(BATCH) % case["num_labels"]
    return out
  length = 10 if case["model_type"] == "bert" else 14
  # Token 0 is padding: its embedding has no gradient in the reference.
  tokens = 1 + weights.tokens(BATCH, length, case["vocab_size"] - 1)
  out = {"tokens": tokens, "mask": np.arange(length) < np.array([[length], [6]])}
  if case["model_type"] == "bert":
    out["types"] = (np.arange(length) > np.array([[4], [2]])).astype(np.int32)
    out["labels"] = np.where(noise(BATCH, length) > 0, tokens, -1)
  return out


def reference(name: str) -> dict[str, np.ndarray]:
  """Outputs, loss (without one: the mean of the squared tokens) and the norm of the gradient."""
  import torch

  from tests.parity import references

  model, kind = references.load(config(name)), CASES[name]["model_type"]
  x = {k: torch.tensor(v) for k, v in inputs(name).items()}
  if "image" in x:
    pixels = x["image"].permute(0, 3, 1, 2)
    if name == "beit_masked":
      labels = x["labels"].long()[x["mask"]]
      got = model(pixels, bool_masked_pos=x["mask"], labels=labels)
    elif "mask" in x:
      got = model(pixels, bool_masked_pos=x["mask"])
    else:
      got = model(pixels, labels=x["labels"].long())
  else:
    kwargs = dict(input_ids=x["tokens"].long(), attention_mask=x["mask"].long())
    if kind == "bert":
      kwargs["token_type_ids"] = x["types"].long()
    if name == "bert_masked":
      kwargs["labels"] = torch.where(x["labels"] < 0, -100, x["labels"]).long()
    got = model(**kwargs)
  if "last_hidden_state" in got:
    # Patches only: our tokens have the class token apart.
    tokens = got.last_hidden_state[:, 1:] if "image" in x else got.last_hidden_state
    out, loss = {"tokens": tokens}, torch.mean(tokens**2)
    if kind == "bert":
      out["pooled"] = got.pooler_output
      loss = loss + torch.mean(got.pooler_output**2)
  else:
    out, loss = {"logits": got.logits}, got.loss
  loss.backward()
  out["loss"] = loss
  grads = [p.grad for p in model.parameters() if p.grad is not None]
  out["grad_norm"] = torch.sqrt(sum((g.double() ** 2).sum() for g in grads))
  return {k: v.detach().float().numpy() for k, v in out.items()}
