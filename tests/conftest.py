"""One process with 8 CPU devices, strict JAX, and shape checks on every annotated call."""

import os
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

import hypothesis
import pytest
from jaxtyping import install_import_hook

# The same examples every time, on however busy a machine: what fails once fails again.
hypothesis.settings.register_profile(
  "repeated",
  derandomize=True,
  deadline=None,
  suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("repeated")

# From here on jaxtyping annotations of the package are checked by beartype at every call.
install_import_hook("big_vision_like.losses", "beartype.beartype")


def make_mesh(**shape: int) -> jax.sharding.Mesh:
  """A mesh over the first prod(shape) of the 8 devices, axes in the order given."""
  n = 1
  for size in shape.values():
    n *= size
  return jax.make_mesh(
    tuple(shape.values()),
    tuple(shape),
    axis_types=(jax.sharding.AxisType.Auto,) * len(shape),
    devices=jax.devices()[:n],
  )


@pytest.fixture
def mesh8():
  """replica=2 x fsdp=2 x tensor=2 over 8 devices."""
  return make_mesh(replica=2, fsdp=2, tensor=2, sequence=1)
