"""The environment of every test: no network, one thread, the user's own caches untouched.

It is set here and not in conftest.py, since some of it is read when torch, tokenizers and the hub's
client are imported, which fixtures do.
"""

import os
import tempfile

from tests.kit.ray_cluster import ENVIRONMENT as RAY

_OURS = "TESTS_OF"  # which process of pytest an environment was made by
_me = os.environ.get("PYTEST_XDIST_WORKER", "alone")

if os.environ.get(_OURS) != _me:  # a program that a test starts has its test's
    _HF_HOME = tempfile.TemporaryDirectory(prefix="hf-home-")
    _CACHE = tempfile.TemporaryDirectory(prefix="cache-")
    os.environ |= {
        _OURS: _me,
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": _HF_HOME.name,
        "XDG_CACHE_HOME": _CACHE.name,
        **RAY,  # some of it is read when Ray is imported, by whichever test
    }
