"""Transforms method -> method, each on a tiny SigLIP and on a toy with a scanned kernel."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import make_mesh

from big_vision_like import axes, compose, step, train, transforms, tree
from big_vision_like import state as state_lib
from big_vision_like.config import UserError, wrap
from big_vision_like.interop import files
from big_vision_like.losses import distillation
from big_vision_like.method import Method, joined
from configs import classify
from tests import tiny
from tools import export

KEY = jax.random.key(3)
SIZE = 16


def toy(classes=3):
  """Two scanned layers and a head; aux counts updates. The loss splits at the logits."""

  def init(rng, batch):
    a, b = jax.random.split(rng)
    params = {
      "blocks": {"kernel": jax.random.normal(a, (2, 6, 6)) / 3, "bias": jnp.ones((2, 6)) / 9},
      "head": {"kernel": jax.random.normal(b, (6, classes)), "bias": jnp.zeros(classes)},
    }
    return params, {"count": jnp.zeros(())}

  def hidden(params, aux, batch, rng=None):
    x = batch["image"].reshape(len(batch["image"]), -1)[:, :6]
    for kernel, bias in zip(params["blocks"]["kernel"], params["blocks"]["bias"]):
      x = jnp.tanh(x @ kernel + bias[None])
    return x

  def logits(params, aux, batch, rng=None):
    return hidden(params, aux, batch) @ params["head"]["kernel"] + params["head"]["bias"][None]

  def represent(params, aux, batch, rng):
    z = logits(params, aux, batch)
    return z * jax.random.bernoulli(rng, 0.7, z.shape)

  def compare(params, aux, z, batch, rng, step):
    loss = optax.softmax_cross_entropy_with_integer_labels(z, batch["label"])
    # Not a mean over examples, so that parts of the batch alone would not do.
    return jnp.mean(loss) + jnp.std(z), (aux, {"spread": jnp.std(z)})

  return Method(
    init=init,
    loss=joined(represent, compare),
    predict={"image_embed": hidden, "logits": logits},
    after_update=lambda params, aux, step: {"count": aux["count"] + 1},
    split=(represent, compare),
  )


# One block a tower: as little to compile as there can be.
small = functools.partial(tiny.config, model__image__depth=1, model__text__depth=1)


@functools.cache
def method_of(name):
  if name == "toy":
    return toy()
  return compose.make_method(wrap({**small().to_dict(), "method": name}))


@functools.cache
def batch():
  rng = np.random.default_rng(0)
  return {
    "index": np.arange(SIZE, dtype=np.int32),
    "image": rng.normal(size=(SIZE, 8, 16, 1)).astype(np.float32),
    "text": rng.integers(3, 30, (SIZE, 12)).astype(np.int32),
    "label": rng.integers(0, 3, SIZE).astype(np.int32),
  }


@functools.cache
def init_of(name):
  return jax.jit(method_of(name).init)(jax.random.key(0), batch())


@pytest.fixture(params=["siglip", "toy"])
def name(request):
  return request.param


def noisy(params, seed=1, size=0.1):
  """Every leaf moved a little: what some updates would have done."""
  rng = np.random.default_rng(seed)
  move = lambda x: np.asarray(x) + size * rng.normal(size=x.shape).astype(np.float32)
  return jax.tree.map(move, params)


def close(got, want, rtol=1e-5, atol=1e-6):
  got, want = tree.flatten(got), tree.flatten(want)
  assert got.keys() == want.keys()
  for key in want:
    np.testing.assert_allclose(got[key], want[key], rtol, atol, err_msg=key)


def gradients(method, params, aux, rng=KEY, where=None):
  fn = jax.jit(method.grad or jax.value_and_grad(method.loss, has_aux=True))
  return fn(params, aux, batch() if where is None else where, rng, 0)


def loss_of(method, params, aux):
  return jax.jit(method.loss)(params, aux, batch(), KEY, 0)[0]


def embed_of(method, params, aux):
  return jax.jit(method.predict["image_embed"])(params, aux, batch(), KEY)


TARGETS = {"siglip": ("image/.*(query|value)/kernel",), "toy": ("blocks/kernel",)}
HEAD = {"siglip": ("text/head/.*", "logit_.*"), "toy": ("head/.*",)}


@pytest.mark.parametrize("warmup", [True, False])
def test_ema_is_the_recurrence_and_predictions_use_it(name, warmup):
  plain, (params, _) = method_of(name), init_of(name)
  method = transforms.ema(plain, decay=0.3, warmup=warmup)
  _, aux = jax.jit(method.init)(jax.random.key(0), batch())
  close(aux["ema"], params, rtol=0, atol=0)
  want = {k: np.float64(v) for k, v in tree.flatten(params).items()}
  update = jax.jit(method.after_update)
  for t in range(6):
    now = noisy(params, seed=t)
    aux = update(now, aux, jnp.int32(t))
    d = min(0.3, (1 + t) / (10 + t)) if warmup else 0.3  # the first four below 0.3, then not
    want = {k: d * want[k] + (1 - d) * np.float64(v) for k, v in tree.flatten(now).items()}
  close(aux["ema"], tree.nest(want))
  if name == "toy":
    assert aux["method"]["count"] == 6

  close(embed_of(method, now, aux), embed_of(plain, aux["ema"], aux["method"]))
  assert np.abs(embed_of(method, now, aux) - embed_of(plain, now, aux["method"])).max() > 1e-3
  close(method.merge(now, aux), aux["ema"], rtol=0)
  close(loss_of(method, now, aux), loss_of(plain, now, aux["method"]))  # the weights themselves


def test_lora_starts_at_the_base_and_equals_its_merge(name):
  plain, (base, inner) = method_of(name), init_of(name)
  method = transforms.lora(plain, rank=2, alpha=6, targets=TARGETS[name], train=HEAD[name])
  params, aux = jax.jit(method.init)(jax.random.key(0), batch())
  close(loss_of(method, params, aux), loss_of(plain, base, inner))

  whole, flat = tree.flatten(base), tree.flatten(params)
  adapted = {k for k in whole if tree.matches(TARGETS[name][0], k)}
  trained = {k for k in whole if tree.first_match(HEAD[name], k) is not None}
  assert set(flat) == trained | {f"{k}/{ab}" for k in adapted for ab in "ab"}
  assert set(tree.flatten(aux["frozen"])) == set(whole) - trained

  params = noisy(params)
  flat, merged = tree.flatten(params), tree.flatten(method.merge(params, aux))
  assert sorted(merged) == sorted(whole)
  for key, w in whole.items():
    want = np.float64(w)
    if key in adapted:
      a, b = (np.float64(flat[f"{key}/{ab}"]) for ab in "ab")
      want = want + 6 / 2 * np.einsum("...dr,...rk->...dk", a, b)
    np.testing.assert_allclose(merged[key], flat.get(key, want), rtol=1e-5, atol=1e-6, err_msg=key)
  close(loss_of(method, params, aux), loss_of(plain, method.merge(params, aux), aux["method"]))
  assert abs(loss_of(method, params, aux) - loss_of(plain, base, inner)) > 1e-3

  # The chain rule through W + 3 a b.
  _, grads = gradients(method, params, aux)
  _, of_whole = gradients(plain, method.merge(params, aux), inner)
  of_whole, grads = tree.flatten(of_whole), tree.flatten(grads)
  for key in adapted:
    want = 3 * np.einsum("...dk,...rk->...dr", of_whole[key], flat[f"{key}/b"])
    np.testing.assert_allclose(grads[f"{key}/a"], want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
  "options, message",
  [
    (dict(targets=("imag",)), "config.lora.targets: 'imag' matches no kernel"),
    (dict(targets=("blocks/bias",)), "'blocks/bias' matches no kernel"),  # [L, D]: scanned biases
    (dict(targets=()), "leaves no kernel to adapt"),
    (dict(targets="blocks/kernel"), "expected a tuple of regular expressions"),
    (dict(train=("tail",)), "config.lora.train: 'tail' matches no parameter"),
    (dict(rank=0), "config.lora.rank = 0; expected a whole number >= 1"),
    (dict(alpha=-1.0), "config.lora.alpha = -1.0; expected a number above 0"),
  ],
)
def test_lora_mistakes(options, message):
  options = {"rank": 2, "alpha": 2.0, "targets": ("blocks/kernel",), **options}
  with pytest.raises(UserError, match=message):
    transforms.lora(toy(), **options).init(KEY, batch())


def test_freeze_has_no_gradient_and_no_optimizer_state():
  """In bytes: gradient and each of Adam's moments are as large as what is trained, no larger."""
  whole = train.build(small(), num_examples=100)
  built = train.build(small(freeze=("image/.*", "logit_bias")), num_examples=100)
  flat = tree.flatten(built.abstract)
  assert "params/logit_scale" in flat and "aux/frozen/logit_bias" in flat
  assert not any("image/" in n for n in flat if not n.startswith("aux/frozen/image/"))
  image = 4 * sum(x.size for n, x in tree.flatten(whole.abstract.params).items() if "image/" in n)
  trained, counters = tree.num_bytes(built.abstract.params), 64
  assert trained == tree.num_bytes(whole.abstract.params) - image - 4
  assert tree.num_bytes(built.abstract.aux) == image + 4
  assert 2 * trained <= tree.num_bytes(built.abstract.opt) <= 2 * trained + counters
  fn = jax.value_and_grad(built.method.loss, has_aux=True)
  with axes.ambient(built.mesh):
    args = (built.abstract.params, built.abstract.aux, built.batch, KEY, 0)
    assert tree.num_bytes(jax.eval_shape(fn, *args)[1]) == trained

  with jax.set_mesh(built.mesh):
    make = lambda b: state_lib.init(b.method, b.tx, jax.random.key(0), b.batch, b.shardings)
    before, free = make(built), make(whole)
    start = jax.device_get(before)
    args = (batch(), jax.random.key(1), before.step)
    loss = lambda b, s: jax.jit(b.method.loss)(s.params, s.aux, *args)[0]
    np.testing.assert_allclose(loss(built, before), loss(whole, free), rtol=1e-6)
    close(jax.device_get(built.method.merge(before.params, before.aux)), free.params, rtol=0)
    train_step = step.make_train_step(built.method, built.tx, seed=0, shardings=built.shardings)
    feed = {k: v for k, v in batch().items() if k != "label"}
    for _ in range(2):  # the first update has learning rate zero
      before, _ = train_step(before, feed)
  after = jax.device_get(before)
  jax.tree.map(np.testing.assert_array_equal, after.aux, start.aux)
  embedding = lambda s: s.params["text"]["embed"]["embedding"]
  assert (embedding(after) != embedding(start)).any()


