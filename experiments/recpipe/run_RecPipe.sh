#!/usr/bin/env bash
# RecPipe: quality against computing on MovieLens with trained rankers, then the accelerator's model.
#   experiments/recpipe/run_RecPipe.sh [--quick]      about 3 minutes the first time; --quick: under a minute
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/../../build/env.sh"
out=${OUT:-results/recpipe}
mkdir -p "$out"
"$here/../../build/movielens.sh"
python "$here/quality.py" "$@" --cache "$out" --out "$out"
python "$here/accelerator.py" --out "$out"
python "$here/arrays.py" --out "$out"
echo "Rows and figures: $out"
