#!/usr/bin/env bash
# What only a CUDA machine shows, in about ten minutes:  bash tools/gpu/run.sh [--cpu] [--only STAGE] …
#
# tools/gpu/environment.sh says where python and its libraries come from: PYTHON and WHEELS.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source tools/gpu/environment.sh
"$python" -m tools.gpu "$@"
