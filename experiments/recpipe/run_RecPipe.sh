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
study() { # NAME FLAGS...: rows and figures of all studies in one folder
    local name=$1
    shift
    python "$here/$name.py" "$@" --out "$out"
}
study quality --data clicks,movielens "$@" --cache "$out"
study released_chip "$@" --cache "$out"
study iso_quality "$@" --cache "$out"
study arrays "$@"
study pipelines "$@" --cache "$out"
study search "$@" --cache "$out"
study real "$@" --cache "$out" --search "$out"
echo "Rows and figures: $out"
