#!/usr/bin/env bash
# Tuned policy -> highest rate under the SLA. Wide & Deep, full tables, p95 <= 25 ms, production query sizes:
# static baseline | tuned per-core batch | tuned batch and offload threshold. First, in seconds of virtual time, on the
# paper's 40 cores; then on real engines, one per core of this machine.
#   ./run_DeepRecSys.sh [--released_load] [any flag of DeepRecSys.py, which wins over those below]
# --released_load: sizes as the release draws them, normal(165, 16), of which no query is worth splitting.
# Batches, thresholds, 64 queries an update and the step of the rate grid (scheduler released) are the release's; the grid
# reaches beyond its 1000 QPS (50 steps from 20 to 1 ms) for machines with more cores.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$root/build/env.sh"

sizes=(--batch_size_distribution production)
flags=()
in_virtual_time=yes
for word in "$@"; do
    case $word in
        --released_load) sizes=(--batch_size_distribution normal --avg_mini_batch_size 165 --var_mini_batch_size 16) ;;
        *) flags+=("$word") ;;
    esac
    case $word in
        --help | -h | --resume* | --backend* | --config_file* | --pipeline*) in_virtual_time=no ;;
        # another net: there is no profile of it
        --model_name* | --model_type* | --arch_* | --table_scale* | --dtype* | --fused* | --embedding_* | --num_* | --hidden_* | --user_*)
            [[ $word == --num_batches* ]] || in_virtual_time=no ;;
    esac
done

tune() {
    python "$root/DeepRecSys.py" --queue --config_file "$root/models/configs/wide_and_deep.json" \
        --inference_engines 0 --num_batches 32 --nepochs 16 --max_mini_batch_size 1024 "${sizes[@]}" \
        --tune_batch_qps --batch_configs 512-256-128 \
        --model_accel --tune_accel_qps --accel_configs 96-128-192-256-384-512 \
        --target_latency 25 --max_arr_range 20 --min_arr_range 0.1 --arr_steps 87 \
        --req_granularity 64 --sched_timeout 128 ${flags[@]+"${flags[@]}"} "$@"
}

if [ "$in_virtual_time" = yes ]; then
    echo "== 40 cores, in virtual time"
    tune --backend simulated --inference_engines 40
    echo
    echo "== real engines on this machine"
fi
tune
