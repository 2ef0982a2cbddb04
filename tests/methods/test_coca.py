"""CoCa: both losses against NumPy, what may see what, and cached decoding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_like import transforms, tree
from big_vision_like.config import UserError, wrap
from big_vision_like.losses import captioning
from big_vision_like.methods import coca
from big_vision_like.models import coca as model_lib

BATCH, LENGTH, VOCAB = 6, 7, 11
MODEL = dict(
  image=dict(width=16, depth=1, mlp_dim=32, num_heads=2, patch_size=4, image_size=8, scan=False),
  width=24,
  unimodal_depth=1,
  multimodal_depth=2,
  mlp_dim=32,
  num_heads=2,
  vocab_size=VOCAB,
  max_len=8,
  scan=False,
  num_queries=3,
)
rng = np.random.default_rng(0)
LENGTHS = np.array([7, 3, 5, 1, 4, 6])


def make(**changes):
  return coca.make(wrap({"model": MODEL | changes, "loss": {"impl": "dense"}}))


def weights(method, batch):
  """Larger than at initialisation, where the head's logits are too alike to show a wrong one."""
  params, _ = jax.jit(method.init)(jax.random.key(0), batch)
  return jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), params)


@pytest.fixture(scope="module")
def run():
  method, model = make(), model_lib.make(MODEL)
  text = rng.integers(2, VOCAB, (BATCH, LENGTH))
  text[np.arange(LENGTH)[None, :] >= LENGTHS[:, None]] = 0
  image = rng.normal(size=(BATCH, 8, 8, 1))
  batch = {"image": jnp.asarray(image, jnp.float32), "text": jnp.asarray(text, jnp.int32)}
  params = weights(method, batch)
  forward = jax.jit(lambda b: model.apply({"params": params}, b["image"], b["text"]))
  return method, params, batch, forward


def log_softmax(x):
  x = x - x.max(axis=-1, keepdims=True)
  return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def test_token_logprob(run):
  method, params, batch, forward = run
  text = np.asarray(batch["text"])
  out = jax.device_get(jax.jit(method.predict["token_logprob"])(params, {}, batch))
  logprob = log_softmax(np.asarray(forward(batch)[0]))
  expected = np.take_along_axis(logprob, text[..., None], axis=-1)[..., 0]
  assert (out["real"] == (text != 0)).all() and out["real"].sum() == LENGTHS.sum()
  np.testing.assert_allclose(out["logprob"], expected, atol=1e-5)


def test_losses_are_the_equations(run):
  method, params, batch, forward = run
  logits, out = jax.device_get(forward(batch))
  x, y = np.float64(out["image/embed"]), np.float64(out["text/embed"])
  np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, rtol=1e-5)
  scores = x @ y.T * np.exp(np.float64(out["logit_scale"]))
  con = -(np.diag(log_softmax(scores)) + np.diag(log_softmax(scores.T))).mean() / 2
  text, words = np.asarray(batch["text"]), []
  for i in range(BATCH):
    likelihood = log_softmax(np.float64(logits[i]))
    words += [-likelihood[t, text[i, t]] for t in range(LENGTHS[i])]
  value, (_, metrics) = jax.jit(method.loss)(params, {}, batch, jax.random.key(0), 0)
  np.testing.assert_allclose(metrics["contrastive"], con, rtol=1e-5)
  np.testing.assert_allclose(metrics["caption"], np.mean(words), rtol=1e-5)
  np.testing.assert_allclose(value, con + 2 * np.mean(words), rtol=1e-5)

  each = jax.jit(method.predict["loss_per_example"])(params, {}, batch)
  own = [np.mean(words[s : s + n]) for s, n in zip(np.cumsum(LENGTHS) - LENGTHS, LENGTHS)]
  np.testing.assert_allclose(np.mean(each), con + 2 * np.mean(own), rtol=1e-5)


def test_gradient_of_the_caption_loss():
  """d/dlogits = (softmax - onehot) / tokens where a token counts, else nothing."""
  logits, targets = rng.normal(size=(2, 3, 5)), rng.integers(0, 5, (2, 3))
  mask = np.array([[True, True, False], [True, False, False]])
  tokens, real = jnp.asarray(targets), jnp.asarray(mask)
  loss = lambda z: captioning.mean_over_tokens(captioning.token_nll(z, tokens), real)
  grad = jax.grad(loss)(jnp.asarray(logits, jnp.float32))
  want = (np.exp(log_softmax(logits)) - np.eye(5)[targets]) * mask[..., None] / 3
  np.testing.assert_allclose(grad, want, atol=1e-6)


@pytest.mark.slow  # test_transforms has GradCache's of every day
def test_grad_cache_equals_the_whole_batch(run):
  """Also of captions of unequal length: the mean is over the tokens of the whole batch."""
  method, params, batch, _ = run
  rest = ({}, batch, jax.random.key(0), 0)
  want = jax.jit(jax.value_and_grad(method.loss, has_aux=True))(params, *rest)
  got = jax.jit(transforms.grad_cache(method, 3).grad)(params, *rest)
  compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  jax.tree.map(compare, got, want)


