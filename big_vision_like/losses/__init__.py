"""Arrays in, scalar out, no parameters; the distributed ones run on the ambient mesh."""
