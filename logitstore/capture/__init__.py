"""The teacher pass: the only part of logitstore that imports torch, when it is called.

    store = logitstore.capture(teacher, dataset, out="my-store", top_k=64)

The package itself can be called, so that `logitstore.capture` means one thing whichever of its
modules was imported first: it is the function `capture` below.
"""

import inspect
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from logitstore.capture.settings import CaptureSettings
from logitstore.console.launcher import Ranks
from logitstore.console.settings import with_settings
from logitstore.storage.objects import RemotePath

if TYPE_CHECKING:
    from logitstore.capture.estimate.forecast import Forecast
    from logitstore.rows.sources import DatasetArg
    from logitstore.store import LogitStore

__all__ = ["capture", "preview"]


@with_settings(CaptureSettings)
def capture(
    teacher: str | os.PathLike[str],
    dataset: "DatasetArg",
    out: str | os.PathLike[str] | RemotePath,
    *,
    log_json: str | os.PathLike[str] | None = None,
    ranks: Ranks | None = None,
    **settings: Any,
) -> "LogitStore":
    """Run a teacher over a dataset and write a store; resume it if it is begun, or do nothing.

    Several processes may do this at once, each with the same arguments: each takes whole shards
    (as ranks of a launcher, or with `claim`), and all return when the store is finished.

    Args:
        teacher: Hub id, or a folder that `AutoModelForCausalLM` and `AutoTokenizer` load.
        dataset: Hub id, folder, `save_to_disk` folder, .jsonl, .json, .parquet or .txt file, a
            pattern or a list of files, or a `datasets.Dataset`; with `text`, `prompt` and
            `completion`, `messages`, `conversations` or `input_ids` (see
            `logitstore.rows.dataset`).
        out: The store's folder, or a URL: `s3://bucket/name`.
        **settings: The fields of `CaptureSettings`.
        log_json: Append what happens to this file, a JSON object a line.
        ranks: Which of several processes this is; default: what the launcher's variables say.

    Returns:
        The finished store, open for reading.

    Raises:
        InputError: A model, dataset or setting that cannot be used.
        MissingLibraryError: `codec` is compact, and pcodec is not installed.
        MismatchError: `out` holds a store made with other settings, or something else.
        StorageError: The file system failed; what was committed stays good.
        BusyError: Another capture is writing this store, and one of the two has no `claim`.
        IncompleteStoreError: Another rank had no heartbeat while this one waited for it.
        Stopped: SIGINT or SIGTERM came; what was committed stays good.
    """
    from logitstore.capture.job import run_capture

    asked = CaptureSettings(**settings)
    return run_capture(teacher, dataset, out, asked, log_json=log_json, ranks=ranks)


@with_settings(CaptureSettings)
def preview(
    teacher: str | os.PathLike[str],
    dataset: "DatasetArg",
    out: str | os.PathLike[str] | RemotePath | None = None,
    **settings: Any,
) -> "Forecast":
    """Estimate what `capture` with the same arguments would do. Writes nothing.

    Args:
        teacher: As for `capture`.
        dataset: As for `capture`.
        out: The store whose missing shards are looked at; None: a new one, anywhere.
        **settings: The fields of `CaptureSettings`.

    Raises:
        InputError: A model, dataset or setting that cannot be used.
        MismatchError: `out` holds a store made with other settings.
    """
    from logitstore.capture.job import run_preview

    return run_preview(teacher, dataset, out, CaptureSettings(**settings))


class _CapturePackage(ModuleType):
    """This package as a function."""

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(capture)

    def __call__(self, *args: Any, **kwargs: Any) -> "LogitStore":
        return capture(*args, **kwargs)


sys.modules[__name__].__class__ = _CapturePackage
