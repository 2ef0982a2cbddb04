import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_like.config import UserError
from big_vision_like.layers.attention import MultiHeadAttention, attention, pick


def qkv(n=5, m=7, heads=2, d=8):
  rng = np.random.default_rng(0)
  shapes = ((3, n, heads, d), (3, m, heads, d), (3, m, heads, d))
  return [rng.normal(size=s).astype(np.float32) for s in shapes]


def reference(q, k, v, allowed):
  """softmax(q k^T / sqrt(d)) v in float64; allowed [N, M] or [B, N, M]."""
  s = np.einsum("bnhd,bmhd->bhnm", q, k, dtype=np.float64) / np.sqrt(q.shape[-1])
  allowed = np.broadcast_to(allowed, (q.shape[0], q.shape[1], k.shape[1]))
  s = np.where(allowed[:, None], s, -np.inf)
  p = np.exp(s - s.max(-1, keepdims=True))
  return np.einsum("bhnm,bmhd->bnhd", p / p.sum(-1, keepdims=True), v)


def test_attention_equals_the_equation():
  q, k, v = qkv()
  np.testing.assert_allclose(attention(q, k, v), reference(q, k, v, True), atol=1e-5)


def test_mask_and_causal_equal_the_equation():
  q, k, v = qkv(n=6, m=6)
  keep = np.random.default_rng(1).random((3, 6, 6)) < 0.5
  keep |= np.eye(6, dtype=bool)[None]
  np.testing.assert_allclose(
    attention(q, k, v, mask=jnp.asarray(keep)[:, None]), reference(q, k, v, keep), atol=1e-5
  )
  lower = np.tril(np.ones((6, 6), bool))
  np.testing.assert_allclose(attention(q, k, v, causal=True), reference(q, k, v, lower), atol=1e-5)


def test_softmax_of_half_precision_is_float32():
  """300 equal scores: in bf16 the sum of exponentials would stop growing at 256."""
  q = jnp.zeros((1, 1, 1, 8), jnp.bfloat16)
  k, v = jnp.zeros((1, 600, 1, 8), jnp.bfloat16), jnp.ones((1, 600, 1, 8), jnp.bfloat16)
  y = attention(q, k, v)
  assert y.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.asarray(y, np.float32), 1.0, rtol=1e-2)


@pytest.mark.parametrize(
  "n, m, d, dtype, masked, backend, want",
  [
    (196, 196, 64, "bfloat16", False, "gpu", "cudnn"),
    (1, 197, 72, "bfloat16", False, "gpu", "cudnn"),
    (196, 196, 64, "float32", False, "gpu", "xla"),
    (196, 196, 60, "bfloat16", False, "gpu", "xla"),
    (196, 196, 160, "bfloat16", False, "gpu", "xla"),
    (196, 196, 64, "bfloat16", True, "gpu", "cudnn"),
    (197, 197, 64, "bfloat16", True, "gpu", "xla"),  # cuDNN has no gradient for it
    (196, 196, 64, "bfloat16", False, "tpu", "xla"),
    (196, 196, 64, "bfloat16", False, "cpu", "xla"),
  ],
)
def test_pick(n, m, d, dtype, masked, backend, want):
  q, k = (jax.ShapeDtypeStruct((2, s, 4, d), dtype) for s in (n, m))
  mask = jax.ShapeDtypeStruct((2, 1, n, m), "bool") if masked else None
  assert pick(q, k, mask, backend) == want


def test_unknown_impl():
  with pytest.raises(UserError, match="attention impl 'cudn' is unknown; did you mean cudnn"):
    attention(*qkv(), impl="cudn")


def test_multi_head_cross_attention():
  """Keys and values come from the context, whose width may differ; kernels are flat."""
  x, y = jnp.ones((2, 3, 16)), jax.random.normal(jax.random.key(1), (2, 5, 12))
  module = MultiHeadAttention(4)
  params = module.init(jax.random.key(0), x, y)["params"]
  shapes = {k: v["kernel"].shape for k, v in params.items()}
  assert shapes == {"query": (16, 16), "key": (12, 16), "value": (12, 16), "out": (16, 16)}
  out = module.apply({"params": params}, x, y)
  assert out.shape == (2, 3, 16)

  # A query that may see one key returns that key's value, projected.
  mask = jnp.zeros((2, 1, 3, 5), bool).at[:, :, :, 2].set(True)
  out = module.apply({"params": params}, x, y, mask=mask)
  want = y[:, 2] @ params["value"]["kernel"] @ params["out"]["kernel"]
  np.testing.assert_allclose(out, np.broadcast_to(want[:, None], out.shape), atol=1e-5)
