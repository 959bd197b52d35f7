"""What it costs to get from a store to the student's batches, and how much of a batch is padding.

    python -m tools.bench_data [--json] [--quick]

On a store of real text with a made-up teacher of another tokenizer, 64 entries a record:

* the process's time for each step from a row to a batch, per token of the student: records, text,
  tokenising, alignment, the teacher's arrays, the batch. One after the other, without workers;
* the text of a row alone, in random order, beside how others read the same rows: `datasets` from
  the Arrow copy that it makes, and a row group of the store's own Parquet file by pyarrow;
* bytes that go to the device, over those of the decoded records that they were made of;
* the share of a batch that is padding: rows in their order, packed, or grouped by length;
* the share of a step that a student of 100 million parameters waits for its batch, without workers
  and with two.

Nothing is kept from one epoch to the next: `kept` is the memory that it would take, and it could
save no more than the wait without workers. (`tools.bench_train` has that wait for every loss.)
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import zipfile
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import datasets
import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from distill.alignment.align import align_many
from distill.data.collator import Collator
from distill.data.dataset import StoreDataset
from distill.data.example import Example
from distill.data.packing import Layout, one_a_row, packed
from distill.data.row_order import RowOrder
from distill.training.config import CachedTeacherConfig
from distill.training.trainer import CachedTeacherTrainer
from logitstore.format.rows_parquet import GROUP_LINES, MEMBER
from logitstore.records import TokenRecords
from logitstore.store import LogitStore
from logitstore.text.tokenizer import ByteTokenizer
from tools import train_contenders
from tools.benchmark import goal, is_goal, said, surroundings, table
from tools.text_store import texts, tokenizers, write_store
from tools.train_contenders import Shape

LOSSES = ("uld", "mapped_kl", "alm")
PARTS = ("records", "text", "tokenising", "alignment", "teacher's arrays", "batch")
BATCH = 8


class Sizes(NamedTuple):
    """The sizes: rows and their most characters; `steps` of training, the first not counted."""

    rows: int
    characters: int
    vocabularies: tuple[int, int]
    student: Shape
    repeats: int
    steps: int


FULL = Sizes(512, 1000, (12_000, 8_000), train_contenders.FULL.student, 2, 5)
QUICK = Sizes(40, 200, (400, 300), train_contenders.QUICK.student, 1, 3)


# ---- parts of the way ----


class Clock:
    """A clock of the process's time in each part; time in an inner part counts for that alone."""

    def __init__(self) -> None:
        self.spent_s: dict[str, float] = {}

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function so that its time is added to a part."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            found = function(*args, **kwargs)
            self.spent_s[name] = self.spent_s.get(name, 0.0) + time.process_time() - began
            return found

        return timed


@contextmanager
def timed(data: StoreDataset, clock: Clock) -> Iterator[None]:
    """Put the clock around the functions that a row passes through."""
    with (
        mock.patch.object(data.store, "read_many", clock.around("records", data.store.read_many)),
        mock.patch.object(data.store, "text", clock.around("text", data.store.text)),
        mock.patch.object(data.reader, "read", clock.around("tokenising", data.reader.read)),
        mock.patch("distill.data.dataset.align_many", clock.around("alignment", align_many)),
    ):
        yield


def batches_of(rows: Sequence[int]) -> list[Sequence[int]]:
    return [rows[at : at + BATCH] for at in range(0, len(rows), BATCH)]


