"""The loss against the papers' algorithms in NumPy, with a network of one formula."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_like import models
from big_vision_like.config import UserError, wrap
from big_vision_like.generation import diffusion, samplers
from big_vision_like.methods import ddpm

RNG = np.random.default_rng(0)
X = RNG.uniform(-1, 1, size=(6, 2, 2, 1)).astype(np.float32)
LABEL = np.array([0, 1, 2, 0, 1, 2], np.int32)
BATCH = {"image": X, "label": LABEL, "index": np.arange(6)}
PARAMS = {"scale": np.float32(0.7), "shift": np.array([0.1, -0.2, 0.3, 0.5], np.float32)}
BAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
NULL = 3
KEY = jax.random.key(0)


class Formula(nn.Module):
  """scale z + shift[label] + t / 1000, the null class where there is no label."""

  num_classes: int | None = NULL
  image_size: tuple[int, int] = (2, 2)
  out_channels: int = 1

  @nn.compact
  def __call__(self, z, t, label=None, *, train=False):
    scale = self.param("scale", nn.initializers.ones, ())
    shift = self.param("shift", nn.initializers.ones, (NULL + 1,))
    label = jnp.full(t.shape, NULL) if label is None else label
    out = scale * z + (jnp.asarray(shift)[label] + t / 1000)[:, None, None, None]
    return out, {"seen": label, "time": t}


@pytest.fixture
def make(monkeypatch):
  def build(num_classes=NULL, diffusion=None, **loss):
    monkeypatch.setattr(models, "make", lambda cfg: Formula(num_classes))
    return ddpm.make(
      wrap({"model": {}, "diffusion": diffusion or {"name": "linear"}, "loss": loss})
    )

  return build


def drawn(rng, label_dropout):
  """What the loss draws: times, noise, null labels."""
  times, noise, null, _ = jax.random.split(rng, 4)
  t = np.asarray(jax.random.randint(times, (6,), 0, 1000))
  eps = np.asarray(jax.random.normal(noise, X.shape), np.float64)
  return t, eps, np.asarray(jax.random.bernoulli(null, label_dropout, (6,)))


def formula(z, t, label, params=PARAMS):
  return params["scale"] * z + (params["shift"][label] + t / 1000)[:, None, None, None]


@pytest.mark.parametrize(
  "kind, weight",
  [
    ("eps", "simple"),
    ("eps", "min_snr"),
    ("x0", "simple"),
    ("x0", "truncated_snr"),
    ("v", "simple"),
    ("previous", "simple"),
  ],
)
def test_loss_and_gradient_are_the_papers(make, kind, weight):
  """DDPM Algorithm 1 and Eq. 14, CFG Algorithm 1, min-SNR Eq. 7, progressive distillation."""
  rng = jax.random.key(3)
  method = make(target=kind, weight=weight, label_dropout=0.4)
  fn = jax.jit(jax.value_and_grad(method.loss, has_aux=True))
  (value, (aux, _)), grads = fn(PARAMS, {}, BATCH, rng, 0)
  assert aux == {}

  t, eps, null = drawn(rng, 0.4)
  assert 0 < null.sum() < 6
  label = np.where(null, NULL, LABEL)
  bar, x = BAR[t][:, None, None, None], X.astype(np.float64)
  z = np.sqrt(bar) * x + np.sqrt(1 - bar) * eps
  snr = BAR[t] / (1 - BAR[t])
  before = np.where(t > 0, BAR[t - 1], 1.0)[:, None, None, None]
  beta = 1 - bar / before
  wanted = {
    "eps": eps,
    "x0": x,
    "v": np.sqrt(bar) * eps - np.sqrt(1 - bar) * x,
    "previous": np.sqrt(before) * beta / (1 - bar) * x
    + np.sqrt(1 - beta) * (1 - before) / (1 - bar) * z,
  }[kind]
  w = np.ones(6)
  if weight == "min_snr":
    w = np.minimum(snr, 5) / snr
  elif weight == "truncated_snr":
    w = np.maximum(snr, 1)
  gap = formula(z, t, label) - wanted
  np.testing.assert_allclose(value, np.mean(w * np.mean(gap**2, (1, 2, 3))), rtol=1e-4)
  per = 2 * w[:, None, None, None] * gap / X.size
  np.testing.assert_allclose(grads["scale"], np.sum(per * z), rtol=1e-3, atol=1e-5)
  shift = [np.sum(per[label == k]) for k in range(NULL + 1)]
  np.testing.assert_allclose(grads["shift"], shift, rtol=1e-3, atol=1e-5)


def test_labels_are_dropped_with_probability_p(make):
  """The gradient of the null class's shift is there only by dropout; its share is p."""
  batch = {"image": np.zeros((4000, 2, 2, 1), np.float32), "label": np.ones(4000, np.int32)}
  flat = {"scale": np.float32(0), "shift": np.full(4, 100, np.float32)}
  for p in (0.0, 0.1):
    method = make(label_dropout=p)
    grad = jax.jit(jax.grad(lambda q, m=method: m.loss(q, {}, batch, KEY, 0)[0]))
    shift = np.asarray(grad(flat)["shift"])  # all examples give about the same, 2 * 100.5 / n
    assert shift[NULL] / shift.sum() == pytest.approx(p, abs=0.015)
    assert not shift[[0, 2]].any()


