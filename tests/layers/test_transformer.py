import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_like import tree
from big_vision_like.config import UserError
from big_vision_like.layers.drop_path import DropPath
from big_vision_like.layers.pos_embed import rope_2d
from big_vision_like.layers.transformer import Encoder, MapPool

X = np.random.default_rng(0).normal(size=(2, 6, 16)).astype(np.float32)
SIZE = dict(depth=3, num_heads=2, mlp_dim=32)


@pytest.fixture(scope="module")
def params():
  """Of the scanned encoder, moved off the initial ones and zeros so that every one counts."""
  params = jax.jit(Encoder(**SIZE).init)(jax.random.key(0), X)["params"]
  leaves, treedef = jax.tree.flatten(params)
  rng = np.random.default_rng(1)
  return treedef.unflatten([x + 0.1 * rng.normal(size=x.shape).astype(np.float32) for x in leaves])


def unstack(params):
  """blocks/... with a depth axis -> block_0/..., block_1/..., ..."""
  blocks = {
    f"block_{i}": jax.tree.map(lambda x, i=i: x[i], params["blocks"]) for i in range(SIZE["depth"])
  }
  return {"norm": params["norm"]} | blocks


def layer_norm(x, p):
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  return x * p["scale"] + p["bias"]


def dense(x, p):
  return x @ p["kernel"] + p["bias"]


def mlp(x, p):
  h = dense(x, p["up"])
  return dense(0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3))), p["down"])


def mha(x, y, p, heads=2):
  q, k, v = (
    dense(z, p[n]).reshape(*z.shape[:2], heads, -1)
    for n, z in (("query", x), ("key", y), ("value", y))
  )
  s = np.einsum("bnhd,bmhd->bhnm", q, k) / np.sqrt(q.shape[-1])
  s = np.exp(s - s.max(-1, keepdims=True))
  out = np.einsum("bhnm,bmhd->bnhd", s / s.sum(-1, keepdims=True), v)
  return dense(out.reshape(x.shape), p["out"])


def f64(params):
  return jax.tree.map(lambda x: np.asarray(x, np.float64), params)


def test_encoder_equals_numpy(params):
  p, x = f64(unstack(params)), X.astype(np.float64)
  for i in range(SIZE["depth"]):
    b = p[f"block_{i}"]
    y = layer_norm(x, b["ln1"])
    x = x + mha(y, y, b["attn"])
    x = x + mlp(layer_norm(x, b["ln2"]), b["mlp"])
  out = jax.jit(Encoder(**SIZE).apply)({"params": params}, X)
  np.testing.assert_allclose(out, layer_norm(x, p["norm"]), atol=1e-4)


def test_map_pool_equals_numpy():
  pool = MapPool(num_heads=2, mlp_dim=32)
  params = pool.init(jax.random.key(2), X)["params"]
  p = f64(params)
  probe = np.broadcast_to(p["probe"], (2, 1, 16))
  y = mha(probe, X.astype(np.float64), p["attn"])
  out = pool.apply({"params": params}, X)
  assert out.shape == (2, 16)
  np.testing.assert_allclose(out, (y + mlp(layer_norm(y, p["norm"]), p["mlp"]))[:, 0], atol=1e-5)

  short = pool.apply({"params": params}, X[:, :4])
  padded = pool.apply({"params": params}, X, mask=(jnp.arange(6) < 4)[None, None, None])
  np.testing.assert_allclose(padded, short, atol=1e-6)


def test_scan_equals_unrolled(params):
  scanned = Encoder(**SIZE).apply({"params": params}, X)
  model = Encoder(**SIZE, scan=False)
  unrolled = model.apply({"params": unstack(params)}, X)
  np.testing.assert_allclose(scanned, unrolled, atol=1e-5)
  shapes = jax.eval_shape(model.init, jax.random.key(0), X)["params"]
  assert tree.flatten(shapes).keys() == tree.flatten(unstack(params)).keys()


def test_scan_initialises_each_block_anew():
  params = jax.jit(Encoder(**SIZE).init)(jax.random.key(0), X)["params"]
  kernel = params["blocks"]["attn"]["query"]["kernel"]
  assert kernel.shape == (3, 16, 16)
  assert np.abs(kernel[0] - kernel[1]).max() > 0.1
  limit = np.sqrt(6 / 32)  # xavier uniform of one block, not of the stack
  assert 0.9 * limit < np.abs(kernel).max() <= limit


@pytest.mark.parametrize("remat, scan", [("full", True), ("dots_no_batch", False)])
def test_remat_keeps_the_gradient(params, remat, scan):
  p = params if scan else unstack(params)

  @jax.jit
  def grads(p):
    def loss(p, remat):
      model = Encoder(**SIZE, scan=scan, remat=remat, dropout=0.5, drop_path=0.3)
      rope = rope_2d((2, 3), 8)
      rngs = {"dropout": jax.random.key(3)}
      return jnp.sum(model.apply({"params": p}, X, rope=rope, train=True, rngs=rngs) ** 3)

    return jax.grad(loss)(p, "none"), jax.grad(loss)(p, remat)

  plain, other = (tree.flatten(g) for g in grads(p))
  for name in plain:
    np.testing.assert_allclose(other[name], plain[name], rtol=1e-4, atol=1e-4, err_msg=name)


def test_remat_keeps_less(params):
  """`full` saves the block inputs only: fewer bytes pass from forward to backward."""

  def saved(remat):
    model = Encoder(**SIZE, remat=remat)
    _, pullback = jax.eval_shape(
      lambda p: jax.vjp(lambda p: model.apply({"params": p}, X), p), params
    )
    return tree.num_bytes(pullback)

  assert saved("full") < saved("dots_no_batch") < saved("none")


def test_unknown_names():
  with pytest.raises(UserError, match="remat policy 'dot' is unknown; did you mean dots"):
    Encoder(**SIZE, remat="dot").init(jax.random.key(0), X)
  with pytest.raises(UserError, match="gelu 'erf' is unknown; known: exact, quick, silu, tanh"):
    Encoder(**SIZE, gelu="erf").init(jax.random.key(0), X)


def test_causal_does_not_see_the_future(params):
  """Under scan, remat and jit: token 3 moves tokens 3, 4, 5 only."""
  model = Encoder(**SIZE, remat="full")
  apply = jax.jit(lambda x: model.apply({"params": params}, x, causal=True))
  moved = X.copy()
  moved[:, 3, 0] += 1
  change = np.abs(apply(moved) - apply(X)).max(axis=(0, 2))
  assert (change[:3] == 0).all() and (change[3:] > 1e-3).all()


def test_dropout_differs_between_blocks_and_is_off_in_evaluation(params):
  model = Encoder(**SIZE, dropout=0.5, drop_path=0.5)
  plain = Encoder(**SIZE).apply({"params": params}, X)
  np.testing.assert_array_equal(model.apply({"params": params}, X), plain)
  run = lambda k: model.apply(
    {"params": params}, X, train=True, rngs={"dropout": jax.random.key(k)}
  )
  assert np.abs(run(0) - run(1)).max() > 0.1


def test_drop_path_drops_whole_examples_and_keeps_the_mean():
  x = jnp.ones((4000, 2, 3))
  run = lambda **kw: DropPath().apply({}, x, 0.25, rngs={"dropout": jax.random.key(0)}, **kw)
  y = np.asarray(run(train=True))
  assert (y == y[:, :1, :1]).all()
  np.testing.assert_allclose(np.unique(y), [0, 1 / 0.75], rtol=1e-6)
  assert abs(y.mean() - 1) < 0.05
  np.testing.assert_array_equal(run(train=False), x)