def way_of(store: LogitStore, student: ByteTokenizer, loss: str, repeats: int) -> dict[str, Any]:
    """Return each part's microseconds per token, the least of some epochs, and batches' bytes."""
    data, collate = StoreDataset(store, student, [loss]), Collator(student.pad_id, [loss])
    prepare, order = data.__getitems__, batches_of(list(RowOrder(len(data), 0, store.digest)))
    epochs = []
    for _ in range(repeats + 1):  # the first reads the disk and fills caches
        clock = Clock()
        with timed(data, clock):
            examples = [clock.around("all", prepare)(rows) for rows in order]
        batches = [clock.around("batch", collate)(each) for each in examples]
        whole = clock.spent_s.pop("all")
        known = (
            sum(clock.spent_s[part] for part in PARTS if part in clock.spent_s)
            - (clock.spent_s["batch"])
        )
        epochs.append({**clock.spent_s, "teacher's arrays": whole - known})
    tokens = sum(int(batch["tokens"].sum()) for batch in batches)
    spent = {part: min(e[part] for e in epochs[1:]) / tokens * 1e6 for part in PARTS}
    decoded = sum(
        decoded_bytes(store.read_many([data.sequences[i] for i in rows])) for rows in order
    )
    return {
        "us_per_token": spent | {"all": sum(spent.values())},
        "tokens_per_core_second": 1e6 / sum(spent.values()),
        "bytes to the device, of the decoded records": goal(
            sum(map(bytes_of, batches)) / decoded, at_most=1
        ),
        "kept": {"bytes_per_token": sum(kept_bytes(each) for each in examples) / tokens},
    }


def bytes_of(value: Any) -> int:
    """Return the bytes of all tensors in a batch."""
    if isinstance(value, Tensor):
        return value.nbytes
    return sum(map(bytes_of, value.values())) if isinstance(value, dict) else 0


def decoded_bytes(records: Sequence[TokenRecords]) -> int:
    arrays = (getattr(r, each.name) for r in records for each in fields(r))
    return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))


def kept_bytes(examples: Sequence[Example]) -> int:
    """Return the bytes that a cache of prepared rows would take."""
    return sum(
        e.token_ids.nbytes
        + e.is_label.nbytes
        + sum(a.nbytes for arrays in e.teacher.values() for a in arrays.values())
        for e in examples
    )


# ---- text ----


def text_of(store: LogitStore, tokens: int, repeats: int, folder: Path) -> dict[str, Any]:
    """Return microseconds a token to read the text of every row in random order."""
    order = list(RowOrder(len(store), 0, store.digest))
    readers = {"ours": store.text, **_others(store, folder)}
    spent: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(repeats + 1):  # the first fills caches
        for name, read in readers.items():
            began = time.process_time()
            for i in order:
                read(i)
            spent[name].append((time.process_time() - began) / tokens * 1e6)
    least = {name: min(times[1:]) for name, times in spent.items()}
    return {
        "us_per_token": least,
        "time of a row group by pyarrow": goal(least["ours"] / least["pyarrow"], at_most=0.5),
    }


def _others(store: LogitStore, folder: Path) -> dict[str, Callable[[int], Any]]:
    """Read the rows' text as others do, from the store's own files."""
    assert isinstance(store.path, Path)
    files, first = [], [0]
    for shard in sorted((store.path / "shards").iterdir()):
        with zipfile.ZipFile(shard) as archive:
            files.append(folder / f"{shard.name}.parquet")
            files[-1].write_bytes(archive.read(MEMBER))
        first.append(first[-1] + pq.read_metadata(files[-1]).num_rows)
    datasets.disable_progress_bars()
    copied = datasets.Dataset.from_parquet([str(f) for f in files], cache_dir=str(folder / "cache"))
    opened = [pq.ParquetFile(file, page_checksum_verification=True) for file in files]

    def by_group(i: int) -> Any:
        shard = bisect_right(first, i) - 1
        group, place = divmod(i - first[shard], GROUP_LINES)
        table = opened[shard].read_row_group(group, columns=["segments"], use_threads=False)
        return table.slice(place, 1).to_pylist()

    return {"datasets": lambda i: copied[i]["segments"], "pyarrow": by_group}


# ---- padding ----


def padding(data: StoreDataset, lengths: np.ndarray[Any, np.dtype[np.int64]]) -> dict[str, Any]:
    """Return the padded share of an epoch's batches, for each way to make them."""
    plain, grouped = (RowOrder(len(data), 0, "", by) for by in (None, data.records))
    grouped.step_rows = BATCH
    shares = {
        "as they come": padded_share(plain, lengths, one_a_row),
        "packed": padded_share(plain, lengths, packed),
        "grouped by length": padded_share(grouped, lengths, one_a_row),
        "grouped and packed": padded_share(grouped, lengths, packed),
    }
    before = shares["as they come"]
    return {
        "padded_share": shares,
        "of padding, packing leaves": goal(shares["packed"] / before, at_most=0.3),
        "of padding, grouping leaves": goal(shares["grouped by length"] / before, at_most=0.5),
    }