def test_without_classes_labels_are_not_seen(make):
  method = make(num_classes=None)
  fn = jax.jit(method.loss)
  a = fn(PARAMS, {}, BATCH, KEY, 0)[0]
  b = fn(PARAMS, {}, {"image": X, "index": BATCH["index"]}, KEY, 0)[0]
  np.testing.assert_array_equal(a, b)


def test_each_example_is_one_mean_of_eight_times(make):
  method = make(target="v")
  found = jax.jit(method.predict["loss_per_example"])(PARAMS, {}, BATCH, KEY)
  want = np.zeros(6)
  for i, t in enumerate(range(999, 0, -125)):
    eps = np.asarray(jax.random.normal(jax.random.fold_in(KEY, i), X.shape), np.float64)
    a, s = np.sqrt(BAR[t]), np.sqrt(1 - BAR[t])
    gap = formula(a * X + s * eps, np.full(6, t), LABEL) - (a * eps - s * X)
    want += np.mean(gap**2, (1, 2, 3)) / 8
  np.testing.assert_allclose(found, want, rtol=1e-4)
  # Of the example alone.
  part = {k: v[:2] for k, v in BATCH.items()} | {"image": np.stack([X[0], X[1]])}
  assert method.predict["loss_per_example"](PARAMS, {}, part, KEY).shape == (2,)


@pytest.mark.parametrize("guidance", [0, 1, 3.0])
def test_samples_are_guided(make, guidance):
  """predict["sample"] equals DDIM with eps = (1 + w) eps(c) - w eps(null), w = guidance - 1."""
  sample = make().predict["sample"]
  options = dict(steps=5, sampler="ddim", guidance=guidance, clip=False, eta=0.5)
  found = jax.jit(lambda b: sample(PARAMS, {}, b, KEY, **options))({"label": LABEL})

  def denoise(z, t):
    z, t = np.asarray(z), np.asarray(t)
    cond, null = (formula(z, t, k) for k in (LABEL, np.full(6, NULL)))
    eps = guidance * cond + (1 - guidance) * null
    bar = BAR[t.astype(int)][:, None, None, None]
    return np.float32((z - np.sqrt(1 - bar) * eps) / np.sqrt(bar))

  pure = lambda z, t: jax.pure_callback(denoise, jax.ShapeDtypeStruct(z.shape, z.dtype), z, t)
  schedule = diffusion.make_schedule("linear")
  want = samplers.ddim(pure, KEY, X.shape, schedule, 5, eta=0.5)
  np.testing.assert_allclose(found, want, rtol=2e-3, atol=2e-3)


def test_samples_need_no_image(make):
  sample = make(num_classes=None).predict["sample"]
  run = jax.jit(lambda b: sample(PARAMS, {}, b, KEY, steps=3, sampler="dpmpp_2m"))
  out = np.asarray(run({"index": BATCH["index"]}))
  assert out.shape == X.shape and np.abs(out).max() <= 1
  np.testing.assert_array_equal(out, run({"label": LABEL}))


def test_features_are_at_a_time(make):
  method = make()
  named = method.predict["features"](PARAMS, {}, BATCH, noise=0.2)
  assert set(np.asarray(named["time"])) == {200.0} and list(named["seen"]) == list(LABEL)
  continuous = make(diffusion={"name": "continuous_cosine"})
  named = continuous.predict["features"](PARAMS, {}, BATCH, noise=0.2)
  np.testing.assert_allclose(named["time"], 200.0, rtol=1e-6)


@pytest.mark.parametrize(
  "kwargs, message",
  [
    (dict(target="noise"), "config.loss.target 'noise' is unknown; .*known: eps, previous, v, x0"),
    (dict(weight="p2"), "config.loss.weight 'p2' is unknown"),
    (dict(label_dropout=1.5), "label_dropout = 1.5; expected 0 <= p < 1"),
    (dict(diffusion={"name": "sigmoid"}), "config.diffusion.name 'sigmoid' is unknown"),
    (dict(diffusion={"name": "cosine", "zero_terminal_snr": True}), "'eps' has no image at zero"),
  ],
)
def test_mistakes_of_the_config(make, kwargs, message):
  with pytest.raises(UserError, match=message):
    make(**kwargs)


def test_mistakes_of_a_call(make):
  method = make()
  for batch, message in (
    ({"image": np.zeros((1, 3, 2, 1)), "label": LABEL[:1]}, r"image is \(3, 2, 1\), but .* makes"),
    ({"image": X}, "num_classes needs label"),
  ):
    with pytest.raises(UserError, match=message):
      method.init(KEY, batch)
  sample = method.predict["sample"]
  for batch, options, message in (
    ({"index": LABEL}, dict(guidance=2.0), "guidance = 2.0 needs a conditional model and labels"),
    ({"label": LABEL}, dict(sampler="dimm"), "sampler 'dimm' is unknown"),
    ({"label": LABEL}, dict(sampler="heun", eta=1.0), "key 'eta' is unknown"),
    ({"label": LABEL}, dict(steps=1001), "steps = 1001; expected a whole number from 1 to 1000"),
  ):
    with pytest.raises(UserError, match=message):
      sample(PARAMS, {}, batch, KEY, **options)
