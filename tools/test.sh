#!/usr/bin/env bash
# The tests, after their own set-up:  bash tools/test.sh [--slow] [any pytest arguments]
#
#   bash tools/test.sh                      the suite, the demo at its smallest size included
#   bash tools/test.sh --slow               also what takes longer than a suite may
#   bash tools/test.sh tests/distill/alignment/test_align.py -k emoji
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/setup.sh

# A process a core (a file stays in one, for what its tests share; files are handed out in the order
# of tests/conftest.py, the longest first); `-n 0` turns that off.
arguments=(-n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder)
for argument in "$@"; do
    # pyproject.toml deselects the slow tests; an empty marker expression selects everything.
    if [ "$argument" = --slow ]; then arguments+=(-m "not gpu"); else arguments+=("$argument"); fi
done
exec .venv/bin/python -m pytest "${arguments[@]}"
