"""The device of the tests marked `gpu`: CUDA where it is, or the CPU when asked to check the tests.

python -m pytest -m gpu tests/gpu                       on a CUDA machine
LOGITSTORE_GPU_TESTS=cpu python -m pytest -m gpu …      do the tests themselves run?
"""

import os

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    if os.environ.get("LOGITSTORE_GPU_TESTS") == "cpu":
        return "cpu"
    pytest.skip("there is no CUDA device here")
