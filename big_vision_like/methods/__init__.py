"""One paper, one file: `methods/<name>.py` has `make(config) -> Method`."""
