"""The stores in tests/golden/, from numbers written down here: no generator, no seed.

    python -m tests.golden_stores        writes those that are not there yet; never replaces one

Probabilities are chosen so that no code is near the middle between two, whatever the machine.
"""

import hashlib
import math
from pathlib import Path

import numpy as np

from logitstore.format.encoded import EncodedRecords
from logitstore.format.spec import Plan, StoreSpec
from logitstore.records import Segment, SequenceText
from logitstore.writing.encode import RawRecords, encode_records
from logitstore.writing.writer import StoreWriter
from tests.kit.paths import GOLDEN

TOKENIZER_FILES = {"tokenizer.json": b"{}\n"}
#: (probabilities of the entries, their ids, the token, its probability, entropy)
RECORDS = (
    ((0.5, 0.25, 0.125), (7, 3, 900), 3, 0.25, 1.5),
    ((0.9, 0.05), (1, 2), 40, 0.0001, 0.4),
    ((0.25, 0.25, 0.25, 0.2), (11, 5, 8, 9), 5, 0.25, 1.7),
    ((0.004, 0.003, 0.002), (70, 60, 50), 50, 0.002, 6.5),  # flat: the tail follows the head
    ((1.0,), (0,), 0, 1.0, 0.0),
)
#: Text, and (start, length) of each record's token; a hole in the second, an EOS at each end.
ROWS = (("Grüße 🙂", ((0, 8), (8, 4), (12, 0))), ("a b", ((2, 1), (3, 0))), ("", ()))
VARIANTS = {
    "plain": {},
    "values-only": {"ids": False},
    "temperatures": {"temperatures": [2.0, 0.5]},
    "logit-std": {"logit_std": True},
    "draws": {"draws": 4},
    "parts": {},
    "compact": {"draws": 4, "temperatures": [2.0, 0.5]},
    "gaps": {"draws": 4},
    "no-entries": {"top_k": 0, "max_tail": None, "draws": 4},
}
CODECS = {"compact": {"name": "compact", "layout": 2}, "gaps": {"name": "portable", "layout": 2}}


def spec(variant: str) -> StoreSpec:
    """The settings of a golden store."""
    capture = {"top_k": 4, "max_tail": 0.2, "ids": True, "temperatures": []}
    capture |= {"logit_std": False, "draws": 0} | VARIANTS[variant]
    return StoreSpec(
        teacher={
            "fingerprint": "f" * 64,
            "architecture": "GoldenForCausalLM",
            "dtype": "float32",
            "vocab_size": 1000,
        },
        tokenizer={
            "fingerprint": "7" * 64,
            "size": 1000,
            "eos_ids": [0],
            "files": {n: hashlib.sha256(d).hexdigest() for n, d in TOKENIZER_FILES.items()},
        },
        rendering={"kind": "text", "add_eos": True, "max_length": 16},
        capture=capture,
        codec=CODECS.get(variant, {"name": "portable"})
        | {"records_per_chunk": 2, "entries_per_chunk": 4},
    )


def write(path: Path, variant: str) -> None:
    """One shard of three rows; with parts, each row has two lines."""
    of = spec(variant)
    plan = Plan("d" * 64, (0, len(ROWS)))
    writer = StoreWriter(path, of, plan, TOKENIZER_FILES, {"made_by": "tests/golden_stores.py"})
    writer.write_shard(0, [s for row in range(len(ROWS)) for s in sequences(of, variant, row)])
    writer.seal()


def sequences(
    of: StoreSpec, variant: str, row: int
) -> list[tuple[SequenceText, EncodedRecords | None]]:
    """The lines of a row."""
    text, spans = ROWS[row]
    status = "ok" if text else "empty"
    segments = (Segment(text, True),) if text else ()
    first = SequenceText(row, 0, status, segments), encoded(of, spans)
    if variant != "parts":
        return [first]
    length = len(text.encode())
    messages = '{"messages":[{"content":"…","role":"user"}]}'
    context = Segment("before ", False, "user")
    again = tuple((start + length, n) for start, n in spans)
    second = SequenceText(row, 1, "split", (context, *segments), length, messages)
    return [first, (second, encoded(of, again))]


def raw(of: StoreSpec, spans: tuple[tuple[int, int], ...]) -> RawRecords:
    """Records as a teacher would have them."""
    rows = RECORDS[: len(spans) - 1] + RECORDS[-1:]
    n, k = len(rows), of.top_k
    logprobs, ids = np.full((n, k), -np.inf, np.float32), np.zeros((n, k), np.uint32)
    kept = [(p[:k], names[:k]) for p, names, *_ in rows]
    for i, (p, names) in enumerate(kept):
        logprobs[i, : len(p)] = [math.log(x) for x in p]
        ids[i, : len(p)] = names
    rest = [1 - math.fsum(p) for p, _ in kept]
    steps = np.arange(n, dtype=np.float32)
    has_std = of.has_logit_std
    return RawRecords(
        token_ids=np.array([r[2] for r in rows]),
        byte_starts=np.array([start for start, _ in spans]),
        byte_lengths=np.array([length for _, length in spans]),
        token_logprob=np.array([math.log(r[3]) for r in rows], np.float32),
        entry_logprobs=logprobs,
        entry_ids=ids if of.has_ids else None,
        entry_count=np.array([len(p) for p, _ in kept]),
        tail_logmass=np.array([math.log(x) if x > 1e-9 else -np.inf for x in rest], np.float32),
        entropy=np.array([r[4] for r in rows]),
        lognorm=np.stack([steps / 4, steps / 8], 1) if of.temperatures else None,
        logit_std=steps + 1 if has_std else None,
        lognorm_std=steps / 2 if has_std else None,
        draw_count=np.arange(n) % 3 if of.draws else None,
        sample_ids=np.tile(np.array([100, 200, 300, 400]), (n, 1)) if of.draws else None,
        sample_counts=np.tile(np.array([1, 2, 3, 4]), (n, 1)) if of.draws else None,
    )


def encoded(of: StoreSpec, spans: tuple[tuple[int, int], ...]) -> EncodedRecords | None:
    return encode_records(raw(of, spans), of) if spans else None


if __name__ == "__main__":
    for name in VARIANTS:
        folder = GOLDEN / f"v1-{name}"
        if not folder.exists():
            write(folder, name)
            folder.with_name(f"{folder.name}.journal.jsonl").unlink()
            print(folder)
