"""Making things step by step: diffusion, decoding, rendering. Pure functions, no parameters."""
