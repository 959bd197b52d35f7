#!/usr/bin/env bash
# The experiment on labels on a CUDA machine, for as long as there is time:
#
#   bash tools/gpu/labels.sh --deadline 300 [--jobs 'unigram/trained/*;same/trained/*'] …
#
# PARTS is what `python -m tools.experiment_labels carry build/labels-carry --without-weights` made
# elsewhere. Students that are not trained before are, first. WORKERS share the device. Results are
# appended to labels.jsonl in OUT: copy it as results-NAME.jsonl beside other results to merge them.
# Students that were trained before come back in OUT too, before-NAME.tar: unpack them into the parts'
# folder `before`, so that later jobs begin with the same ones.
# tools/gpu/environment.sh says where python and its libraries come from: PYTHON and WHEELS.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source tools/gpu/environment.sh
parts=${PARTS:-build/labels-carry}
"$python" -m tools.experiment_labels run --folder "$parts" --results "${OUT:-$parts}/labels.jsonl" \
    --device cuda --workers "${WORKERS:-14}" "$@"
if [ -n "${OUT:-}" ]; then
    for name in $(ls "$parts/before" | sed 's/-[0-9]*\.safetensors$//' | sort -u); do
        tar -C "$parts/before" -cf "$OUT/before-$name.tar" $(cd "$parts/before" && ls "$name"-*.safetensors)
    done
fi
