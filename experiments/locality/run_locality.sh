#!/usr/bin/env bash
# What locality is worth, MovieLens included: hit rates, then look-ups and tails on this machine's engines.
#   experiments/locality/run_locality.sh [--quick]      about 7 minutes on 2 cores; --quick: 2
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/../../build/env.sh"
out=${OUT:-results/locality-$(date +%Y%m%d-%H%M%S)}
"$here/../../build/movielens.sh" || echo "recbole could not be installed: without MovieLens" >&2
python "$here/hit_rates.py" --out "$out"
python "$here/look_ups.py" "$@" --out "$out"
echo "Rows and figures: $out"
