#!/usr/bin/env bash
# RecPipe: quality against computing on MovieLens with trained rankers, then the accelerator's model.
#   experiments/recpipe/run_RecPipe.sh [--quick]      about 3 minutes the first time; --quick: under a minute
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/../../build/env.sh"
out=${OUT:-results/recpipe}
mkdir -p "$out"
# MovieLens 100K lies in recbole's wheel; of the package only that is read.
python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("recbole") is None)' ||
    python -m pip install -qq --disable-pip-version-check --no-deps recbole==1.2.1
python "$here/quality.py" "$@" --cache "$out" --out "$out"
python "$here/accelerator.py" --out "$out"
python "$here/arrays.py" --out "$out"
echo "Rows and figures: $out"
