"""Faults of the text of a shard, and of the stores inside a store."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from logitstore.records import SequenceText
from tests.kit.page_rules.tools import (
    Case,
    Change,
    about,
    both,
    content,
    edit_spec,
    index_again,
    text,
)


def column(name: str, value: Any) -> Callable[[list[SequenceText]], dict[str, Any]]:
    """Another value in the first line's column."""

    def columns(lines: list[SequenceText]) -> dict[str, Any]:
        if name == "segments":
            return {name: [value, *([s._asdict() for s in line.segments] for line in lines[1:])]}
        return {name: [value, *(getattr(line, name) for line in lines[1:])]}

    return columns


def in_order(*order: int) -> Callable[[list[SequenceText]], list[SequenceText]]:
    return lambda lines: [lines[i] for i in order]


def replaced(*changes: dict[str, Any]) -> Callable[[list[SequenceText]], list[SequenceText]]:
    return lambda lines: [line._replace(**c) for line, c in zip(lines, changes, strict=True)]


def zero_digests(lines: list[SequenceText]) -> dict[str, Any]:
    return {"digest": [bytes(16) for _ in lines]}


def inside(change: Change) -> Change:
    """Put a store into itself, as one of boundaries, and change it."""

    def change_it(store: Path) -> None:
        inner = Path(shutil.copytree(store, store.parent / "inner"))
        student = {"fingerprint": "5" * 64, "files": {}}
        content("rendering", boundaries_of=student)(inner)
        change(inner)
        (store / "boundaries").mkdir()
        inner.rename(store / "boundaries" / ("5" * 16))

    return change_it


NULLS = "lacks a value that every line has"
BOUNDARIES = "a store of boundaries with other content or another plan"
READING: dict[str, dict[str, Case]] = {
    "`rows.parquet`: its schema, row groups, pages, nulls": {
        "pages without checksums": Case(
            text(write_page_checksum=False), "no checksum", "checksum of a page"
        ),
        "pages of version 2": Case(text(data_page_version="2.0"), "of a kind", "kind of a page"),
        "brotli": Case(text(compression="brotli"), "compressed by codec", "compression"),
        "small row groups": Case(text(row_group_size=2), "in groups of 64", "row groups"),
        **{
            f"no {name}": Case(text(columns=column(name, None)), NULLS, "nulls")
            for name in ("part", "status", "supervised_start")
        },
        "no segments": Case(text(columns=column("segments", None)), "no segments", "nulls"),
        "a null segment": Case(text(columns=column("segments", [None])), "no segments", "nulls"),
        "no text": Case(
            text(columns=column("segments", [{"role": None, "text": None, "supervised": True}])),
            NULLS,
            "no nulls",
        ),
    },
    "a line: its digest; of rows outside the shard; not line i of row i": {
        "digest": Case(text(columns=zero_digests), "does not match its digest", "digest of"),
        "a row outside": Case(
            text(replaced({}, {}, {"row": 3})), "is of row 3", "rows of the shard"
        ),
        "a negative row": Case(
            text(replaced({"row": -1}, {}, {})), "is of row -1", "rows of the shard"
        ),
        "row 0 twice": Case(
            text(replaced({}, {"row": 0, "part": 1}, {})), "is of row 0", "line i is of row i"
        ),
    },
    "lines out of the order of their rows": {
        "row 1 first": Case(
            text(in_order(2, 3, 0, 1, 4, 5)), "not in the order", "in the order", golden="parts"
        ),
    },
    BOUNDARIES: {
        "other content": Case(
            inside(content("capture", seed=1)), "records of another store", "rows of the outer one"
        ),
        "no student": Case(
            inside(
                lambda s: edit_spec(s, lambda b: b["content"]["rendering"].pop("boundaries_of"))
            ),
            "records of another store",
            "whose boundaries",
        ),
        "another plan": Case(
            inside(lambda s: edit_spec(s, lambda b: b["plan"].update(dataset_sha256="x"))),
            "records of another store",
            "rows of the outer one",
        ),
    },
}
VERIFYING: dict[str, dict[str, Case]] = {
    "lines out of the order of their rows": {
        "row 1 first": Case(text(in_order(2, 3, 0, 1, 4, 5)), "not in the order", golden="parts"),
    },
    "a row without a line; parts that are not numbered from 0, or overlap": {
        "no line of row 2": Case(
            text(replaced({}, {}, {}, {}, {"row": 1, "part": 2}, {"row": 1, "part": 3})),
            "1 rows have no line",
            golden="parts",
        ),
        "part 1 first": Case(text(replaced({"part": 1}, {}, {})), "part 1 overlaps"),
        "a part of the text of another": Case(
            text(replaced({}, {"supervised_start": 0}, {}, {}, {}, {})),
            "part 1 overlaps",
            golden="parts",
        ),
    },
    "`statuses`, `supervised_bytes` that are not those of the lines": {
        "statuses": Case(
            both(about(lambda a: a.update(statuses={"ok": 3})), index_again), "the statuses of its"
        ),
        "supervised_bytes": Case(
            both(about(lambda a: a.update(supervised_bytes=1)), index_again),
            "supervised bytes",
        ),
    },
    BOUNDARIES: {
        name: Case(case.change, "describes other records")
        for name, case in READING[BOUNDARIES].items()
    },
}
