"""Many runs from one file; see `__main__`."""
