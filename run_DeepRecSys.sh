#!/usr/bin/env bash
# Tuned policy -> highest rate under the SLA. Wide & Deep, full tables, p95 <= 25 ms, one engine per core:
# static baseline | tuned per-core batch | tuned batch and offload threshold. Some minutes on 2 cores.
#   ./run_DeepRecSys.sh [any flag of DeepRecSys.py, which wins over those below]
# Sizes, batches, thresholds, 64 queries an update and the step of the rate grid are the release's; the grid reaches
# beyond its 1000 QPS (50 steps from 20 to 1 ms) for machines with more cores.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$root/build/env.sh"

exec python "$root/DeepRecSys.py" --queue --config_file "$root/models/configs/wide_and_deep.json" \
    --inference_engines 0 --num_batches 32 --nepochs 64 \
    --batch_size_distribution normal --avg_mini_batch_size 165 --var_mini_batch_size 16 --max_mini_batch_size 1024 \
    --tune_batch_qps --batch_configs 512-256-128 \
    --model_accel --tune_accel_qps --accel_configs 96-128-192-256-384-512 \
    --target_latency 25 --max_arr_range 20 --min_arr_range 0.1 --arr_steps 87 \
    --req_granularity 64 --sched_timeout 128 "$@"
