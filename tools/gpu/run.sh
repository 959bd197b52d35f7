#!/usr/bin/env bash
# What only a CUDA machine shows:  bash tools/gpu/run.sh [--cpu] [--only STAGE] [--skip STAGE] …
#
# Eight minutes, and eight more for `real`, which takes REAL_PARTS (tools/gpu/real.py says what that is).
# tools/gpu/environment.sh says where python and its libraries come from: PYTHON and WHEELS.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source tools/gpu/environment.sh
"$python" -m tools.gpu "$@"
