"""Capture on a Ray cluster, and read stores with Ray Data. Importing this does not import Ray.

    store = logitstore.ray.capture(teacher, dataset, out="/shared/my-store", address="auto")
    rows = logitstore.ray.dataset("/shared/my-store")       # a ray.data.Dataset

A driver (`driver.py`) plans the capture and hands shards to teachers, which are Ray's actors
(`teacher.py`), as many as the cluster has room for (`crew.py`).
"""

import os
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from logitstore.capture.settings import CaptureSettings
from logitstore.console.argument_types import typed
from logitstore.console.settings import with_settings
from logitstore.ray.cluster import data_library
from logitstore.ray.settings import AUTO, RaySettings
from logitstore.storage.objects import RemotePath

if TYPE_CHECKING:
    from ray.data import Dataset

    from logitstore.rows.sources import DatasetArg
    from logitstore.store import LogitStore

__all__ = ["capture", "dataset"]


@with_settings(RaySettings, CaptureSettings)
def capture(
    teacher: str | os.PathLike[str],
    dataset: "DatasetArg",
    out: str | os.PathLike[str] | RemotePath,
    *,
    log_json: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> "LogitStore":
    """Run a teacher over a dataset on a Ray cluster and write a store, or resume it.

    The dataset is read here alone; the teachers are sent the rows of their shards. Each node has to
    see the teacher's files and the store's folder (or the bucket), and to have this package.

    Args:
        teacher: Hub id, or a folder that `AutoModelForCausalLM` and `AutoTokenizer` load.
        dataset: As for `logitstore.capture`.
        out: The store's folder, which all nodes share, or a URL: `s3://bucket/name`.
        **settings: The fields of `RaySettings` and `CaptureSettings`.
        log_json: Append what happens to this file, a JSON object a line.

    Returns:
        The finished store, open for reading.

    Raises:
        InputError: A model, dataset or setting that cannot be used; a cluster that cannot be
            reached, or that has no room for a teacher; rows that no teacher could read, after all
            others were captured.
        MissingLibraryError: Ray is not installed.
        MismatchError: `out` holds a store made with other settings, or something else.
        StorageError: The file system failed, or a node does not see `out`.
        BusyError: Another capture is writing this store.
        IncompleteStoreError: Teachers died again and again.
        Stopped: SIGINT or SIGTERM came; what was committed stays good.
    """
    from logitstore.ray.job import run_on_ray

    names = {f.name for f in fields(RaySettings)} & set(settings)
    how = {name: settings.pop(name) for name in names}
    on_ray = RaySettings(**how | {"address": how.get("address") or AUTO})
    return run_on_ray(teacher, dataset, out, CaptureSettings(**settings), on_ray, log_json=log_json)


@typed("logitstore.ray.dataset")
def dataset(
    store: str | os.PathLike[str] | RemotePath,
    *,
    input_ids: bool = True,
    allow_partial: bool = False,
) -> "Dataset":
    """Read a store as a dataset of Ray Data: a row for each sequence, a read task for each shard.

    Args:
        store: The store's folder, which all nodes see, or its URL.
        input_ids: Whether rows have `input_ids` (T,), the whole sequence in the teacher's tokens,
            and `record_at` (n,), where in it the token of each record stands. Needs transformers.
        allow_partial: Whether to read a store that is not finished.

    Returns:
        Rows with the columns of `logitstore export --to parquet` (see
        `logitstore.moving.parquet.columns`): `row`, `part`, `status`, `segments`, …, and for the n
        records of a sequence `token_ids` (n,), `entry_ids`, `entry_logprobs`, …

    Raises:
        MissingLibraryError: Ray Data is not installed.
        NotAStoreError, IncompleteStoreError, CorruptStoreError, StorageError: As `open_store`.
    """
    data_library()
    from logitstore.ray.dataset_source import read

    return read(store, input_ids=input_ids, allow_partial=allow_partial)