def padded_share(
    order: RowOrder, lengths: np.ndarray[Any, np.dtype[np.int64]], layout: Layout
) -> float:
    shapes = [layout(lengths[rows]).shape for rows in batches_of(list(order))]
    return 1 - float(lengths.sum()) / sum(rows * width for rows, width in shapes)


# ---- waiting ----


def wait_of(
    store: LogitStore, tokenizer: PreTrainedTokenizerFast, sizes: Sizes, workers: int
) -> dict[str, Any]:
    """Measure the wait for batches in a real run, with the two losses that prepare most."""
    with tempfile.TemporaryDirectory() as out:
        args = CachedTeacherConfig(
            output_dir=out,
            store=str(store.path),
            loss="uld,mapped_kl",
            no_self_test=True,  # its teacher has learnt nothing
            max_steps=sizes.steps,
            per_device_train_batch_size=2 * BATCH,  # about the tokens of a step of bench_train
            dataloader_num_workers=workers,
            logging_steps=1,
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        model = train_contenders._llama(sizes.student, tokenizer, 1.0)
        trainer = CachedTeacherTrainer(model, args, store, processing_class=tokenizer)
        trainer.train()
    steps = [each for each in trainer.state.log_history if "store_wait_fraction" in each][1:]
    wait = statistics.median(each["store_wait_fraction"] for each in steps)
    return {
        "parameters": model.num_parameters(),
        "tokens_per_second": statistics.median(each["tokens_per_second"] for each in steps),
        "of a step, spent waiting": goal(wait, at_most=0.01),
    }


# ---- what it comes to ----


def measure(folder: Path, sizes: Sizes) -> dict[str, Any]:
    rows = texts(sizes.rows, sizes.characters)
    teacher, tokenizer = tokenizers(rows, *sizes.vocabularies)
    tokenizer.pad_token = tokenizer.eos_token
    store, student = write_store(folder / "store", teacher, rows), ByteTokenizer(tokenizer)
    data = StoreDataset(store, student)
    lengths = np.array([len(data[i].token_ids) for i in range(len(data))])
    return {
        "rows": len(data),
        "tokens": int(lengths.sum()),
        "losses": {loss: way_of(store, student, loss, sizes.repeats) for loss in LOSSES},
        "text": text_of(store, int(lengths.sum()), sizes.repeats, folder),
        "padding": padding(data, lengths),
        "workers": {str(n): wait_of(store, tokenizer, sizes, n) for n in (0, 2)},
    }


def shown(report: dict[str, Any]) -> str:
    rows = [["CPU us a token", *PARTS, "all"]]
    rows += [
        [loss, *(f"{each['us_per_token'][part]:.2f}" for part in (*PARTS, "all"))]
        for loss, each in report["losses"].items()
    ]
    texts = report["text"]["us_per_token"]
    read = table([["us a token, text", *texts], ["", *(f"{each:.2f}" for each in texts.values())]])
    shares = [f"{share:.3f}" for share in report["padding"]["padded_share"].values()]
    padded = table([["", *report["padding"]["padded_share"]], ["padded share", *shares]])
    figures = [
        f"  {name}: {what}: {said(figure, 'at most')}"
        for part in ("losses", "text", "padding", "workers")
        for name, each in (
            {part: report[part]} if part in ("text", "padding") else report[part]
        ).items()
        for what, figure in each.items()
        if is_goal(figure)
    ]
    return "\n".join([table(rows), "", read, "", padded, "", *figures])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all?")
    args = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        measured = measure(Path(folder), QUICK if args.quick else FULL)
    report = {**surroundings(["numpy", "tokenizers", "torch", "transformers"]), **measured}
    print(json.dumps(report, indent=1) if args.json else shown(report))


if __name__ == "__main__":
    main()