@pytest.mark.parametrize(
  "patterns, message",
  [
    (("imag",), "'imag'"),
    ((".*",), "freezes all"),
    (("(image/.*",), r"'\(image/\.\*' is not a regular expression"),
  ],
)
def test_freeze_mistakes(patterns, message):
  with pytest.raises(UserError, match=message):
    train.build(tiny.config(freeze=patterns), num_examples=100)


def by_micro_batch(method, k):
  """The loss that GradCache takes the gradient of, written down in one piece."""
  represent, compare = method.split

  def loss(params, aux, batch, rng, step):
    parts = axes.micro_batches(batch, k)
    one = lambda i: represent(
      params, aux, jax.tree.map(lambda x: x[i], parts), jax.random.fold_in(rng, i)
    )
    whole = axes.whole_batch(jax.tree.map(lambda *x: jnp.stack(x), *[one(i) for i in range(k)]))
    return compare(params, aux, whole, batch, rng, step)

  return loss


@pytest.mark.parametrize("name", ["siglip", "clip", "toy"])
def test_grad_cache_equals_the_whole_batch(name):
  plain, state = method_of(name), init_of(name)
  state = (noisy(state[0], size=0.02), state[1])
  want = gradients(plain, *state)
  for k in (2, 8) if name == "siglip" else (4,):
    got = gradients(transforms.grad_cache(plain, k), *state)
    if name == "toy":  # its random numbers are drawn in parts, alike in both passes
      want = gradients(plain._replace(loss=by_micro_batch(plain, k)), *state)
    close(got, want, rtol=1e-5, atol=1e-6)
  assert optax.tree.norm(want[1]) > 1e-2


