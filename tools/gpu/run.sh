#!/usr/bin/env bash
# What only a CUDA machine shows, in about ten minutes:  bash tools/gpu/run.sh [--cpu] [--only STAGE] …
#
# Uses the python3 that has torch (PYTHON names another). Where libraries are missing or too old, and
# there is no network, WHEELS names a folder that tools/gpu/wheels.sh has filled elsewhere.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

python=${PYTHON:-python3}
if [ -n "${WHEELS:-}" ]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$WHEELS"/*.whl
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
"$python" -m tools.gpu "$@"
