"""Hand test files out to processes: each file to one, those that share what is dear to the same.

Only with `--dist loadfile`, as `tools/test.sh` has it.
"""

from typing import Any

import pytest

#: Folders whose files stay together.
TOGETHER = ("tests/real/",)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist, where it is installed
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Make the scheduler of `loadfile`, but for some folders."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByFileOrFolder(LoadFileScheduling):
        """What runs in one process is known by the beginning of a test's name."""

        def _split_scope(self, nodeid: str) -> str:
            for folder in TOGETHER:
                if nodeid.startswith(folder):
                    return folder
            return super()._split_scope(nodeid)

    return ByFileOrFolder(config, log)
