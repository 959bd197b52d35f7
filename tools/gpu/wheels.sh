#!/usr/bin/env bash
# Collects the wheels that a bare CUDA machine lacks (torch, accelerate, pyarrow, typer, tqdm and
# pytest are expected there), for its Python and x86-64:
#
#   bash tools/gpu/wheels.sh [FOLDER] [PYTHON_VERSION]      default: build/gpu-wheels 3.12
#
# Copy FOLDER beside the checkout's other files and name it: WHEELS=FOLDER bash tools/gpu/run.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

folder=${1:-build/gpu-wheels} version=${2:-3.12}
python=.venv/bin/python
[ -x "$python" ] || python=python3

# What is not pure Python is small; nothing here brings in torch or CUDA.
pinned=(transformers tokenizers huggingface_hub hf-xet httpx2 httpcore2 truststore datasets multiprocess
    dill numcodecs google-crc32c zarr donfig trl pcodec)
wanted=(liger-kernel)
for name in "${pinned[@]}"; do
    wanted+=("$(grep -iE "^${name}==" tools/constraints.txt)")
done

platforms=()
for glibc in 2_17 2_24 2_27 2_28 2_31 2_34; do platforms+=(--platform "manylinux_${glibc}_x86_64"); done
rm -rf "$folder"
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --implementation cp --python-version "$version" "${platforms[@]}" \
    --platform manylinux2014_x86_64 --platform manylinux1_x86_64 -d "$folder" "${wanted[@]}"
mebibytes=$(du -sm "$folder" | cut -f1)
printf '%s: %s MiB\n' "$folder" "$mebibytes"
if [ "$mebibytes" -ge 60 ]; then
    printf 'error: %s: the wheels take %s MiB, expected less than 60. Take some off the list in %s.\n' \
        "$folder" "$mebibytes" "$0" >&2
    exit 1
fi