@pytest.mark.parametrize("name", ["siglip", "clip"])
def test_grad_cache_on_eight_devices(name):
  """With the ring, against one device and the whole batch; no example changes its device."""
  state = init_of(name)
  want = gradients(method_of(name), *state)
  method = transforms.grad_cache(method_of(name), 2)
  mesh = make_mesh(replica=2, fsdp=4)
  feed = axes.put_batch(mesh, batch())
  with jax.set_mesh(mesh):
    compiled = jax.jit(method.grad).lower(*state, feed, KEY, 0).compile()
    got = jax.device_get(compiled(*state, feed, KEY, 0))
  close(got, want, rtol=1e-5, atol=1e-6)
  text = compiled.as_text()
  assert "collective-permute" in text and "all-to-all" not in text and "all-gather" not in text


def test_grad_cache_mistakes():
  whole = toy()._replace(split=None)
  with pytest.raises(UserError, match=r"config\.grad_cache = 2: the method does not say how its"):
    transforms.grad_cache(whole, 2)
  with pytest.raises(UserError, match="grad_cache = 3: it must divide the batch of 16 examples"):
    gradients(transforms.grad_cache(toy(), 3), *init_of("toy"))
  with pytest.raises(UserError, match="grad_cache = 4: a batch of 8 must be a multiple of grad_ca"):
    config = tiny.config(grad_cache=4, grad_accum=2, mesh__fsdp=4, mesh__tensor=2)
    train.build(config, num_examples=1)
  with pytest.raises(ValueError, match="before transforms that change the gradient"):
    transforms.grad_cache(transforms.sam(toy()), 2)


