"""Host side of the data: sources, ops, tokenizers, the global-batch pipeline. NumPy, no jax."""
