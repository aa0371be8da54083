#!/usr/bin/env bash
# Sets up the environment, then runs all tests and checks. Arguments go to pytest: tests/run.sh -k queueing
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/build/env.sh"
cd "$root"

echo "== ruff"
ruff check .
echo "== mypy"
mypy
echo "== pytest"
python -m pytest "$@"
