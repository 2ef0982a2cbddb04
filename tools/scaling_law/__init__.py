"""From finished runs to fitted scaling laws; see `__main__`."""
