"""Write a store of real text with a made-up teacher, to measure the student's side of a run.

Text and both tokenizers are real (documents that come with Python, byte-level BPE learned from
them), so tokenising, alignment and the maps between vocabularies are those of a real run. Only the
distributions are not: each record has K entries with 92 % of the mass, of 256 tokens that a row
draws, frequent ones more often than rare ones. How probable they are, and how many different ones
there are, decides what the student's side asks about them.

Shape legend: n = records of a sequence, K = entries.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerFast

from logitstore.format.spec import Plan, StoreSpec
from logitstore.records import Segment, SequenceText
from logitstore.store import LogitStore, open_store
from logitstore.text.tokenizer import ByteTokenizer
from logitstore.writing.digests import tokenizer_digests
from logitstore.writing.encode import RawRecords, encode_records
from logitstore.writing.writer import StoreWriter
from tools.demo.corpus import load_corpus
from tools.demo.models import byte_bpe
from tools.store_sizes import spec_of

K = 64
HEAD_MASS = 0.92
_POOL = 256


def texts(count: int, characters: int) -> list[str]:
    """Return rows of text, each of a quarter of `characters` up to all of them."""
    wanted = count * characters
    corpus = load_corpus(teacher_bytes=wanted, student_bytes=1, heldout_bytes=1).teacher
    pieces = cycle(corpus)
    rng = np.random.default_rng(0)
    rows: list[str] = []
    for size in rng.integers(characters // 4, characters + 1, count).tolist():
        row = ""
        while len(row) < size:
            row += next(pieces)
        rows.append(row[:size])
    return rows


def tokenizers(rows: list[str], teacher: int, student: int) -> list[PreTrainedTokenizerFast]:
    """Train two byte-level BPE tokenizers, each on one half of the rows."""
    return [byte_bpe(rows[::2], teacher), byte_bpe(rows[1::2], student)]


def write_store(folder: Path, teacher: PreTrainedTokenizerFast, rows: list[str]) -> LogitStore:
    """Write the made-up teacher's records of the rows, in shards of 256 rows."""
    saved = folder.with_name(folder.name + "-tokenizer")
    teacher.save_pretrained(saved)
    files = {path.name: path.read_bytes() for path in sorted(saved.iterdir())}
    reader = ByteTokenizer(teacher)
    spec = spec_of(reader.size, "portable", top_k=K)
    spec = replace(
        spec,
        tokenizer={
            "fingerprint": reader.fingerprint,
            "size": reader.size,
            "eos_ids": list(reader.eos_ids),
            "files": tokenizer_digests(files),
        },
    )
    plan = Plan("0" * 64, np.array([*range(0, len(rows), 256), len(rows)]))
    writer = StoreWriter(folder, spec, plan, files, {"teacher": "made up"})
    for index in writer.missing():
        writer.write_shard(index, list(_sequences(spec, reader, rows, *plan.shard_rows(index))))
    writer.seal()
    return open_store(folder)


def _sequences(
    spec: StoreSpec, reader: ByteTokenizer, rows: list[str], first: int, stop: int
) -> Iterator[tuple[SequenceText, Any]]:
    for row in range(first, stop):
        segments = (Segment(rows[row], supervised=True),)
        tokens = reader.encode(segments)
        has = tokens.has_record
        n = int(has.sum())
        raw = RawRecords(
            token_ids=tokens.token_ids[has],
            byte_starts=tokens.byte_starts[has],
            byte_lengths=tokens.byte_lengths[has],
            token_logprob=np.full(n, -2.0, np.float32),
            entropy=np.full(n, 2.0, np.float32),
            **heads(n, spec.vocab_size, np.random.default_rng(row)),
        )
        yield SequenceText(row, 0, tokens.status, segments), encode_records(raw, spec)


def heads(n: int, vocabulary: int, rng: np.random.Generator) -> dict[str, npt.NDArray[Any]]:
    """Make n distributions of K distinct tokens each, most probable first."""
    mass_nK = np.sort(rng.exponential(size=(n, K)) ** 3, 1)[:, ::-1] + 1e-3
    often_V = 1 / (np.arange(vocabulary) + 10)  # learned tokens stand in the order of frequency
    pool = min(_POOL, vocabulary)
    some = rng.choice(vocabulary, pool, replace=False, p=often_V / often_V.sum())
    order_nK = np.argsort(rng.random((n, pool)), 1)[:, :K]
    return {
        "entry_ids": some[order_nK],
        "entry_logprobs": np.log(
            HEAD_MASS * mass_nK / mass_nK.sum(1, keepdims=True), dtype=np.float64
        ).astype(np.float32),
        "entry_count": np.full(n, K),
        "tail_logmass": np.full(n, np.log(1 - HEAD_MASS), np.float32),
    }
