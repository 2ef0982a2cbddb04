"""Data sets from any source into shards: `python -m tools.convert_data`."""
