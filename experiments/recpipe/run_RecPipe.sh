#!/usr/bin/env bash
# RecPipe: quality against computing with trained rankers (clicks, MovieLens), the accelerator's model, and it at a quality.
#   experiments/recpipe/run_RecPipe.sh [--quick]      about 8 minutes the first time, then 3; --quick: 1 minute
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/../../build/env.sh"
out=${OUT:-results/recpipe}
mkdir -p "$out"
"$here/../../build/movielens.sh"
for data in clicks movielens; do
    python "$here/quality.py" --data $data "$@" --cache "$out" --out "$out"
done
python "$here/accelerator.py" "$@" --cache "$out" --out "$out"
python "$here/iso_quality.py" "$@" --cache "$out" --out "$out"
python "$here/arrays.py" --out "$out"
echo "Rows and figures: $out"
