"""A second reader, written from FORMAT.md alone: numpy, decoders of blosc and pcodec, pyarrow.

It imports nothing of ours, is slow and plain, and reads a whole store at once. Section numbers are
those of the page. It checks every MUST that a reader has.
"""

import re
from pathlib import Path

from tests.kit.reader_from_spec.archive import read_archive
from tests.kit.reader_from_spec.description import check_tokenizer, read_description, read_seal
from tests.kit.reader_from_spec.parquet import LINE
from tests.kit.reader_from_spec.records import read_shard
from tests.kit.reader_from_spec.refusing import RefusedError, must, ordinary

__all__ = ["LINE", "RefusedError", "read_archive", "read_boundaries", "read_store"]


def read_store(path):
    """(content, plan, sequences): of every sequence its line and its decoded arrays (section 8)."""
    path = Path(path)
    content, plan, raw = read_description(path)
    lines = read_seal(path, content, plan, raw)
    if lines is not None:
        check_tokenizer(path, content)
    sequences = []
    for number in range(len(plan["boundaries"]) - 1):
        file = path / "shards" / f"{number:05d}.zarr.zip"
        if lines is None and not file.exists():
            continue
        members, digest = read_archive(ordinary(file))
        of_shard = read_shard(members, content, plan, number)
        if lines is not None:
            must(digest == lines[number]["sha256"], "the shard is the one in the index")
            must(len(of_shard) == lines[number]["sequences"], "sequences in the index")
        sequences += of_shard
    return content, plan, sequences


def read_boundaries(path):
    """Section 7, "Boundaries of a student": the stores inside a store, by fingerprint."""
    outer_content, outer_plan, _ = read_description(Path(path))
    found = {}
    for folder in sorted((Path(path) / "boundaries").iterdir()):
        if re.fullmatch("[0-9a-f]{16}", folder.name) and (folder / "store.json").exists():
            content, plan, sequences = read_store(folder)
            student = content["rendering"].pop("boundaries_of", None)
            must(student is not None, "a store in a store says whose boundaries it has")
            must((content, plan) == (outer_content, outer_plan), "it has the rows of the outer one")
            found[student["fingerprint"]] = sequences
    return found
