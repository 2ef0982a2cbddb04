"""What a training step needs and costs on a pod that is not here; `python -m tools.plan --help`."""
