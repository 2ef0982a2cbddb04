# Sourced by demo.sh and test.sh: goes to the repository root, makes .venv once, activates it.
# A second run skips the install unless setup.py changed. PYTHON picks the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
stamp=".venv/.installed-$(cksum < setup.py | tr -d ' ')"
if [ ! -f "$stamp" ]; then
  echo "setting up .venv (once; about a minute)"
  [ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".[test]"
  rm -f .venv/.installed-*
  touch "$stamp"
fi
# shellcheck disable=SC1091
source .venv/bin/activate
