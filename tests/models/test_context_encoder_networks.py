"""Shapes and sizes of both players, the channel-wise layer by hand, mistakes before any compile."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_like import models, tree
from big_vision_like.config import UserError, wrap
from big_vision_like.models import context_encoder

TINY = dict(encoder=(4, 8), bottleneck=6, decoder=(8, 4), discriminator=(4,))


def make(output_size=(4, 8), **kwargs):
  return context_encoder.make(wrap(TINY | kwargs), output_size)


def shapes(model, *shape):
  image = jax.ShapeDtypeStruct(shape, jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), image)
  out, _ = jax.eval_shape(model.apply, variables, image)
  return tree.flatten(variables["params"]), out


def test_published_sizes():
  """The released inpainting net (128 px, hole of 64, bottleneck 4,000) without its zero biases."""
  cfg = wrap(
    dict(
      encoder=(64, 64, 128, 256, 512),
      bottleneck=4000,
      decoder=(512, 256, 128, 64),
      discriminator=(64, 128, 256, 512),
    )
  )
  generator, discriminator = context_encoder.make(cfg, (64, 64))
  params, out = shapes(generator, 2, 128, 128, 3)
  down = 16 * (3 * 64 + 64 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512 * 4000)
  up = 16 * (4000 * 512 + 512 * 256 + 256 * 128 + 128 * 64 + 64 * 3)
  norms = 2 * (64 + 128 + 256 + 512 + 4000 + 512 + 256 + 128 + 64)
  assert tree.num_params(params) == down + up + norms == 71_124_544
  assert params["decoder/start/kernel"].shape == (4, 4, 4000, 512)
  assert out.shape == (2, 64, 64, 3)

  params, out = shapes(discriminator, 2, 64, 64, 3)
  kernels = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512)
  assert tree.num_params(params) == kernels + 2 * (128 + 256 + 512) == 2_765_568
  assert out.shape == (2,)


@pytest.mark.parametrize("size", [(4, 8), (8, 16), None])
def test_what_is_predicted_may_be_a_part_or_the_whole(size):
  _, out = shapes(make(size)[0], 2, 8, 16, 1)
  assert out.shape == (2, *(size or (8, 16)), 1)


def test_channelwise():
  """Each map through its own matrix: D (h w)^2 weights, and nothing crosses maps before 1 x 1."""
  params, out = shapes(make(None, bottleneck="channelwise", decoder=(4,))[0], 2, 8, 16, 1)
  assert params["bottleneck/full"].shape == (8, 2 * 4, 2 * 4)
  assert out.shape == (2, 8, 16, 1)

  layer = context_encoder.Channelwise(jnp.float32)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 4, 5)), jnp.float32)
  params, stats = models.init(layer, jax.random.key(0), x, train=False)
  y, _ = models.apply(layer, params, stats, x)
  host = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  maps = np.zeros((3, 8, 5))
  for b in range(3):
    for d in range(5):
      maps[b, :, d] = np.asarray(x, np.float64)[b, :, :, d].ravel() @ host["full"][d]
  leaky = lambda a: np.where(a > 0, a, 0.2 * a)
  expected = leaky(leaky(maps) @ host["conv"]["kernel"][0, 0] / np.sqrt(1 + 1e-5))
  np.testing.assert_allclose(y, expected.reshape(3, 2, 4, 5), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
  "kwargs, message",
  [
    (dict(encoder=(4, 8, 8, 8)), "config.model: 8 x 16 does not halve 4 times"),
    (dict(output_size=(6, 8)), "decoder = (8, 4): 2 doublings do not end in 6 x 8"),
    (dict(output_size=(2, 2)), "decoder = (8, 4): 2 doublings do not end in 2 x 2"),
    (dict(bottleneck="channelwise"), "the encoder ends in 2 x 4"),
    (dict(bottleneck="channel"), "bottleneck = 'channel'; expected a number of units or 'ch"),
    (dict(decoder=4), "config.model.decoder = 4; expected widths"),
    (dict(dtype="float8"), "config.model.dtype 'float8' is unknown"),
    (dict(width=3), "key 'width' is unknown"),
  ],
)
def test_mistakes(kwargs, message):
  with pytest.raises(UserError, match=message.replace("(", r"\(").replace(")", r"\)")):
    shapes(make(**kwargs)[0], 2, 8, 16, 1)
