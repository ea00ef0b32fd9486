#!/usr/bin/env bash
# Measures the models on a CUDA card, beside PyTorch on the same card: one command, everything in its output.
#
#   benches/gpu/run.sh [FOLDER]
#
# FOLDER (default: target/gpu-bench) takes 3 GB of random weights. Needs nvcc (on the PATH, or under CUDA_HOME) and a driver.
# PYTHON names an interpreter with torch for this card (default: python3; without torch only our own figures are printed).
# PICTURES names a folder of JPEGs for the builder; without it that part is left out.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-target/gpu-bench}
mkdir -p "$folder"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true

scripts/cargo.sh build --locked --release -p index-builder --features cuda
export VISCACHE_BENCH_DATA=$folder VISCACHE_BENCH_BUILDER=${CARGO_TARGET_DIR:-target}/release/index-builder
if "${PYTHON:-python3}" -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
    export VISCACHE_BENCH_PYTHON=${PYTHON:-python3}
else
    echo "no torch for this card in ${PYTHON:-python3}: PyTorch is left out (name one by PYTHON)"
fi
if [ -n "${PICTURES:-}" ]; then
    export VISCACHE_BENCH_PICTURES=$PICTURES
fi
# The parity of every encoder with the golden numbers, on the card.
scripts/cargo.sh test --locked --release --features cuda --test parity cuda -- --nocapture
scripts/cargo.sh bench --locked --features cuda --bench gpu
# A step of training.
VISCACHE_BENCH_DEVICE=cuda scripts/cargo.sh bench --locked --features cuda --bench illama
