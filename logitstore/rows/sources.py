"""Load one split of a dataset, and explain what can be wrong with it.

Files of JSON and of text are read by this package, wherever they come from (`columns.py`); all
other data by `datasets`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from logitstore.errors import InputError, in_a_line
from logitstore.rows.column_writer import Column
from logitstore.rows.columns import read_columns
from logitstore.rows.files import KINDS, PARQUET, File, expand, is_pattern
from logitstore.rows.source import Source
from logitstore.rows.source_files import SourceFiles

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    #: What a user gives as a dataset: a name, several names, or the rows themselves.
    DatasetArg: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Dataset

_FOLDER = "logitstore"  # in the cache of `datasets`


def load_split(
    dataset: DatasetArg,
    split: str | None,
    config_name: str | None,
    revision: str | None,
    wanted: Mapping[str, str | None],
) -> Source:
    """Load one split.

    Args:
        dataset: As :func:`logitstore.rows.dataset.load_rows` takes it.
        split: Its name, or a slice of it.
        config_name: The configuration.
        revision: Branch, tag or commit.
        wanted: The columns to read of files; see :func:`logitstore.rows.columns.read_columns`.

    Raises:
        InputError: As :func:`logitstore.rows.dataset.load_rows` says.
        StorageError: The cache cannot be written.
    """
    names = names_of(dataset)
    if names is None:
        _reject("a dataset in memory", config_name=config_name, revision=revision)
        return Source(_choose(_in_memory(dataset), "the dataset", split), "the dataset")
    try:
        return _named(names, split, config_name, revision, wanted)
    except OSError as error:
        if error.strerror is None:  # one of ours, which says all
            raise
        place = error.filename if len(names) > 1 and error.filename else names[0]
        raise InputError(
            f"{place}: cannot be read ({error.strerror}). Fix its permissions, or copy it to "
            "where you may read it."
        ) from error


def names_of(dataset: Any) -> list[str] | None:
    """List the paths or ids that a user gave; None for a dataset in memory."""
    if isinstance(dataset, str | os.PathLike):
        return [os.fspath(dataset)]
    is_list = isinstance(dataset, list | tuple)
    if is_list and all(isinstance(name, str | os.PathLike) for name in dataset):
        if not dataset:
            raise InputError("the dataset: an empty list of files. Give at least one.")
        return [os.fspath(name) for name in dataset]
    return None


def _named(
    names: list[str],
    split: str | None,
    config_name: str | None,
    revision: str | None,
    wanted: Mapping[str, str | None],
) -> Source:
    name = names[0]
    if len(names) == 1 and not is_pattern(name):
        if Path(name).is_dir():
            _reject(f"{name} (a folder)", revision=revision)
            return _from_folder(Path(name), split, config_name, wanted)
        if not Path(name).exists():
            return _from_hub(name, split, config_name, revision, wanted)
    what = "a file" if len(names) == 1 else "files"
    _reject(f"{name} ({what})", config_name=config_name, revision=revision)
    return _from_files([File.at(path) for path in expand(names)], split, wanted)


def _in_memory(dataset: Any) -> Dataset | DatasetDict:
    import datasets

    if not isinstance(dataset, datasets.Dataset | datasets.DatasetDict):
        raise InputError(
            f"the dataset: expected a path, a hub id or a datasets.Dataset, found "
            f"{type(dataset).__name__}. Streams have no length: load without streaming=True."
        )
    one = next(iter(dataset.values())) if isinstance(dataset, datasets.DatasetDict) else dataset
    if one.format["type"] == "custom":
        raise InputError(
            "the dataset: has a transform (set_transform), which would be passed over. Apply it "
            "with dataset.map(…) first."
        )
    return dataset


def _from_folder(
    folder: Path, split: str | None, config_name: str | None, wanted: Mapping[str, str | None]
) -> Source:
    import datasets

    name = str(folder)
    if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
        _reject(f"{folder} (from save_to_disk)", config_name=config_name)
        try:
            loaded = datasets.load_from_disk(name)
        except Exception as error:  # a broken folder gives any class: KeyError, pyarrow's, JSON's
            raise _unreadable(name, error) from error
        return Source(_choose(loaded, name, split), name)
    try:
        builder = datasets.load_dataset_builder(name, config_name)
    except Exception as error:  # builders raise any class, StopIteration too
        raise _unreadable(name, error) from error
    if (files := _files_of(builder)) is not None:
        return _from_splits(files, name, split, wanted)
    try:
        sources = SourceFiles.of_folder(folder, config_name)
        loaded = datasets.load_dataset(name, config_name, cache_dir=str(sources.cache))
    except Exception as error:
        raise _unreadable(name, error) from error
    sources.check()
    return Source(_choose(loaded, name, split), name)


def _from_files(files: list[File], split: str | None, wanted: Mapping[str, str | None]) -> Source:
    import datasets

    name = files[0].name if len(files) == 1 else f"{files[0].name} and {len(files) - 1} more"
    for file in files:
        _check_file(file)
    if all(file.path.stat().st_size == 0 for file in files):
        raise InputError(f"{name}: 0 rows, the file is empty. Give one with text.")
    kinds = {file.kind == PARQUET: file for file in files}
    if len(kinds) > 1:
        raise InputError(
            f"{kinds[True].name} and {kinds[False].name}: files of Parquet and of text at once. "
            "Give those of one kind."
        )
    if True not in kinds:
        return _from_splits({"train": files}, name, split, wanted)
    sources = SourceFiles([file.path for file in files], name)
    try:
        loaded = datasets.load_dataset(
            "parquet",
            data_files=[str(file.path) for file in files],
            cache_dir=str(sources.cache),
        )
    except Exception as error:  # builders raise any class, StopIteration too
        raise _unreadable(name, error) from error
    sources.check()
    return Source(_choose(loaded, name, split), name)


def _check_file(file: File) -> None:
    if file.path.is_dir():
        raise InputError(
            f"{file.name}: a folder among files. Name it alone, or its files: {file.name}/*.jsonl."
        )
    if not file.path.exists():
        raise InputError(f"{file.name}: no such file. Check its path.")
    if file.kind is None:
        raise InputError(
            f"{file.name}: unknown kind of file; expected {', '.join(KINDS)} (all but .parquet "
            f"also with .gz or .zst), found {file.ending or 'no ending'!r}. Convert it, or load "
            "it with `datasets` and save_to_disk."
        )


def _from_splits(
    splits: Mapping[str, list[File]],
    name: str,
    split: str | None,
    wanted: Mapping[str, str | None],
) -> Source:
    """Read the files of a split, or of several that a slice may be made of."""
    import datasets

    if split is None and len(splits) != 1:
        raise _several(name, splits)
    chosen = {split: splits[split]} if split is not None and split in splits else dict(splits)
    folder = Path(datasets.config.HF_DATASETS_CACHE) / _FOLDER
    sources = SourceFiles([file.path for files in chosen.values() for file in files], name)
    tables = {part: read_columns(files, wanted, folder) for part, files in chosen.items()}
    sources.check()
    made = {
        part: datasets.Dataset(table.table, fingerprint=table.key[:16])
        for part, table in tables.items()
    }
    found = _choose(datasets.DatasetDict(made), name, split)
    columns, keys = _joined(tables.values())
    is_whole = len(tables) == 1 and len(found) == len(next(iter(made.values())))
    firsts = next(iter(tables.values())).firsts if is_whole else ()
    return Source(found, name, columns, keys, firsts)


def _joined(tables: Any) -> tuple[dict[str, Column], tuple[str, ...]]:
    """Describe the columns of several splits together: a flaw in one is a flaw of all."""
    columns: dict[str, Column] = {}
    keys: dict[str, None] = {}
    for table in tables:
        keys.update(dict.fromkeys(table.keys))
        for name, column in table.columns.items():
            before = columns.get(name, Column(None))
            columns[name] = Column(
                before.shape or column.shape,
                before.flaw or column.flaw,
                before.absent or column.absent,
            )
    return columns, tuple(keys)


def _from_hub(
    name: str,
    split: str | None,
    config_name: str | None,
    revision: str | None,
    wanted: Mapping[str, str | None],
) -> Source:
    import datasets

    if name.startswith((".", "/", "~")) or name.count("/") > 1 or File.at(Path(name)).kind:
        raise InputError(f"{name}: no such file or folder. Give its path, or the id of a dataset.")
    try:
        builder = datasets.load_dataset_builder(name, config_name, revision=revision)
        files = _files_of(builder, split)
        if files is None:
            loaded = datasets.load_dataset(name, config_name, split=split, revision=revision)
    except Exception as error:  # of builders, and of each library of the network below them
        raise InputError(
            f"{name}: neither a file or folder here nor a dataset that the hub gives "
            f"({_message_of(error)}). Check the name, --config-name and --split, or give a path."
        ) from error
    if files is not None:
        return _from_splits(files, name, split, wanted)
    return Source(_choose(loaded, name, None), name)


def _files_of(builder: Any, split: str | None = None) -> dict[str, list[File]] | None:
    """List a builder's files by split, downloaded; None where `datasets` is to read them.

    Only those of one split are downloaded where that is its name.
    """
    from datasets.packaged_modules.json.json import Json
    from datasets.packaged_modules.text.text import Text

    config = builder.config
    is_rows = (isinstance(builder, Json) and config.field is None) or (
        isinstance(builder, Text) and config.sample_by == "line" and not config.keep_linebreaks
    )
    if not is_rows or config.encoding != "utf-8" or config.encoding_errors or not config.data_files:
        return None
    names = {str(part): [str(name) for name in found] for part, found in config.data_files.items()}
    if not all(File(Path(name), name).kind for found in names.values() for name in found):
        return None
    return {
        part: [File(_local(name), name) for name in found]
        for part, found in names.items()
        if split not in names or part == split
    }


def _local(name: str) -> Path:
    """Return where a file lies on this machine; one of a hub is downloaded."""
    import datasets

    if "://" not in name:
        return Path(name)
    return Path(str(datasets.DownloadManager().download(name)))


def _choose(loaded: Dataset | DatasetDict, name: str, split: str | None) -> Dataset:
    """Choose the split asked for, or the only one that exists."""
    import datasets

    if isinstance(loaded, datasets.Dataset):
        if split is None:
            return loaded
        loaded = datasets.DatasetDict({str(loaded.split or "train"): loaded})
    if split is None:
        if len(loaded) != 1:
            raise _several(name, loaded)
        return next(iter(loaded.values()))
    if split in loaded:
        return loaded[split]
    try:
        sizes = {key: len(part) for key, part in loaded.items()}
        parts = datasets.ReadInstruction.from_spec(split).to_absolute(sizes)
    except (ValueError, AssertionError) as error:
        raise InputError(
            f"{name}: no split {split!r} ({_message_of(error)}); found {_listed(loaded)}. Choose "
            "with --split NAME, or a slice of one such as 'NAME[:1000]'."
        ) from error
    ranges = [loaded[p.splitname].select(range(p.from_, p.to)) for p in parts]
    return ranges[0] if len(ranges) == 1 else datasets.concatenate_datasets(ranges)


def _several(name: str, splits: Mapping[Any, Any]) -> InputError:
    return InputError(f"{name}: has the splits {_listed(splits)}. Choose one with --split.")


def _listed(splits: Mapping[Any, Any]) -> str:
    return ", ".join(map(str, splits)) or "none"


def _reject(source: str, **flags: str | None) -> None:
    """Reject flags that would have no effect, so that they are no surprise later."""
    for flag, value in flags.items():
        if value is not None:
            option = "--" + flag.replace("_", "-")
            raise InputError(
                f"{source} has no {flag.replace('_', ' ')}: leave out {option} {value}."
            )


def _unreadable(name: str, error: Exception) -> InputError:
    return InputError(
        f"{name}: `datasets` cannot read it ({_message_of(error)}). Check that its files are whole "
        f"and hold the same columns; load_dataset({name!r}) in Python says more."
    )


def _message_of(error: Exception) -> str:
    """Return an error's message in a line; `datasets` wraps the one that matters."""
    return in_a_line(error.__cause__ or error)
