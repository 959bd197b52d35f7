"""The `logitstore` command: make stores, look at them, check them.

Data goes to stdout, messages go to stderr. Exit status: 0 fine, 1 `verify` found damage, 2 wrong
usage or input (a damaged store included, where it had to be read).
"""

import logging
import sys

from logitstore.cli import capture, check, inspect, moving
from logitstore.console import entry

_NOISY = ("httpx", "datasets", "fsspec", "s3fs", "botocore", "huggingface_hub")


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # of retries, which we tell ourselves


app = entry.program(
    "logitstore",
    "Make, inspect and check stores of a teacher's most probable next tokens.",
    epilog="Exit status 1: `verify` found damage, or `repair` has left some to be captured again.",
    begin=_log_to_stderr,
)
for commands in (capture, inspect, check, moving):
    commands.add_to(app)


def main() -> None:
    """Run the command line: an error raised on purpose is one message and an exit status."""
    entry.run(app, "logitstore")
