#!/usr/bin/env bash
# Sets up .venv and runs the tests: bash tools/test.sh [--live] [pytest args]
# The whole suite runs in two processes ($TEST_WORKERS), what arguments name in one.
# --live also installs the extra `parity` (torch, transformers: 1.6 GB) and runs the reference
# implementations, which must reproduce the stored outputs of tests/parity.
source "$(dirname "${BASH_SOURCE[0]}")/setup_venv.sh"
if [ "${1:-}" = "--live" ]; then
  shift
  python -m pip install --quiet --disable-pip-version-check -e ".[parity]"
  python -m tests.parity.references
  set -- tests/parity "$@"
fi
ruff check .
ruff format --check .
if [ $# -eq 0 ]; then
  set -- -n "${TEST_WORKERS:-2}" --dist loadfile
fi
python -m pytest "$@"
