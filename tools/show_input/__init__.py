"""A contact sheet of what a config trains on: `python -m tools.show_input`."""
