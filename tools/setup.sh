#!/usr/bin/env bash
# Makes .venv with everything the demo and the tests need. Both commands call it; nothing else must
# have been run before. When .venv is already what pyproject.toml and constraints.txt ask for, it
# returns at once.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf 'setup: %s\n' "$1" >&2; }

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.14 python3.13 python3.12 python3.11; do
        if is_new_enough "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    say "no CPython >= 3.11 found (tried \$PYTHON, python3, python3.11 to 3.14). Name one: PYTHON=/path/to/python3 bash tools/test.sh"
    return 2
}

# git is there on every machine this runs on, sha256sum is not.
wanted=$(cat pyproject.toml tools/constraints.txt tools/setup.sh | git hash-object --stdin)
stamp=.venv/setup-done
if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && is_new_enough .venv/bin/python; then
    exit 0
fi

# Without pip it is what an interrupted or refused `python -m venv` left.
if ! is_new_enough .venv/bin/python || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    python=$(find_python)
    say "making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv
fi
rm -f "$stamp"
# torch by itself first: its pin also admits a build that is already there (README, "Another torch"),
# and no later requirement can then pull in another one.
say "installing torch, then the rest, at the versions of tools/constraints.txt (once; minutes)"
pip=(.venv/bin/python -m pip install --disable-pip-version-check -c tools/constraints.txt)
"${pip[@]}" torch >&2
"${pip[@]}" --editable '.[dev]' >&2
printf '%s\n' "$wanted" >"$stamp"
