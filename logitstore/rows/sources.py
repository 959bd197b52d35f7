"""Load one split of a dataset through `datasets`, and explain what can be wrong with it."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logitstore.errors import InputError, in_a_line
from logitstore.rows.source_files import SourceFiles

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

#: The builder of `datasets` that reads files of each ending.
_BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".txt": "text"}
_TEXT_FILES = (".jsonl", ".json", ".txt")
_BLOCK_BYTES = 1024 * 1024


def load_split(
    dataset: str | Path | Dataset, split: str | None, config_name: str | None, revision: str | None
) -> tuple[Dataset, str]:
    """Load one split, and choose its name in messages.

    Raises:
        InputError: As :func:`logitstore.rows.dataset.load_rows` says.
    """
    if not isinstance(dataset, str | Path):
        _reject("a dataset in memory", config_name=config_name, revision=revision)
        return _choose(_in_memory(dataset), "the dataset", split), "the dataset"
    try:
        return _named(dataset, split, config_name, revision)
    except OSError as error:
        raise InputError(
            f"{dataset}: cannot be read ({error.strerror}). Fix its permissions, or copy it to "
            "where you may read it."
        ) from error


def _named(
    dataset: str | Path, split: str | None, config_name: str | None, revision: str | None
) -> tuple[Dataset, str]:
    path, name = Path(dataset), str(dataset)
    if path.is_dir():
        _reject(f"{name} (a folder)", revision=revision)
        return _choose(_from_folder(path, config_name), name, split), name
    if path.exists():
        _reject(f"{name} (a file)", config_name=config_name, revision=revision)
        return _choose(_from_file(path), name, split), name
    return _from_hub(name, split, config_name, revision), name


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


def _from_folder(folder: Path, config_name: str | None) -> Dataset | DatasetDict:
    import datasets

    if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
        _reject(f"{folder} (from save_to_disk)", config_name=config_name)
        try:
            return datasets.load_from_disk(str(folder))
        except Exception as error:  # a broken folder gives any class: KeyError, pyarrow's, JSON's
            raise _unreadable(str(folder), error) from error
    for path in sorted(p for p in folder.rglob("*") if p.suffix in _TEXT_FILES):
        _check_utf8(path)
    try:
        files = SourceFiles.of_folder(folder, config_name)
        loaded = datasets.load_dataset(str(folder), config_name, cache_dir=str(files.cache))
    except Exception as error:  # builders raise any class, StopIteration too
        raise _unreadable(str(folder), error) from error
    files.check()
    return loaded


def _from_file(path: Path) -> Dataset | DatasetDict:
    import datasets

    if path.suffix not in _BUILDERS:
        raise InputError(
            f"{path}: unknown kind of file; expected {', '.join(_BUILDERS)}, found "
            f"{path.suffix or 'no ending'!r}. Convert it, or load it with `datasets` and "
            "save_to_disk."
        )
    if path.stat().st_size == 0:
        raise InputError(f"{path}: 0 rows, the file is empty. Give one with text.")
    if path.suffix in _TEXT_FILES:
        _check_utf8(path)
    files = SourceFiles([path], str(path))
    try:
        loaded = datasets.load_dataset(
            _BUILDERS[path.suffix], data_files=str(path), cache_dir=str(files.cache)
        )
    except Exception as error:  # builders raise any class, StopIteration too
        if path.suffix == ".jsonl":
            _check_lines(path)
        raise _unreadable(str(path), error) from error
    files.check()
    return loaded


def _from_hub(
    name: str, split: str | None, config_name: str | None, revision: str | None
) -> Dataset:
    import datasets

    if name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).suffix in _BUILDERS:
        raise InputError(f"{name}: no such file or folder. Give its path, or the id of a dataset.")
    try:
        loaded = datasets.load_dataset(name, config_name, split=split, revision=revision)
    except Exception as error:  # of builders, and of each library of the network below them
        raise InputError(
            f"{name}: neither a file or folder here nor a dataset that the hub gives "
            f"({_message_of(error)}). Check the name, --config-name and --split, or give a path."
        ) from error
    return _choose(loaded, name, None)


def _choose(loaded: Dataset | DatasetDict, name: str, split: str | None) -> Dataset:
    """Choose the split asked for, or the only one that exists."""
    import datasets

    if isinstance(loaded, datasets.Dataset):
        if split is None:
            return loaded
        loaded = datasets.DatasetDict({str(loaded.split or "train"): loaded})
    listed = ", ".join(loaded) or "none"
    if split is None:
        if len(loaded) != 1:
            raise InputError(f"{name}: has the splits {listed}. Choose one with --split.")
        return next(iter(loaded.values()))
    if split in loaded:
        return loaded[split]
    try:
        sizes = {key: len(part) for key, part in loaded.items()}
        parts = datasets.ReadInstruction.from_spec(split).to_absolute(sizes)
    except (ValueError, AssertionError) as error:
        raise InputError(
            f"{name}: no split {split!r} ({_message_of(error)}); found {listed}. Choose with "
            "--split NAME, or a slice of one such as 'NAME[:1000]'."
        ) from error
    ranges = [loaded[p.splitname].select(range(p.from_, p.to)) for p in parts]
    return ranges[0] if len(ranges) == 1 else datasets.concatenate_datasets(ranges)


def _reject(source: str, **flags: str | None) -> None:
    """Reject flags that would have no effect, so that they are no surprise later."""
    for flag, value in flags.items():
        if value is not None:
            option = "--" + flag.replace("_", "-")
            raise InputError(
                f"{source} has no {flag.replace('_', ' ')}: leave out {option} {value}."
            )


def _check_utf8(path: Path) -> None:
    """Raise an error for the first line that is not UTF-8: `datasets` would only name a byte."""
    decoder, line = codecs.getincrementaldecoder("utf-8")(), 1
    with path.open("rb") as f:
        while True:
            block = f.read(_BLOCK_BYTES)
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                # `object` also holds the end of the block before, which has no line break
                line += error.object[: error.start].count(b"\n")
                raise InputError(
                    f"{path}: line {line:,} is not UTF-8 (byte 0x{error.object[error.start]:02X}). "
                    f"Convert the file: iconv -f ENCODING -t UTF-8 {path.name}."
                ) from None
            if not block:
                return
            line += block.count(b"\n")


def _check_lines(path: Path) -> None:
    """Raise an error for the first line of a `.jsonl` that is not JSON, or not valid Unicode."""
    with path.open(encoding="utf-8") as f:
        for number, line in enumerate(f, 1):
            try:
                json.dumps(json.loads(line or "null"), ensure_ascii=False).encode()
            except UnicodeEncodeError:
                raise InputError(
                    f"{path}: line {number:,} holds half of a surrogate pair (\\ud800 to \\udfff "
                    "alone), which no UTF-8 text can hold. Repair or drop the row."
                ) from None
            except json.JSONDecodeError as error:
                raise InputError(
                    f"{path}: line {number:,} is not JSON ({error.msg} at column {error.colno}). "
                    'Each line must be one object, such as {"text": "…"}.'
                ) from None


def _unreadable(name: str, error: Exception) -> InputError:
    return InputError(
        f"{name}: `datasets` cannot read it ({_message_of(error)}). Check that its files are whole "
        f"and hold the same columns; load_dataset({name!r}) in Python says more."
    )


def _message_of(error: Exception) -> str:
    """Return an error's message in a line; `datasets` wraps the one that matters."""
    return in_a_line(error.__cause__ or error)
