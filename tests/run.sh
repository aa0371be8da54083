#!/usr/bin/env bash
# Sets up the environment, then runs all tests and checks. Arguments go to pytest: tests/run.sh -k pipeline
# Two tests at a time, but one where it starts engines (tests/conftest.py); -n 0: one at a time, as a debugger needs it.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
DEEPRECSYS_TESTS=1 source "$root/build/env.sh"
cd "$root"

echo "== ruff"
ruff check .
ruff format --check .
echo "== mypy"
mypy
echo "== pytest"
python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
