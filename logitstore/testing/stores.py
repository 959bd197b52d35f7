"""Write small stores of random records, with everything that a captured one has, without torch.

    stores.write(tmp_path / "store", stores.spec(top_k=4, temperatures=(2.0,)))
    stores.write(tmp_path / "unfinished", shards=(0, 2), seal=False)
    assert stores.tree(tmp_path / "store") == before

Every fifth row has no text, so every store has lines without records.
"""

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
    """Make the spec of a store.

    Args:
        vocab_size: The width of the teacher's logits.
        top_k: Entries of a record; 0: none.
        max_tail: Keep fewer entries where they leave no more than this; None: always `top_k`.
        ids: Whether entries have ids; without, they are values only.
        temperatures: Whose log-normalisers are kept too.
        logit_std: Whether the standard deviations of logits are kept too.
        draws: Draws from beyond the entries, at most, of each record.
        chunks: Records and entries in an inner chunk of an array.
        missing: Fields that an imported store's source did not have.
        codec: `portable` or `compact`.
        layout: In which form draws are stored: 1 or 2.
    """
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


def random_logits(store_spec: StoreSpec, n: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Draw logits, (n, V), whose distributions go from flat to peaked."""
    logits: np.ndarray[Any, Any] = rng.normal(size=(n, store_spec.vocab_size))
    logits *= rng.choice([0.5, 2.0, 8.0], size=(n, 1))
    return logits


def raw_records(
    store_spec: StoreSpec, pieces: list[str], rng: np.random.Generator, start: int = 0
) -> RawRecords:
    """Make the records of a text that is cut into pieces, and of the EOS behind it."""
    lengths = np.array([len(p.encode()) for p in pieces] + [0])
    n, k = len(lengths), store_spec.top_k
    logits = random_logits(store_spec, n, rng)
    logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    order = np.argsort(-logp, axis=1)
    entries = np.take_along_axis(logp, order[:, :k], 1)
    count = rng.integers(1, k + 1, n) if store_spec.max_tail is not None else np.full(n, k)
    outside = np.arange(store_spec.vocab_size) >= count[:, None]
    rest = (np.exp(np.take_along_axis(logp, order, 1)) * outside).sum(1)
    tokens = order[np.arange(n), rng.integers(0, 20, n)]
    tokens[-1] = 0
    token_logprob, entropy = logp[np.arange(n), tokens], -(np.exp(logp) * logp).sum(1)
    if "token_logprob" in store_spec.missing:
        token_logprob[::2] = -np.inf
    if "tail_logmass" in store_spec.missing:  # what is left adds up to one
        entries -= np.log(1 - rest)[:, None]
        rest = np.zeros(n)
    with np.errstate(divide="ignore"):
        tail = np.log(rest)
    return RawRecords(
        token_ids=tokens,
        byte_starts=start + np.cumsum(lengths) - lengths,
        byte_lengths=lengths,
        token_logprob=token_logprob,
        entry_logprobs=entries.astype(np.float32),
        entry_ids=order[:, :k] if store_spec.has_ids else None,
        entry_count=count,
        tail_logmass=tail.astype(np.float32),
        entropy=np.zeros(n) if "entropy" in store_spec.missing else entropy,
        **_optional(store_spec, logits, logp, rng),
    )


def _optional(
    store_spec: StoreSpec,
    logits: np.ndarray[Any, Any],
    logp: np.ndarray[Any, Any],
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Make the arrays that only some stores have."""
    made: dict[str, Any] = {}
    if store_spec.temperatures:
        norms = [np.log(np.exp(logp / t).sum(1)) for t in store_spec.temperatures]
        made["lognorm"] = np.stack(norms, 1)
    if store_spec.has_logit_std:
        made |= {"logit_std": logits.std(1), "lognorm_std": logits.mean(1)}
    if draws := store_spec.draws:
        size = (len(logits), draws)
        made |= {
            "draw_count": rng.integers(0, draws + 1, len(logits)),
            "sample_ids": np.sort(rng.integers(0, store_spec.vocab_size, size), 1),
            "sample_counts": rng.integers(1, 9, size),
        }
    return made


def row_pieces(row: int) -> list[str]:
    """Return the text of a row in pieces; every fifth row has none."""
    rng = np.random.default_rng(row)
    return [] if row % 5 == 4 else [str(w) for w in rng.choice(WORDS, int(rng.integers(1, 9)))]


def row_sequences(
    store_spec: StoreSpec, row: int, parts: int = 1
) -> list[tuple[SequenceText, EncodedRecords | None]]:
    """Make the lines of a row, and their records."""
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
        raw = raw_records(store_spec, pieces, rng, start) if pieces else None
        sequences.append((line, None if raw is None else encode_records(raw, store_spec)))
        start += len(text.encode())
    return sequences


def write(
    path: Path | str,
    store_spec: StoreSpec | None = None,
    boundaries: tuple[int, ...] = (0, 3, 7, 12),
    *,
    shards: tuple[int, ...] | None = None,
    seal: bool = True,
    parts: int = 1,
    fs: Fs = OS_FS,
) -> StoreSpec:
    """Write a store, or some of its shards; the same arguments give the same bytes.

    Args:
        path: Of a folder or a bucket.
        store_spec: What the store holds; None: `spec()`.
        boundaries: The first row of every shard, then the number of rows.
        shards: Which shards to write; None: all that are missing.
        seal: Whether to finish the store.
        parts: Lines of a row; with several, each has context and messages.
        fs: The file operations, for tests of a disk that fails.

    Returns:
        The spec of the store.
    """
    store_spec = store_spec or spec()
    plan = Plan("d" * 64, np.array(boundaries))
    writer = StoreWriter(path, store_spec, plan, TOKENIZER_FILES, {"tokens_per_batch": 64}, fs=fs)
    for index in shards if shards is not None else writer.missing():
        rows = range(*plan.shard_rows(index))
        sequences = [s for row in rows for s in row_sequences(store_spec, row, parts)]
        writer.write_shard(index, sequences)
    if seal:
        writer.seal()
    return store_spec


def tree(path: Path) -> dict[str, bytes]:
    """Return the bytes of every file below a folder, by relative name."""
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}
