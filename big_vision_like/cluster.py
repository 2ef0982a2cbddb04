"""Starting `jax.distributed` from the config or the environment; a single machine needs nothing.

SLURM, TPU pods            found by jax itself
JAX_COORDINATOR_ADDRESS    host:port, with JAX_NUM_PROCESSES and JAX_PROCESS_ID
config.distributed         coordinator, num_processes, process_id: the same by config
"""

import os

import jax

from big_vision_like.config import Config, UserError


def start(cfg: Config) -> None:
  """Joins the other processes, if there are any. Call before the first use of a device.

  `cfg` is `config.distributed`. A process that dies is noticed by the others after
  `heartbeat_seconds` without a sign of life; they end with a message that names its task number.
  """
  coordinator = cfg.get("coordinator") or os.environ.get("JAX_COORDINATOR_ADDRESS")
  heartbeat = cfg.get("heartbeat_seconds", 10)
  number = _setting(cfg, "num_processes", "JAX_NUM_PROCESSES")
  index = _setting(cfg, "process_id", "JAX_PROCESS_ID")
  if coordinator:
    if number is None or index is None:
      raise UserError(
        f"config.distributed: coordinator {coordinator!r} also needs num_processes and process_id"
        " (or JAX_NUM_PROCESSES and JAX_PROCESS_ID)"
      )
    jax.distributed.initialize(coordinator, number, index, heartbeat_timeout_seconds=heartbeat)
  elif int(os.environ.get("SLURM_NTASKS", 1)) > 1 or _tpu_hosts() > 1:
    jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat)


def _setting(cfg: Config, key: str, variable: str) -> int | None:
  value = cfg.get(key)
  value = os.environ.get(variable) if value is None else value
  try:
    return None if value is None else int(value)
  except ValueError:
    raise UserError(f"{variable} = {value!r} is not a number") from None


def _tpu_hosts() -> int:
  return len([h for h in os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if h])