def test_sam_is_the_gradient_uphill(name):
  plain, (params, aux) = method_of(name), init_of(name)
  method = transforms.sam(plain, rho=0.2)
  here, g = gradients(plain, params, aux)
  norm = np.sqrt(sum(np.sum(np.float64(x) ** 2) for x in jax.tree.leaves(g)))
  _, want = gradients(plain, jax.tree.map(lambda w, d: w + 0.2 * d / norm, params, g), aux)
  got = gradients(method, params, aux)
  close(got, (here, want), rtol=1e-4, atol=1e-5)
  assert optax.tree.norm(jax.tree.map(jnp.subtract, got[1], g)) > 1e-2
  with pytest.raises(UserError, match=r"config\.sam\.rho = 0; expected a number above 0"):
    transforms.sam(plain, rho=0)


def test_sam_of_a_quadratic():
  """L = w A w / 2: the gradient is A (w + rho A w / |A w|)."""
  a = np.diag([3.0, 4.0]).astype(np.float32)
  loss = lambda params, aux, batch, rng, step: (params @ a @ params / 2, (aux, {}))
  method = transforms.sam(Method(init=None, loss=loss, predict={}), rho=0.5)
  (value, _), got = method.grad(jnp.ones(2), {}, {}, KEY, 0)
  np.testing.assert_allclose(value, 3.5)
  np.testing.assert_allclose(got, [3 * (1 + 0.5 * 3 / 5), 4 * (1 + 0.5 * 4 / 5)], rtol=1e-6)


def test_distances_by_hand():
  rng = np.random.default_rng(0)
  t, s = rng.normal(size=(2, 5, 4)) * 3
  soft = lambda z: np.exp(z / 2) / np.exp(z / 2).sum(-1, keepdims=True)
  want = 4 * np.mean(np.sum(soft(t) * np.log(soft(t) / soft(s)), -1))
  f32 = lambda x: jnp.asarray(x, jnp.float32)
  np.testing.assert_allclose(distillation.kl(f32(t), f32(s), 2.0), want, rtol=1e-5)
  np.testing.assert_allclose(distillation.kl(f32(t), f32(t), 2.0), 0, atol=1e-6)
  x, y = f32([[1, 0], [3, 4]]), f32([[0, 2], [3, 4]])
  np.testing.assert_allclose(distillation.cosine_distance(x, y), 0.5, rtol=1e-6)


