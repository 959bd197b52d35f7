"""What every test stands on, beside the environment of `tests/__init__.py`.

Hypothesis has two profiles. `ci` repeats the same cases; `HYPOTHESIS_PROFILE=nightly` looks for
new ones.
"""

import gc
import os
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

from logitstore.testing.fixtures import bucket, fresh_clients, s3_server
from tests.kit.browser import browser
from tests.kit.handing_out import pytest_xdist_make_scheduler
from tests.kit.page_fixtures import call, page_folder
from tests.kit.paths import ROOT
from tests.kit.teacher import teacher
from tests.kit.time_by_file import (
    pytest_runtest_logstart,
    pytest_runtest_makereport,
    pytest_terminal_summary,
)

__all__ = [
    "browser",
    "bucket",
    "call",
    "fresh_clients",
    "page_folder",
    "pytest_runtest_logstart",
    "pytest_runtest_makereport",
    "pytest_terminal_summary",
    "pytest_xdist_make_scheduler",
    "s3_server",
    "teacher",
]  # fixtures, made when a test asks for them, and hooks

# No test cuts the power: tests that would lose what was not flushed have a file system of their own
# that forgets it, and processes that are killed leave their writes to the system. So nothing waits
# for a disk; that a flush is asked for where it must be is still seen (test_commit_faults.py).
os.fsync = lambda _: None

# What is compiled once need not be compiled by every process that a test starts.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

settings.register_profile("ci", max_examples=100, deadline=None, derandomize=True)
settings.register_profile("nightly", max_examples=5000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

#: By what the end of a run says. They are begun first, so that no process is left alone with one.
LONGEST = (
    "real/test_real_labels.py",
    "real/test_real_templates.py",
    "real/test_real_bert.py",
    "tools/test_demo.py",
    "logitstore/reading/test_attacks.py",
    "distill/training/test_exactness.py",
    "distill/training/test_cached_losses.py",
    "distill/test_cli.py",
    "logitstore/capture/test_generate.py",
    "logitstore/text/test_conversations.py",
    "logitstore/moving/test_zarr_export.py",
    "wrong_inputs/test_wrong_inputs.py",
    "distill/training/test_uncovered.py",
    "distill/training/test_trainer.py",
    "tools/test_gpu.py",
    "logitstore/capture/test_killed.py",
    "logitstore/capture/test_estimate.py",
    "logitstore/storage/test_remote_faults.py",
    "distill/student/test_adapters.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; `loadfile` hands them out in this order."""
    place = {str(ROOT / "tests" / name): n for n, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(str(item.path), len(place)))


def pytest_collection_finish() -> None:
    """Collect garbage rarely, and leave out of it what the imports made."""
    gc.set_threshold(20_000, 10, 10)  # tests make many objects that live as long as they do
    leave_to_itself()


@pytest.fixture(scope="module", autouse=True)
def _leave_what_was_made_before() -> Iterator[None]:
    """Leave out of later collections what a file made and its caches keep."""
    yield
    leave_to_itself()


def leave_to_itself() -> None:
    """Leave all that is there out of every later collection.

    accelerate collects before each training. Half a million objects of the imports take it half a
    second, and tokenizers that a file has loaded many times that.
    """
    gc.collect()
    gc.freeze()
