#!/usr/bin/env bash
# Trains the nano model from nothing, step by step, as `make nano` does; what is done already is not done again.
#
#   scripts/nano.sh [FOLDER]      the folder of the runs (runs/nano); its model/ has the files that assets/nano has
#   SEED=1 scripts/nano.sh …      another seed
set -euo pipefail
cd "$(dirname "$0")/.."
runs=$(realpath -m "${1:-runs/nano}")
seed=${SEED:-0}
viscache=${CARGO_TARGET_DIR:-target}/debug/viscache

# Name of the step, then what the recipe says of files of other steps.
learn() {
    local name=$1 begin=$SECONDS
    shift
    echo "== $name"
    "$viscache" train "recipes/nano-$name.toml" --out "$runs/$name" --set "run.seed=$seed" "$@"
    echo "== $name took $((SECONDS - begin)) s"
}

encoder() {
    echo --set "adapter.encoder=\"$runs/speech/best/imagebind.safetensors\"" \
        --set "adapter.encoder_sizes=\"$runs/speech/best/imagebind.json\"" \
        --set "adapter.backbone=\"$runs/language/best/backbone.safetensors\""
}

learn vision
learn text --set "pairs.start=\"$runs/vision/best\""
learn speech --set "pairs.start=\"$runs/text/best\""
learn language
mapfile -t encoder < <(encoder | xargs -n 1)
learn pretrain "${encoder[@]}"
learn finetune "${encoder[@]}" --set "adapter.start=\"$runs/pretrain/best\""

model=$runs/model
mkdir -p "$model"
cp "$runs/speech/best/imagebind.safetensors" "$runs/speech/best/imagebind.json" "$model/"
cp "$runs/language/best/backbone.safetensors" "$model/llama.safetensors"
cp "$runs/language/best/params.json" "$runs/language/best/tokenizer.model" "$model/"
cp "$runs/finetune/best/adapter.safetensors" "$model/"
echo "== the model is in $model; all steps took $SECONDS s"
"$viscache" evaluate nano --model "$model"
