#!/usr/bin/env bash
# What the load does to tails and policies: arrival processes, query sizes, the release's gaps. Virtual time.
#   experiments/load_generator/run_loadGenerator.sh [--quick]      about 3 minutes on 2 cores; --quick: some seconds
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/../../build/env.sh"
out=${OUT:-results/load_generator-$(date +%Y%m%d-%H%M%S)}
python "$here/what_load_does.py" "$@" --out "$out"
python "$here/legacy_gaps.py" --out "$out"
