"""DreamFusion: text-to-3D using 2D diffusion (Poole et al., arXiv:2209.14988).

    grad_theta L_SDS = E_{t, eps}[ w(t) (eps_hat(alpha_t x + sigma_t eps; y, t) - eps) dx / dtheta ]

with x = g(theta) the render of a radiance field theta from a random camera, eps_hat a frozen
diffusion model with classifier-free guidance and w(t) = sigma_t^2 (Eq. 3). There is no data: the
parameters are one scene, an example of the batch is one camera, drawn anew at every step.

The prior lies in `aux["frozen"]["prior"]`; `config.init_from` brings it. Its prompt is a class.

Differences from the paper: times are drawn from equal parts of their range, one from each (less
variance, same mean); the background is one colour and no second MLP; there are no view-dependent
prompts; one wedge of each eighth of the azimuths is never trained on, and `sample` renders from
there.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from big_vision_like import axes, models
from big_vision_like.config import Config, UserError, call
from big_vision_like.generation import diffusion, volume
from big_vision_like.losses.score_distillation import sds
from big_vision_like.method import Aux, Batch, Method, Metrics, Params
from big_vision_like.models import nerf

SECTORS = 8  # each ends in a wedge of azimuths that is held out


class Camera(NamedTuple):
  """`config.camera`: pairs are (low, high), angles in degrees, `size` is (H, W).

  `samples` along each ray; `held_out`: the part of each eighth of the azimuths that is not trained
  on; `background` in 0..1.
  """

  size: tuple[int, int]
  elevation: tuple[float, float]
  distance: tuple[float, float]
  fov: tuple[float, float]
  samples: int = 64
  held_out: float = 0.1
  background: float = 1.0


class Loss(NamedTuple):
  """`config.loss`: guidance scale, `target` of the prior, range of times in 0..1, weights of the
  penalties of opacity and orientation.

  `shaded`: the share of views lit by a lamp near the camera, `textureless`: the share of those that
  are white; both from `shading_warmup_steps` on.
  """

  guidance: float
  target: str = "v"
  times: tuple[float, float] = (0.02, 0.98)
  opacity: float = 0.0
  orientation: float = 0.0
  shaded: float = 0.0
  textureless: float = 0.0
  shading_warmup_steps: int = 0


class Views(NamedTuple):
  """Where B cameras stand: angles and fov in radians, each [B]."""

  azimuth: jax.Array
  elevation: jax.Array
  distance: jax.Array
  fov: jax.Array


def views(camera: Camera, u: jax.Array, sector: jax.Array, seen: bool) -> Views:
  """u [B, 4] in 0..1, sector int [B] -> cameras that training has, or that it never has."""
  between = lambda i, bounds: bounds[0] + (bounds[1] - bounds[0]) * u[:, i]
  edge = 1 - camera.held_out
  part = between(0, (0.0, edge) if seen else (edge, 1.0))
  return Views(
    (sector + part) * (2 * math.pi / SECTORS),
    jnp.radians(between(1, camera.elevation)),
    between(2, camera.distance),
    jnp.radians(between(3, camera.fov)),
  )


def make(config: Config) -> Method:
  """`config.model` goes to `models/nerf.py`, `config.prior` to `models/unet.py` and
  `config.diffusion` to `diffusion.make_schedule`; `config.prompt` is the label to ask for.
  """
  prompt, field = config.prompt, models.make(config.model)
  prior = models.make(config.prior, "config.prior")
  schedule = diffusion.make_schedule(**config.diffusion, where="config.diffusion")
  camera = call(Camera, config.camera, "config.camera")
  camera = camera._replace(size=tuple(camera.size))  # a list where it comes from a file
  cfg = call(Loss, config.loss, "config.loss")
  target = diffusion.check_target(cfg.target, schedule, "config.loss.target")
  classes, (low, high) = prior.num_classes or 0, cfg.times
  if not isinstance(prompt, int) or not 0 <= prompt < classes:
    raise UserError(
      f"config.prompt = {prompt!r}; expected a label below prior.num_classes = {classes}"
    )
  if not 0 < camera.held_out < 1:
    raise UserError(f"config.camera.held_out = {camera.held_out!r}; expected between 0 and 1")
  if not 0 <= low < high <= 1:
    raise UserError(f"config.loss.times = {cfg.times!r}; expected 0 <= low < high <= 1")

  def init(rng: jax.Array, batch: Batch) -> tuple[Params, Aux]:
    rngs = jax.random.split(rng)
    params, _ = models.init(field, rngs[0], jnp.zeros((1, 1, 3)))
    frozen, _ = models.init(prior, rngs[1], jnp.zeros((1, *camera.size, 3)), jnp.zeros(1))
    return params, {"frozen": {"prior": frozen}}

  def render(
    params: Params, at: Views, rng: jax.Array | None, light: jax.Array | None = None
  ) -> tuple[volume.Rendered, jax.Array]:
    """Colours in -1..1 and the orientation penalty [B]; `light` [B, 5] is what `lights` draws."""
    poses = jax.vmap(volume.pose)(at.azimuth, at.elevation, at.distance)
    origins, directions = jax.vmap(lambda pose, fov: volume.rays(pose, camera.size, fov))(
      poses, at.fov
    )
    distance = jnp.broadcast_to(at.distance[:, None, None], directions.shape[:-1])
    near = jnp.maximum(distance - field.radius, 0.1)
    t, delta = volume.stratified(rng, near, distance + field.radius, camera.samples)
    points = origins[..., None, :] + t[..., None] * directions[..., None, :]
    points = axes.constrain(points, axes.BATCH)
    evaluate = lambda points: models.apply(field, params, {}, points)[0]
    background = 2 * camera.background - 1
    if light is None:
      (density, albedo), _ = evaluate(points)
      return volume.composite(density, 2 * albedo - 1, t, delta, background), jnp.zeros(len(poses))
    ((density, albedo), _), normals = nerf.normals(evaluate, points)
    colour = shade(albedo, normals, points, poses, light)
    out = volume.composite(density, 2 * colour - 1, t, delta, background)
    penalty = volume.orientation_penalty(out.weights, normals, directions)
    return out, jnp.mean(penalty, axis=(1, 2))

  def shade(albedo, normals, points, poses, light):
    """A lamp somewhere on the camera's side (Appendix A.2), for the views whose turn it is."""
    spread = lambda x: x.reshape(-1, 1, 1, 1, x.shape[-1])
    lamp = poses[:, :, 3] + light[:, :3] * jnp.linalg.norm(poses[:, :, 3], axis=1, keepdims=True)
    to_lamp = spread(lamp) - points
    to_lamp = to_lamp / jnp.linalg.norm(to_lamp, axis=-1, keepdims=True)
    lit = spread(light[:, 3:4]) > 0
    base = jnp.where(spread(light[:, 4:5]) > 0, 1.0, albedo)
    return jnp.where(lit, volume.lambertian(base, normals, to_lamp), albedo)

  def lights(rng: jax.Array, count: int, step: jax.Array) -> jax.Array | None:
    """[B, 5]: where the lamp is, whether it is on, whether the albedo is white."""
    if not cfg.shaded and not cfg.orientation:
      return None
    place, on, white = jax.random.split(rng, 3)
    turn = jax.random.bernoulli(on, cfg.shaded, (count, 1)) & (step >= cfg.shading_warmup_steps)
    bare = jax.random.bernoulli(white, cfg.textureless, (count, 1))
    return jnp.concatenate([0.5 * jax.random.normal(place, (count, 3)), turn, bare], axis=1)

  def predict_x0_eps(aux: Aux, z: jax.Array, t: jax.Array, log_snr: jax.Array):
    """The prior's image for the prompt, and its guided noise; both classes in one pass."""
    count = len(z)
    label = jnp.tile(jnp.array([prompt, classes], jnp.int32), count)
    twice = lambda x: jnp.repeat(x, 2, axis=0)  # neighbours: no example changes its device
    frozen = aux["frozen"]["prior"]
    (out, _), _ = models.apply(prior, frozen, {}, twice(z), twice(schedule.timestep(t)), label)
    cond, uncond = out[0::2], out[1::2]
    x0 = diffusion.to_x0(target, cond, z, log_snr)
    guided = diffusion.guide(cond, uncond, cfg.guidance)
    return x0, diffusion.to_eps(target, guided, z, log_snr)

  def loss(
    params: Params, aux: Aux, batch: Batch, rng: jax.Array, step: jax.Array
  ) -> tuple[jax.Array, tuple[Aux, Metrics]]:
    count = batch["index"].shape[0]
    place, sector, along, lamp, when, noise = jax.random.split(rng, 6)
    sectors = jax.random.randint(sector, (count,), 0, SECTORS)
    at = views(camera, jax.random.uniform(place, (count, 4)), sectors, seen=True)
    out, orientation = render(params, at, along, lights(lamp, count, step))

    u = (jnp.arange(count) + jax.random.uniform(when, (count,))) / count
    t = low + (high - low) * u
    t = jnp.floor(t * schedule.num_steps).astype(jnp.int32) if schedule.num_steps else t
    log_snr = schedule.log_snr(t)
    x, eps = out.colour, jax.random.normal(noise, out.colour.shape)
    x0, eps_hat = predict_x0_eps(aux, diffusion.diffuse(x, eps, log_snr), t, log_snr)
    distilled = sds(x, eps_hat, eps, diffusion.loss_weight("sigma2", "eps", log_snr))

    filled = jnp.mean(jnp.sqrt(jnp.square(out.opacity) + 0.01))
    orientation = jnp.mean(orientation)
    value = distilled + cfg.opacity * filled + cfg.orientation * orientation
    metrics = {
      "prior_gap": jnp.mean(jnp.square(x - x0)),
      "opacity": jnp.mean(out.opacity),
      "orientation": orientation,
    }
    return value, (aux, metrics)

  def unseen(batch: Batch, rng: jax.Array | None) -> Views:
    """As many cameras as the batch has rows, in the held-out wedges in turn."""
    count = jax.tree.leaves(batch)[0].shape[0]
    u = jax.random.uniform(jax.random.key(0) if rng is None else rng, (count, 4))
    return views(camera, u, jnp.arange(count) % SECTORS, seen=False)

  def sample(params: Params, aux: Aux, batch: Batch, rng: jax.Array | None = None):
    """[B, H, W, 3] in -1..1: the albedo of the scene, from cameras that training never has."""
    return render(params, unseen(batch, rng), None)[0].colour

  def features(params: Params, aux: Aux, batch: Batch, rng: jax.Array | None = None):
    """`depth` and `opacity` [B, H, W] of what `sample` shows."""
    out = render(params, unseen(batch, rng), None)[0]
    return {"depth": out.depth, "opacity": out.opacity}

  # SDS has no objective to watch: its gradient keeps the size of the noise. What falls is how far
  # the renders are from what the prior makes of them.
  return Method(init, loss, {"sample": sample, "features": features}, progress="prior_gap")