@pytest.mark.parametrize("name, on", [("siglip", "image_embed"), ("toy", "logits")])
def test_distil_adds_the_distance_to_the_teacher(name, on):
  plain, (params, inner) = method_of(name), init_of(name)
  method = transforms.distil(plain, plain, weight=0.7, temperature=2.0, on=on)
  _, aux = jax.jit(method.init)(jax.random.key(0), batch())
  aux["teacher"]["params"] = noisy(params)
  value, (new, metrics) = jax.jit(method.loss)(params, aux, batch(), KEY, 0)
  predict = jax.jit(plain.predict[on])
  student, target = (predict(p, inner, batch()) for p in (params, noisy(params)))
  if on == "logits":
    want = distillation.kl(target, student, 2.0)
  else:
    want = distillation.cosine_distance(target, student)
  assert want > 1e-3
  np.testing.assert_allclose(metrics["distil"], want, rtol=1e-4)
  np.testing.assert_allclose(value, loss_of(plain, params, inner) + 0.7 * want, rtol=1e-5)
  close(new["teacher"], aux["teacher"], rtol=0)
  if name == "siglip":  # GradCache keeps the added part
    close(gradients(transforms.grad_cache(method, 4), params, aux), gradients(method, params, aux))


def test_distil_mistakes():
  for options, message in (
    (dict(on="logit"), "config.distil.on 'logit' is unknown; did you mean logits"),
    (dict(weight=0), "config.distil.weight = 0; expected a number above 0"),
    (dict(temperature=0.0), "config.distil.temperature = 0.0"),
  ):
    with pytest.raises(UserError, match=message):
      transforms.distil(toy(), toy(), **{"weight": 1.0, **options})
  with pytest.raises(UserError, match="'logits': the teacher predicts only image_embed, text_e"):
    transforms.distil(toy(), method_of("siglip"), weight=1.0)
  method = transforms.distil(toy(), toy(classes=4), weight=1.0)
  with pytest.raises(UserError, match=r"shape \(16, 3\), the teacher's \(16, 4\)"):
    method.loss(*method.init(KEY, batch()), batch(), KEY, 0)
  with pytest.raises(UserError, match=r"config.distil.workdir no/such: no/such/config\.json is mi"):
    train.build(tiny.config(distil=dict(workdir="no/such", weight=1.0)), num_examples=100)


def test_augment_changes_the_loss_and_not_the_predictions():
  plain, loud = (
    train.build(small(**kw), num_examples=100)
    for kw in ({}, dict(augment="normalize(0.0, 2.0)|solarize(p=0.0)", grad_cache=2))
  )
  params, aux = init_of("siglip")
  halved = {**batch(), "image": batch()["image"] / 2}
  close(gradients(loud.method, params, aux), gradients(plain.method, params, aux, where=halved))
  embed = lambda built: embed_of(built.method, params, aux)
  np.testing.assert_array_equal(embed(loud), embed(plain))


def test_composed_on_the_toy():
  """freeze, grad_cache, sam and ema at once, in two micro-steps: each does its part."""
  plain, k = toy(), 2
  method = transforms.freeze(plain, ("head/.*",))
  method = transforms.ema(transforms.sam(transforms.grad_cache(method, k), rho=0.1), decay=0.5)
  tx = optax.sgd(0.5)
  params, aux = method.init(jax.random.key(0), batch())
  state = state_lib.State(params, aux, tx.init(params), jnp.int32(0))
  kept = jax.tree.map(jnp.copy, state)
  new, _ = step.make_train_step(method, tx, seed=0, accumulate=2)(state, batch())
  assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, kept)
  assert tree.flatten(new.aux).keys() == {
    *(f"ema/blocks/{n}" for n in ("bias", "kernel")),
    *(f"method/frozen/head/{n}" for n in ("bias", "kernel")),
    "method/method/count",
  }
  close(new.aux["method"]["frozen"], kept.aux["method"]["frozen"], rtol=0, atol=0)
  assert new.aux["method"]["method"]["count"] == 1  # once an update, not a micro-batch

  rng = jax.random.fold_in(jax.random.key(0), 0)
  loss = by_micro_batch(plain, k)
  whole = lambda p: {**p, "head": kept.aux["method"]["frozen"]["head"]}
  total = jax.tree.map(jnp.zeros_like, kept.params)
  of = jax.jit(jax.grad(lambda p, part, rng: loss(whole(p), {}, part, rng, 0)[0]))
  halves = axes.micro_batches(batch(), 2)
  for i in range(2):
    part = ({key: x[i] for key, x in halves.items()}, jax.random.fold_in(rng, i))
    g = of(kept.params, *part)
    size = 0.1 / optax.tree.norm(g)
    up = optax.tree.add_scale(kept.params, size, g)
    total = optax.tree.add_scale(total, 0.5, of(up, *part))
  close(new.params, jax.tree.map(lambda w, d: w - 0.5 * d, kept.params, total), atol=1e-5)
  close(new.aux["ema"], jax.tree.map(lambda a, b: 0.1 * a + 0.9 * b, kept.params, new.params))


