#!/usr/bin/env bash
# RecPipe: quality against computing with trained rankers (clicks, MovieLens), the accelerator's model, and it at a quality;
# pipelines by tail latency in virtual time, on this machine's engines, and searched.
#   experiments/recpipe/run_RecPipe.sh [--quick]      estimated at 40 minutes, most of it the search; --quick: 12
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
python "$here/pipelines.py" "$@" --cache "$out" --out "$out"
python "$here/real.py" "$@" --cache "$out" --out "$out"
python "$here/search.py" "$@" --cache "$out" --out "$out"
echo "Rows and figures: $out"
