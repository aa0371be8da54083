#!/usr/bin/env bash
# Every model on its own, as in the release: six timing lines a model.
#   models/run.sh                                    all eight at full table sizes
#   models/run.sh --mini_batch_size 256 --max_mini_batch_size 256 --enable_profiling    (flags go to every model)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/build/env.sh"

run() { # file config
    echo "== $2"
    python "$root/models/$1.py" --config_file "$root/models/configs/$2.json" --inference_only \
        --num_batches 4 --nepochs 10 --mini_batch_size 64 --max_mini_batch_size 64 "${@:3}"
}
run dlrm dlrm_rm1 "$@"
run dlrm dlrm_rm2 "$@"
run dlrm dlrm_rm3 "$@"
run ncf ncf "$@"
run wide_and_deep wide_and_deep "$@"
run mtwnd mtwnd "$@"
run din din "$@"
run dien dien "$@"
