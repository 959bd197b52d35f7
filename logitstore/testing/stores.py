"""Small stores made of random numbers, with everything that a real one has."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from logitstore.format.encoded import EncodedRecords
from logitstore.format.spec import Plan, StoreSpec
from logitstore.records import Segment, SequenceText
from logitstore.storage.commit import OS_FS, Fs
from logitstore.writing.encode import RawRecords, encode_records
from logitstore.writing.writer import StoreWriter

TOKENIZER_FILES = {"tokenizer.json": b'{"model": {}}', "special.txt": b"<eos>"}
WORDS = ("ein ", "Größe ", "学生", "🙂", "and ", "the ", "e\u0301")


def spec(
    vocab_size: int = 500,
    top_k: int = 6,
    *,
    max_tail: float | None = None,
    ids: bool = True,
    temperatures: tuple[float, ...] = (),
    logit_std: bool = False,
    draws: int = 0,
    chunks: tuple[int, int] = (2048, 32768),
    missing: tuple[str, ...] = (),
    codec: str = "portable",
    layout: int = 2,
) -> StoreSpec:
    """A spec with the given settings."""
    return StoreSpec(
        teacher={
            "fingerprint": "f" * 64,
            "architecture": "TestForCausalLM",
            "dtype": "float32",
            "vocab_size": vocab_size,
        },
        tokenizer={
            "fingerprint": "7" * 64,
            "size": vocab_size,
            "eos_ids": [0],
            "files": {n: hashlib.sha256(d).hexdigest() for n, d in sorted(TOKENIZER_FILES.items())},
        },
        rendering={"kind": "text", "add_eos": True, "max_length": 512},
        capture={
            "top_k": top_k,
            "max_tail": max_tail,
            "ids": ids,
            "temperatures": list(temperatures),
            "logit_std": logit_std,
            "draws": draws,
            **({"missing": list(missing)} if missing else {}),
        },
        codec={
            "name": codec,
            **({"layout": layout} if layout > 1 else {}),
            "records_per_chunk": chunks[0],
            "entries_per_chunk": chunks[1],
        },
    )


def random_logits(of: StoreSpec, n: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """(n, V) from flat to peaked."""
    return rng.normal(size=(n, of.vocab_size)) * rng.choice([0.5, 2.0, 8.0], size=(n, 1))


def raw_records(
    of: StoreSpec, pieces: list[str], rng: np.random.Generator, start: int = 0
) -> RawRecords:
    """Records of a text cut into pieces, then an EOS; distributions from flat to peaked."""
    lengths = np.array([len(p.encode()) for p in pieces] + [0])
    n, k = len(lengths), of.top_k
    logits = random_logits(of, n, rng)
    logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    order = np.argsort(-logp, axis=1)
    entries = np.take_along_axis(logp, order[:, :k], 1)
    count = rng.integers(1, k + 1, n) if of.max_tail is not None else np.full(n, k)
    outside = np.arange(of.vocab_size) >= count[:, None]
    rest = (np.exp(np.take_along_axis(logp, order, 1)) * outside).sum(1)
    tokens = order[np.arange(n), rng.integers(0, 20, n)]
    tokens[-1] = 0
    token_logprob, entropy = logp[np.arange(n), tokens], -(np.exp(logp) * logp).sum(1)
    if "token_logprob" in of.missing:
        token_logprob[::2] = -np.inf
    with np.errstate(divide="ignore"):
        tail = np.log(rest)
    optional: dict[str, Any] = {}
    if of.temperatures:
        optional["lognorm"] = np.stack(
            [np.log(np.exp(logp / t).sum(1)) for t in of.temperatures], 1
        )
    if of.has_logit_std:
        optional |= {"logit_std": logits.std(1), "lognorm_std": logits.mean(1)}
    if of.draws:
        optional |= {
            "draw_count": rng.integers(0, of.draws + 1, n),
            "sample_ids": np.sort(rng.integers(0, of.vocab_size, (n, of.draws)), 1),
            "sample_counts": rng.integers(1, 9, (n, of.draws)),
        }
    return RawRecords(
        token_ids=tokens,
        byte_starts=start + np.cumsum(lengths) - lengths,
        byte_lengths=lengths,
        token_logprob=token_logprob,
        entry_logprobs=entries.astype(np.float32),
        entry_ids=order[:, :k] if of.has_ids else None,
        entry_count=count,
        tail_logmass=tail.astype(np.float32),
        entropy=np.zeros(n) if "entropy" in of.missing else entropy,
        **optional,
    )


def row_pieces(row: int) -> list[str]:
    """The text of a row; every fifth has none."""
    rng = np.random.default_rng(row)
    return [] if row % 5 == 4 else [str(w) for w in rng.choice(WORDS, int(rng.integers(1, 9)))]


def row_sequences(
    of: StoreSpec, row: int, parts: int = 1
) -> list[tuple[SequenceText, EncodedRecords | None]]:
    """The lines of a row and their records."""
    pieces, sequences, start = row_pieces(row), [], 0
    for part in range(parts):
        text = "".join(pieces)
        segments = (Segment(text, True),) if pieces else ()
        if parts > 1:
            segments = (Segment("before ", False, "user"), *segments)
        status = "ok" if pieces else "empty"
        messages = None if parts == 1 else '{"messages":[]}'
        line = SequenceText(row, part, status, segments, start, messages)
        rng = np.random.default_rng(1000 + row + part)
        encoded = encode_records(raw_records(of, pieces, rng, start), of) if pieces else None
        sequences.append((line, encoded))
        start += len(text.encode())
    return sequences


def write(
    path: Path | str,
    of: StoreSpec | None = None,
    boundaries: tuple[int, ...] = (0, 3, 7, 12),
    *,
    shards: tuple[int, ...] | None = None,
    seal: bool = True,
    parts: int = 1,
    fs: Fs = OS_FS,
) -> StoreSpec:
    """Write a store, or some of its shards; the same arguments give the same bytes.

    With several `parts`, every row has as many lines, each with context and messages.
    """
    of = of or spec()
    plan = Plan("d" * 64, boundaries)
    writer = StoreWriter(path, of, plan, TOKENIZER_FILES, {"tokens_per_batch": 64}, fs=fs)
    for index in shards if shards is not None else writer.missing():
        rows = range(*plan.shard_rows(index))
        writer.write_shard(index, [s for row in rows for s in row_sequences(of, row, parts)])
    if seal:
        writer.seal()
    return of


def tree(path: Path) -> dict[str, bytes]:
    """Every file below a folder, by relative name."""
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}
