"""Vision foundation models in JAX: one contract, one training loop, one file per paper."""

__version__ = "0.1.0"
