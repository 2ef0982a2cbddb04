"""Foreign formats, in and out. They are handed arrays and functions, never a method or a run."""
