#!/usr/bin/env bash
# The main job on real text, after its own set-up:  bash tools/demo.sh [--quick]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/setup.sh
exec .venv/bin/python -m tools.demo "$@"