def test_padding_does_not_matter(run):
  """More of it, or less, changes no loss and no embedding."""
  method, params, batch, _ = run
  shorter = {"image": batch["image"][1:3], "text": batch["text"][1:3, :5]}
  longer = {"image": batch["image"][1:3], "text": jnp.pad(batch["text"][1:3], ((0, 0), (0, 1)))}
  results = []
  for rows in (shorter, longer):
    value, (_, metrics) = jax.jit(method.loss)(params, {}, rows, jax.random.key(0), 0)
    embedding = jax.jit(method.predict["text_embed"])(params, {}, rows)
    results.append((value, metrics["caption"], embedding))
  for a, b in zip(*results):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_what_sees_what(run):
  _, _, batch, forward = run
  base, out = forward(batch)
  at = 3
  text = batch["text"].at[0, at].set(2 + (batch["text"][0, at] - 1) % (VOCAB - 2))
  assert (text != batch["text"]).sum() == 1
  changed, new = forward({**batch, "text": text})
  moved = lambda a, b: np.abs(np.asarray(a - b)).reshape(len(a), -1).max(axis=1)
  words = moved(base[0], changed[0])
  # Token 3 is predicted from what comes before it, and only what comes after sees it.
  assert (words[: at + 1] == 0).all() and (words[at + 1 :] > 1e-4).all()
  assert moved(out["text/embed"], new["text/embed"])[0] > 1e-4  # CLS sees all of the text
  np.testing.assert_array_equal(base[1:], changed[1:])

  swapped, new = forward({**batch, "image": batch["image"][::-1]})
  assert moved(base, swapped).min() > 1e-4  # the multimodal half looks at the image
  np.testing.assert_array_equal(out["text/tokens"], new["text/tokens"])  # the unimodal does not


def test_cached_generation_equals_uncached(run):
  method, params, batch, forward = run
  length = LENGTH
  fn = lambda **o: jax.jit(
    lambda p, b, r: method.predict["generate"](p, {}, b, r, max_new_tokens=length, **o)
  )(params, {"image": batch["image"]}, jax.random.key(1))
  got = np.asarray(fn())
  text, done = np.zeros((BATCH, length), np.int32), np.zeros(BATCH, bool)
  for t in range(length):
    # Tokens past t are padding here: that the model is causal makes them harmless.
    best = np.asarray(forward({**batch, "text": jnp.asarray(text)})[0][:, t]).argmax(axis=-1)
    text[:, t] = np.where(done, 0, best)
    done |= text[:, t] == 1
  np.testing.assert_array_equal(got, text)
  assert len(np.unique(got)) > 2
  np.testing.assert_array_equal(fn(temperature=1.0, top_k=1), got)
  assert fn(beams=2).shape == got.shape


@pytest.mark.parametrize("scan", [True, False])
def test_cached_logits_equal_teacher_forcing(run, scan):
  _, params, batch, _ = run
  model = model_lib.make(MODEL | {"scan": scan})
  if scan:
    params = weights(make(scan=True), batch)
  apply = lambda *args, **how: model.apply({"params": params}, *args, **how)
  text = jnp.asarray([[3, 4, 1, 2, 5, 6, 7]] * BATCH)

  def one_by_one(image):
    """The step that `generate` takes, over the tokens of the text."""
    tokens = jnp.pad(text[:, :-1], ((0, 0), (1, 0)))

    def step(cache, t):
      logits, cache = apply(tokens[:, t], cache, t, method="decode")
      return cache, logits

    cache = apply(image, LENGTH, method="new_cache")
    return jax.lax.scan(step, cache, jnp.arange(LENGTH))[1].swapaxes(0, 1)

  want = jax.jit(apply)(batch["image"], text)[0]
  np.testing.assert_allclose(jax.jit(one_by_one)(batch["image"]), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant, millions", [("B/18", 383), ("L/18", 787), ("g/18", 2_100)])
def test_published_sizes(variant, millions):
  """Table 1 leaves out the poolers; it counts 1.1 B for the text side of the largest."""
  model = model_lib.make({"variant": variant, "vocab_size": 64_000, "image": {"image_size": 288}})
  args = jax.ShapeDtypeStruct((1, 288, 288, 3), "float32"), jax.ShapeDtypeStruct((1, 64), "int32")
  params = jax.eval_shape(model.init, jax.random.key(0), *args)["params"]
  count = tree.num_params({k: v for k, v in params.items() if "pool" not in k}) / 1e6
  print(variant, count, {k: tree.num_params(v) for k, v in params.items()})
  assert abs(count / millions - 1) < (0.005 if variant != "g/18" else 0.07)


def test_mistakes():
  for change, message in (
    (dict(variant="G/14"), "config.model.variant 'G/14' is unknown"),
    (dict(image=MODEL["image"] | {"pool": "gap"}), "pool = 'gap'; the poolers of CoCa"),
    (dict(num_heads=5), "width 24 is not a multiple of 5 heads"),
    (dict(temperature_init=0.0), "temperature_init = 0.0"),
    (dict(widht=3), "key 'widht' is unknown; did you mean width"),
  ):
    with pytest.raises(UserError, match=message):
      make(**change)
  method = make()
  batch = {"image": jnp.zeros((1, 8, 8, 1)), "text": jnp.zeros((1, 9), jnp.int32)}
  with pytest.raises(UserError, match="text of 9 tokens is longer than model"):
    jax.eval_shape(method.init, jax.random.key(0), batch)
