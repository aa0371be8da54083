#!/usr/bin/env bash
# Fixed policy -> tail latency of all eight models at full table sizes: per-core batch 32, one engine per core, queries
# of normal(256, 32) items; Wide & Deep also with the accelerator at threshold 256, as in the release. The rate is half
# of what the machine carries (measured first), where the release fixes a gap of 25 ms for its 32 engines.
#   ./run_DeepRecInfra.sh [any flag of DeepRecSys.py, which wins over those below]
#   RESULTS=folder ./run_DeepRecInfra.sh     where the runs go (default results/deeprecinfra-<time>)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$root/build/env.sh"
out=${RESULTS:-results/deeprecinfra-$(date +%Y%m%d-%H%M%S)}
mkdir -p "$out"

# label, configuration, SLA in ms on p95 (ISCA 2020, medium target), further flags
runs=(
    "rm1 dlrm_rm1 100"
    "rm2 dlrm_rm2 400"
    "rm3 dlrm_rm3 100"
    "ncf ncf 5"
    "wnd wide_and_deep 25"
    "wnd+accel wide_and_deep 25 --model_accel --accel_request_size_thres 256"
    "mtwnd mtwnd 25"
    "din din 100"
    "dien dien 35"
)
started=$SECONDS
for i in "${!runs[@]}"; do
    read -r label config sla extra <<<"${runs[$i]}"
    left=$((i > 0 ? (SECONDS - started) * (${#runs[@]} - i) / i : 0))
    echo "[$((i + 1))/${#runs[@]}] $label$([ "$left" -gt 0 ] && echo ", about $left s left")"
    # shellcheck disable=SC2086 (the further flags are words)
    python "$root/DeepRecSys.py" --queue --config_file "$root/models/configs/$config.json" \
        --inference_engines 0 --num_batches 32 --nepochs 32 \
        --batch_size_distribution normal --avg_mini_batch_size 256 --var_mini_batch_size 32 --max_mini_batch_size 1024 \
        --sub_task_batch_size 32 --offered_load 0.5 --target_latency "$sla" --results_dir "$out" \
        --log_file "$out/$label.log" $extra "$@" >"$out/$label.txt" || { code=$?; cat "$out/$label.txt"; exit "$code"; }
done
python "$root/experiments/tail_latency/plot.py" "$out"
