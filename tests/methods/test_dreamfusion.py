"""The loss and its gradient against the paper's equation; cameras, lamp and mistakes by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_like import tree
from big_vision_like.config import UserError, wrap
from big_vision_like.methods import dreamfusion
from big_vision_like.models import nerf, unet

B, SIZE, SAMPLES = 4, 8, 6
FIELD = dict(width=8, depth=1, frequencies=2, blob_std=0.4)
PRIOR = dict(
  channels=8, channel_mults=(1,), num_res_blocks=1, groups=4, num_classes=3, image_size=SIZE
)
PRIOR["attention_resolutions"] = ()
CAMERA = dict(size=(SIZE, SIZE), elevation=(0, 40), distance=(2.0, 3.0), fov=(30, 50))


def config(**loss):
  return wrap(
    dict(
      prompt=1,
      model=dict(name="nerf", **FIELD),
      prior=dict(name="unet", **PRIOR),
      diffusion=dict(name="continuous_cosine"),
      camera=dict(**CAMERA, samples=SAMPLES, held_out=0.2, background=0.75),
      loss=dict(dict(guidance=3.0, target="v", opacity=0.1), **loss),
    )
  )


def start(method):
  """Parameters, and a prior whose output is not zero."""
  batch = {"index": jnp.arange(B)}
  params, aux = jax.jit(method.init)(jax.random.key(0), batch)
  noisy = lambda name, x: x + 0.2 * jax.random.normal(jax.random.key(len(name)), x.shape)
  return params, {"frozen": {"prior": tree.map_with_name(noisy, aux["frozen"]["prior"])}}, batch


def transcript(rng):
  """The draws of a step, as NumPy; and a render of the same cameras, of the field's outputs."""
  place, sector, along, _, when, noise = jax.random.split(rng, 6)
  u = np.asarray(jax.random.uniform(place, (B, 4)), np.float64)
  azimuth = 2 * np.pi / 8 * (np.asarray(jax.random.randint(sector, (B,), 0, 8)) + 0.8 * u[:, 0])
  elevation, distance = np.radians(40 * u[:, 1]), 2 + u[:, 2]
  fov = np.radians(30 + 20 * u[:, 3])
  spot = np.asarray(jax.random.uniform(along, (B, SIZE, SIZE, SAMPLES)), np.float64)
  t = distance[:, None, None, None] - 1 + 2 * (np.arange(SAMPLES) + spot) / SAMPLES
  far = np.broadcast_to(distance[:, None, None, None] + 1, (B, SIZE, SIZE, 1))
  delta = np.diff(np.concatenate([t, far], -1), axis=-1)
  points = np.zeros((B, SIZE, SIZE, SAMPLES, 3))
  for b in range(B):
    back = np.array([np.cos(azimuth[b]), np.sin(azimuth[b]), 0]) * np.cos(elevation[b])
    back[2] = np.sin(elevation[b])
    right = np.array([-np.sin(azimuth[b]), np.cos(azimuth[b]), 0])
    up = np.cross(back, right)
    for i in range(SIZE):
      for j in range(SIZE):
        x, y = ((2 * k + 1 - SIZE) / SIZE * np.tan(fov[b] / 2) for k in (j, i))
        d = -back + x * right - y * up
        d /= np.linalg.norm(d)
        points[b, i, j] = distance[b] * back + t[b, i, j, :, None] * d
  times = 0.02 + 0.96 * (np.arange(B) + np.asarray(jax.random.uniform(when, (B,)))) / B
  eps = np.asarray(jax.random.normal(noise, (B, SIZE, SIZE, 3)), np.float64)
  return points, delta, times, eps


def render(params, points, delta):
  """Eq. 3 of NeRF over the field's outputs, on a background of 0.75, in -1..1."""
  (density, albedo), _ = nerf.make(**FIELD).apply({"params": params}, points)
  alpha = 1 - jnp.exp(-density * delta)
  light = jnp.cumprod(1 - alpha + 1e-12, axis=-1)
  light = jnp.concatenate([jnp.ones_like(light[..., :1]), light], axis=-1)
  colour = jnp.sum((alpha * light[..., :-1])[..., None] * albedo, axis=-2)
  return 2 * (colour + light[..., -1:] * 0.75) - 1, 1 - light[..., -1]