def test_composed_on_a_classifier_with_batch_statistics():
  """lora, sam, ema and mixup at once: it learns, and keeps the shapes of its state."""
  c = classify.get_config("smoke,variant=resnet18").to_dict()
  c["model"] |= dict(stages=(1,), width=8)
  c |= {
    "lora": dict(rank=2, alpha=8.0, targets=("head/kernel",), train=(".*(scale|bias)",)),
    "sam": 0.05,
    "ema": 0.9,
  }
  method = compose.make_method(wrap(c))
  feed = {k: v for k, v in batch().items() if k != "text"}
  tx = optax.adam(0.05)
  params, aux = jax.jit(method.init)(jax.random.key(0), feed)
  state = state_lib.State(params, aux, tx.init(params), jnp.int32(0))
  shape = jax.tree.map(lambda x: (x.shape, x.dtype), state)
  train_step, losses = step.make_train_step(method, tx, seed=0), []
  for _ in range(8):
    state, measured = train_step(state, feed)
    losses.append(float(measured["loss"]))
  assert losses[-1] < 0.8 * losses[0]
  assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == shape
  names = tree.flatten(state.params)
  assert "head/kernel/a" in names and not any(n.endswith("kernel") for n in names)
  assert any(n.startswith("method/method/stats/batch_stats/") for n in tree.flatten(state.aux))


def test_lora_and_distillation_from_a_saved_run(tmp_path: pathlib.Path):
  """A run, from it ema(lora(distil)) with GradCache; the export is a plain model's weights."""
  first, second, out = (str(tmp_path / n) for n in ("teacher", "student", "out"))
  teacher = train.train(small(steps=2), first)
  config = small(
    steps=3,
    distil=dict(workdir=first, weight=0.5, on="image_embed"),
    lora=dict(rank=2, alpha=4.0, targets=(".*(query|value)/kernel",), train=("logit_.*",)),
    ema=dict(decay=0.9),
    grad_cache=2,
    init_from={"aux/method/frozen": f"{first}::params", "params": f"{first}::params"},
    optim__lr=1e-2,
  )
  state = train.train(config, second)
  assert tree.flatten(state.aux).keys() >= {"ema/logit_bias", "method/frozen/text/pos_embed"}
  close(state.aux["method"]["method"]["teacher"]["params"], teacher.params, rtol=0, atol=0)
  base = tree.flatten(teacher.params)
  frozen = tree.flatten(state.aux["method"]["frozen"])
  close(frozen, {k: base[k] for k in frozen}, rtol=0, atol=0)

  assert export.main(["--workdir", second, "--format", "safetensors", "--out", out]) == 0
  params = tree.nest(files.load_safetensors(pathlib.Path(out) / "params.safetensors"))
  assert tree.flatten(params).keys() == base.keys()
  _, method, restored, mesh = train.restore(second)
  with jax.set_mesh(mesh):
    for name in ("image_embed", "text_embed"):
      got = jax.jit(method_of("siglip").predict[name])(params, {}, batch())
      want = jax.jit(method.predict[name])(restored.params, restored.aux, batch())
      close(got, want, atol=1e-6)
  moved = tree.flatten(params)["image/encoder/block_0/attn/query/kernel"]
  assert np.abs(moved - base["image/encoder/block_0/attn/query/kernel"]).max() > 1e-5


def test_keys_that_a_transform_lacks():
  for overrides, message in (
    (dict(ema=dict(decy=0.9)), "config.ema: key 'decy' is unknown; did you mean decay"),
    (dict(ema=dict(decay=2)), "config.ema.decay = 2; expected a number above 0, at most 1"),
    (dict(lora=dict(rank=2)), "config.lora: missing a required argument: 'alpha'"),
    (dict(grad_cache="two"), "config.grad_cache = 'two'; expected a whole number >= 1"),
    (dict(distil=dict(weight=1.0)), "config.distil: missing a required argument: 'workdir'"),
  ):
    with pytest.raises(UserError, match=message):
      train.build(tiny.config(**overrides), num_examples=100)
