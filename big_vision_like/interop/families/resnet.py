"""ResNet."""

from typing import Any

from big_vision_like.config import UserError
from big_vision_like.interop.families import HF, Family, labels
from big_vision_like.interop.tables import Rule, conv, dense, norm


def _conv_norm(theirs: str, conv_name: str, norm_name: str) -> list[Rule]:
  bn = f"{theirs}.normalization"
  return [
    *conv(f"{theirs}.convolution", f"params/{conv_name}", bias=False),
    *norm(bn, f"params/{norm_name}"),
    Rule(f"{bn}.running_mean", f"batch_stats/{norm_name}/mean"),
    Rule(f"{bn}.running_var", f"batch_stats/{norm_name}/var"),
  ]


def _resnet(hf: HF) -> list[Rule]:
  """Paths of the variables: `params/...` and `batch_stats/...`."""
  out = _conv_norm("resnet.embedder.embedder", "stem_conv", "stem_bn")
  layers = 3 if hf.get("layer_type", "bottleneck") == "bottleneck" else 2
  for s, depth in enumerate(hf["depths"]):
    for b in range(depth):
      theirs, ours = f"resnet.encoder.stages.{s}.layers.{b}", f"stage{s + 1}_block{b}"
      for k in range(layers):
        out += _conv_norm(f"{theirs}.layer.{k}", f"{ours}/conv{k + 1}", f"{ours}/bn{k + 1}")
      out += _conv_norm(f"{theirs}.shortcut", f"{ours}/shortcut_conv", f"{ours}/shortcut_bn")
  return out + dense("classifier.1", "params/head")


def _resnet_model(hf: HF) -> dict[str, Any]:
  bottleneck = hf.get("layer_type", "bottleneck") == "bottleneck"
  width = hf["hidden_sizes"][0] // (4 if bottleneck else 1)
  doubled = [width * (4 if bottleneck else 1) * 2**s for s in range(len(hf["depths"]))]
  if hf.get("downsample_in_bottleneck") or list(hf["hidden_sizes"]) != doubled:
    raise UserError("config.json: stride in the 1x1 convolution, or widths that do not double")
  return dict(bottleneck=bottleneck, stages=tuple(hf["depths"]), width=width, stem="imagenet")


def _resnet_config(model: Any, channels: int) -> dict[str, Any]:
  widths = [model.width * (4 if model.bottleneck else 1) * 2**s for s in range(len(model.stages))]
  head = model.num_classes is not None
  hf = dict(
    model_type="resnet",
    architectures=["ResNetForImageClassification" if head else "ResNetModel"],
    embedding_size=model.width,
    hidden_sizes=widths,
    depths=list(model.stages),
    layer_type="bottleneck" if model.bottleneck else "basic",
    hidden_act="relu",
    num_channels=channels,
  )
  return hf | labels(model)


FAMILIES = {
  "resnet": Family(
    _resnet_model,
    _resnet,
    ignore=r".*\.num_batches_tracked",
    kind="resnet",
    config=_resnet_config,
  )
}