def test_loss_and_gradient_are_the_equation():
  method = dreamfusion.make(config())
  params, aux, batch = start(method)
  rng = jax.random.key(3)
  fn = jax.jit(jax.value_and_grad(method.loss, has_aux=True))
  (loss, (after, metrics)), grads = fn(params, aux, batch, rng, jnp.int32(0))

  points, delta, times, eps = transcript(rng)
  points, delta = jnp.float32(points), jnp.float32(delta)
  x, pull = jax.vjp(lambda p: render(p, points, delta)[0], params)
  x = np.asarray(x, np.float64)
  low, high = np.arctan(np.exp(-10)), np.arctan(np.exp(10))
  angle = low + times * (high - low)
  alpha, sigma = (f(angle)[:, None, None, None] for f in (np.cos, np.sin))
  z = alpha * x + sigma * eps
  network = lambda label: np.asarray(
    unet.make(**PRIOR).apply(
      {"params": aux["frozen"]["prior"]},
      jnp.float32(z),
      jnp.float32(1000 * times),
      jnp.full(B, label),
    )[0],
    np.float64,
  )
  cond, uncond = network(1), network(3)  # the prompt, and the null class after three
  v = uncond + 3.0 * (cond - uncond)
  g = sigma**2 * (alpha * v + sigma * z - eps)
  filled = lambda p: jnp.mean(jnp.sqrt(render(p, points, delta)[1] ** 2 + 0.01))
  penalty, of_penalty = jax.value_and_grad(filled)(params)
  np.testing.assert_allclose(loss, 0.5 * np.sum(g**2) / B + 0.1 * penalty, rtol=1e-4)
  np.testing.assert_allclose(
    metrics["prior_gap"], np.mean((x - (alpha * z - sigma * cond)) ** 2), rtol=1e-3
  )
  [expected] = pull(jnp.float32(g / B))
  expected = jax.tree.map(lambda a, b: a + 0.1 * b, expected, of_penalty)
  for name, grad in tree.flatten(grads).items():
    wanted = tree.flatten(expected)[name]
    scale = float(jnp.max(jnp.abs(wanted)))
    np.testing.assert_allclose(grad, wanted, rtol=1e-3, atol=1e-3 * scale, err_msg=name)
  same = jax.tree.map(np.array_equal, after, aux)
  assert all(jax.tree.leaves(same))

  # The prior is frozen: no path leads to it.
  of_prior = jax.grad(lambda a: method.loss(params, a, batch, rng, 0)[0])(aux)
  assert not any(np.any(x) for x in jax.tree.leaves(of_prior))


def test_sample_is_the_render_of_unseen_cameras():
  method = dreamfusion.make(config())
  params, aux, batch = start(method)
  out = method.predict["sample"](params, aux, batch, jax.random.key(0))
  features = method.predict["features"](params, aux, {"label": jnp.zeros(B, jnp.int32)})
  assert out.shape == (B, SIZE, SIZE, 3) and np.abs(out).max() <= 1
  assert features["depth"].shape == features["opacity"].shape == (B, SIZE, SIZE)
  other = method.predict["sample"](params, aux, batch, jax.random.key(1))
  assert np.abs(out - other).max() > 1e-3
  camera = dreamfusion.Camera(**CAMERA, held_out=0.2)
  u, sector = jax.random.uniform(jax.random.key(0), (1000, 4)), jnp.arange(1000) % 8
  for seen, within in ((True, (0, 0.8)), (False, (0.8, 1))):
    at = dreamfusion.views(camera, u, sector, seen=seen)
    place = np.asarray(at.azimuth) / (2 * np.pi / 8) % 1
    assert within[0] <= place.min() + 1e-5 and place.max() <= within[1] + 1e-5
    assert np.ptp(place) > 0.9 * (within[1] - within[0])
    assert np.ptp(at.azimuth) > 5.4 and 0 <= at.elevation.min() < at.elevation.max() < 0.699
    assert at.distance.min() >= 2 and at.distance.max() <= 3


def test_lamp_and_orientation():
  """Before the warm-up all is albedo; after it the lamp and the penalty count, gradients finite."""
  plain = dreamfusion.make(config(opacity=0.0))
  lit = dreamfusion.make(
    config(opacity=0.0, shaded=1.0, textureless=0.5, orientation=10.0, shading_warmup_steps=5)
  )
  params, aux, batch = start(plain)
  run = lambda method, at: jax.jit(jax.value_and_grad(method.loss, has_aux=True))(
    params, aux, batch, jax.random.key(1), jnp.int32(at)
  )
  (base, _), _ = run(plain, 0)
  (early, (_, metrics)), _ = run(lit, 4)
  (late, _), grads = run(lit, 5)
  assert float(metrics["orientation"]) > 0
  np.testing.assert_allclose(early - 10 * metrics["orientation"], base, rtol=1e-5)
  assert abs(float(late - early)) > 1e-4 * float(early)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(prompt=3), "config.prompt = 3; expected a label below prior.num_classes = 3"),
    (dict(camera=dict(CAMERA, held_out=1.0)), "config.camera.held_out = 1.0; expected"),
    (dict(camera=dict(CAMERA, heldout=0.1)), "config.camera: key 'heldout' is unknown; did you"),
    (dict(loss=dict(guidance=1.0, times=(0.5, 0.2))), r"config.loss.times = \(0.5, 0.2\)"),
    (dict(loss=dict(guidance=1.0, target="noise")), "config.loss.target 'noise' is unknown"),
    (dict(prior=dict(PRIOR, name="unett")), "config.prior.name 'unett' is unknown; did you mean"),
  ],
)
def test_mistakes(change, message):
  with pytest.raises(UserError, match=message):
    dreamfusion.make(wrap({**config().to_dict(), **change}))
