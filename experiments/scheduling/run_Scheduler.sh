#!/usr/bin/env bash
# The release's sweep over models and latency targets, on this machine's engines and then in virtual time.
#   experiments/scheduling/run_Scheduler.sh [--quick]      full: about 2.5 hours on 2 cores; --quick: some minutes
# Ctrl-C at any time: what is done is kept, and the next start goes on behind it. OUT is the folder of the results.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/../../build/env.sh"
out=${OUT:-results/scheduling}
quick=()
models=wnd,rm1,rm3,ncf,rm2,mtwnd,din,dien slas=low,medium,high
if [[ ${1:-} == --quick ]]; then
    shift
    quick=(--quick) models=wnd,ncf slas=medium
fi
python "$here/virtual.py" "${quick[@]}" --out "$out"
python "$here/guided.py" "${quick[@]}" --out "$out"
python "$here/real.py" "${quick[@]}" --models "$models" --slas "$slas" --out "$out" "$@"
