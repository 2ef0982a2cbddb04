import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_like import models, tree
from big_vision_like.config import UserError
from big_vision_like.models import resnet

IMAGE = np.random.default_rng(0).normal(size=(4, 9, 9, 3)).astype(np.float32)


def tiny(**kwargs):
  return resnet.make(**{"variant": "18", "stages": (1, 1), "width": 4, "stem": "small", **kwargs})


def shapes(model, size=224):
  image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), image)["params"]


@pytest.mark.parametrize(
  "variant, published",
  [("18", 11_689_512), ("34", 21_797_672), ("50", 25_557_032), ("101", 44_549_160)],
)
def test_published_parameter_counts(variant, published):
  assert tree.num_params(shapes(resnet.make(variant, num_classes=1000))) == published


def test_width_doubles_to_the_published_94_million():
  """ResNet-50 w2 without a head, SimCLR (arXiv:2002.05709) Table 6: 94 M."""
  assert round(tree.num_params(shapes(resnet.make("50", width=128))) / 1e6) == 94


def test_shapes_of_the_stages():
  model = resnet.make(50, num_classes=7)
  image = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32)
  (logits, out), _ = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
  assert logits.shape == out["logits"].shape == (2, 7)
  sizes = {k: v.shape[1:] for k, v in out.items()}
  assert sizes["stem"] == (16, 24, 64) and sizes["stage1"] == (16, 24, 256)
  assert sizes["stage4"] == (2, 3, 2048) and sizes["pooled"] == (2048,)
  small = jax.eval_shape(tiny().init_with_output, jax.random.key(0), IMAGE)[0][1]
  assert small["stage1"].shape == (4, 9, 9, 4) and small["stage2"].shape == (4, 5, 5, 8)


def conv(x, w, stride):
  """Convolution padded by half the kernel on every side, a loop in float64."""
  k, n = w.shape[0], x.shape[1]
  x = np.pad(x.astype(np.float64), [(0, 0), (k // 2,) * 2, (k // 2,) * 2, (0, 0)])
  size = (n + 2 * (k // 2) - k) // stride + 1
  out = np.zeros((len(x), size, size, w.shape[-1]))
  for i in range(k):
    for j in range(k):
      rows = slice(i, i + stride * (size - 1) + 1, stride)
      columns = slice(j, j + stride * (size - 1) + 1, stride)
      out += x[:, rows, columns] @ w[i, j]
  return out


def norm(x):
  return (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)


@pytest.mark.parametrize("variant", ["18", "50"])
def test_forward_in_float64(variant):
  """The whole network again in NumPy, scales at 1, odd image: padding and strides count."""
  model = tiny(variant=variant, zero_init=False, stem="imagenet")
  image = np.random.default_rng(0).normal(size=(2, 22, 22, 3)).astype(np.float32)
  params, stats = models.init(model, jax.random.key(0), image)
  (pooled, _), _ = models.apply(model, params, stats, image, train=True)
  params = jax.device_get(params)
  relu = lambda x: np.maximum(x, 0)
  x = relu(norm(conv(image, params["stem_conv"]["kernel"], 2)))
  wide = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=-np.inf)
  size = (x.shape[1] - 1) // 2 + 1
  x = np.max(
    [
      wide[:, i : i + 2 * size - 1 : 2, j : j + 2 * size - 1 : 2]
      for i in range(3)
      for j in range(3)
    ],
    axis=0,
  )
  for name, stride in (("stage1_block0", 1), ("stage2_block0", 2)):
    p, y = params[name], x
    strides = (1, stride, 1) if variant == "50" else (stride, 1)
    for i, s in enumerate(strides, 1):
      y = norm(conv(y, p[f"conv{i}"]["kernel"], s))
      y = y if i == len(strides) else relu(y)
    if "shortcut_conv" in p:
      x = norm(conv(x, p["shortcut_conv"]["kernel"], stride))
    x = relu(x + y)
  np.testing.assert_allclose(pooled, x.mean((1, 2)), atol=2e-5)


def test_statistics_move_in_training_only():
  model = tiny(num_classes=3)
  params, stats = models.init(model, jax.random.key(0), IMAGE)
  apply = jax.jit(
    lambda train: models.apply(model, params, stats, IMAGE, train=train), static_argnums=0
  )
  (_, _), same = apply(False)
  (_, out), moved = apply(True)
  assert out["logits"].shape == (4, 3)
  np.testing.assert_array_equal(same["batch_stats"]["stem_bn"]["mean"], 0)
  assert jax.tree.map(jnp.shape, moved) == jax.tree.map(jnp.shape, stats)
  assert all(np.any(x) for x in jax.tree.leaves(moved))
  # Residual branches start as nothing: stage1 is its input.
  np.testing.assert_array_equal(out["stage1"], out["stem"])


@pytest.mark.parametrize(
  "kwargs, message",
  [
    (dict(variant="51"), "variant '51' is unknown; did you mean"),
    (dict(stem="imagenett"), "stem 'imagenett' is unknown; did you mean imagenet"),
    (dict(stages=(2, 0)), r"stages = \(2, 0\); expected whole numbers above 0"),
    (dict(with_=3), "key 'with_' is unknown; did you mean width"),
    (dict(dtype="float33"), "dtype 'float33' is unknown; did you mean float3"),
  ],
)
def test_mistakes(kwargs, message):
  with pytest.raises(UserError, match=message):
    tiny(**kwargs)
