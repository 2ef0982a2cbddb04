#!/usr/bin/env bash
# Sets up .venv and runs the tests: bash tools/test.sh [pytest args]
source "$(dirname "${BASH_SOURCE[0]}")/setup_venv.sh"
ruff check .
ruff format --check .
python -m pytest "$@"
