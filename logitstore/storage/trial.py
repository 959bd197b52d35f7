"""Try, before any long work, whether something can be written where a user asked for it.

Permissions, quotas and kinds of mounts say little of what a file system will do, so it is asked to
do it: a small file is written beside the place under a temporary name, named, and removed again.
What would fail after hours fails at once then.
"""

import errno
from contextlib import suppress
from pathlib import Path

from logitstore.errors import Located, StorageError
from logitstore.storage.commit import OS_FS, Fs, failure_kind, temporary, why_failed

_TRIAL_BYTES = 64 * 1024  # more than a file system keeps beside the name of a file


def try_beside(path: Path, fs: Fs = OS_FS, *, commits: bool = True) -> None:
    """Write and name a small file under temporary names beside `path`, and remove it again.

    Args:
        path: Where something is to be written later; it need not exist, and is not looked at.
        fs: Writes the file.
        commits: Whether a name must be given only once, as that of a shard is.

    Raises:
        OSError: The file system fails, or replaces a file by one that was to be new.
    """
    first, second, named = names = [temporary(path) for _ in range(3)]
    try:
        fs.write_durably(first, [bytes(_TRIAL_BYTES)])
        if not commits:
            fs.replace(first, named)
            return
        fs.link(first, named)
        fs.write_durably(second, [bytes(_TRIAL_BYTES)])
        with suppress(FileExistsError):
            fs.link(second, named)
            raise OSError(errno.EOPNOTSUPP, "it replaces a file", str(named))
        fs.sync_folder(path.parent)
    except FileNotFoundError:
        if not path.parent.exists():
            raise
        return  # the seal of another process removed it: so things are written here
    finally:
        for name in names:
            with suppress(OSError):
                fs.unlink(name)


def explain_trial(error: OSError, path: Located, option: str) -> StorageError:
    """Turn the failure of a trial, before there was anything to lose, into a StorageError."""
    unnamed = OSError(error.errno, error.strerror)  # not of a file that is gone already
    reason, step = why_failed(unnamed, option)
    other = "" if option in step else f", or choose another {option}"
    return StorageError(f"{path}: {reason}. {step}{other}.", kind=failure_kind(error))
