"""Named architectures: pure functions of (parameters, inputs)."""
