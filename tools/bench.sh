#!/usr/bin/env bash
# All benchmarks one after the other, and tools/BENCHMARKS.md of what they said, after their own
# set-up:  bash tools/bench.sh [--quick] [bench_losses …]
#
# Reports are kept in build/bench: naming some benchmarks measures those again, and the page is made
# of all that are there. --quick tries the whole thing with sizes that measure nothing, and leaves
# the page alone.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/setup.sh

out=build/bench quick=() names=()
for argument in "$@"; do
    if [ "$argument" = --quick ]; then quick=(--quick) out=build/bench-quick; else names+=("$argument"); fi
done
if [ ${#names[@]} = 0 ]; then
    for file in tools/bench_*.py; do
        name=$(basename "$file" .py)
        if [ "$name" != bench_page ]; then names+=("$name"); fi
    done
fi
mkdir -p "$out"
for name in "${names[@]}"; do
    printf 'bench: %s\n' "$name" >&2
    .venv/bin/python -m "tools.$name" --json "${quick[@]}" >"$out/$name.part"
    mv "$out/$name.part" "$out/$name.json"
done
page=tools/BENCHMARKS.md
if [ ${#quick[@]} != 0 ]; then page=$out/BENCHMARKS.md; fi
.venv/bin/python -m tools.bench_page "$out"/bench_*.json >"$out/page.part"
mv "$out/page.part" "$page"
printf 'bench: %s\n' "$page" >&2
