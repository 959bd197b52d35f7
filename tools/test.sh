#!/usr/bin/env bash
# The tests, after their own set-up:  bash tools/test.sh [--slow] [any pytest arguments]
#
#   bash tools/test.sh                      the suite, the demo at its smallest size included
#   bash tools/test.sh --slow               also what takes longer than a suite may
#   bash tools/test.sh tests/distill/alignment/test_align.py -k emoji
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/setup.sh

# A process a core and one more, since a tenth of the time a test waits for a process or a server of
# its own (a file stays in one, for what its tests share; files are handed out in the order of
# tests/conftest.py, the longest first); `-n 0` turns that off.
cores=$(.venv/bin/python -c 'import os; print(min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()))')
arguments=(-n "$((cores + 1))" --dist loadfile --no-loadscope-reorder)
for argument in "$@"; do
    # pyproject.toml deselects the slow tests; an empty marker expression selects everything.
    if [ "$argument" = --slow ]; then arguments+=(-m "not gpu"); else arguments+=("$argument"); fi
done
exec .venv/bin/python -m pytest "${arguments[@]}"
