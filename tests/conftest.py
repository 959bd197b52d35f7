"""What every test stands on: no network, one thread, the user's own caches untouched.

Hypothesis has two profiles. `ci` repeats the same cases; `HYPOTHESIS_PROFILE=nightly` looks for
new ones.
"""

import os
import tempfile

from hypothesis import settings

from logitstore.testing.fixtures import bucket, fresh_clients, s3_server
from tests.kit.browser import browser
from tests.kit.teacher import teacher
from tests.kit.time_by_file import (
    pytest_runtest_logstart,
    pytest_runtest_makereport,
    pytest_terminal_summary,
)

__all__ = [
    "browser",
    "bucket",
    "fresh_clients",
    "pytest_runtest_logstart",
    "pytest_runtest_makereport",
    "pytest_terminal_summary",
    "s3_server",
    "teacher",
]  # fixtures, made when a test asks for them, and hooks

# Read when torch, tokenizers and the hub's client are imported, so set before any test is.
_HF_HOME = tempfile.TemporaryDirectory(prefix="hf-home-")
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HOME": _HF_HOME.name,
}

settings.register_profile("ci", max_examples=200, deadline=None, derandomize=True)
settings.register_profile("nightly", max_examples=5000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
