"""Where a label begins inside one of the teacher's tokens, can its record be believed?

    python -m tools.between_mass STORE STUDENT [--map events] [--every 8]

Such a label is compared with those of the record's entries that begin with the bytes which the
student has written already, divided by their own mass (`distill/alignment/realised.py`). Of little
mass most may lie in the tail, and so the question is from which mass on the answer is right. If it
is, then on average the surprise of the teacher's own token, given these bytes, is the entropy of
the entries that are left. Both are in the table for each class of mass, in nats a label, and what a
threshold at its lower edge would leave of the labels between shared starts.
"""

import argparse
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from distill.alignment.beginnings import Beginnings
from distill.alignment.realised import labels_between, possible
from distill.alignment.runs import runs
from distill.data.dataset import StoreDataset
from logitstore import open_store
from logitstore.text.tokenizer import ByteTokenizer
from tools.benchmark import table

EDGES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.9, 1.0)
F64 = npt.NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store")
    parser.add_argument("student", help="folder with its tokenizer")
    parser.add_argument("--map", default="events")
    parser.add_argument("--every", type=int, default=8, help="read every so manieth sequence")
    args = parser.parse_args()
    data = StoreDataset(
        open_store(args.store), ByteTokenizer.from_folder(args.student), ["mapped_kl"], map=args.map
    )
    found = np.concatenate(list(_labels(data, args.map, args.every)), 1)
    print(table(_rows(found)))


def _labels(data: StoreDataset, kind: str, every: int) -> Iterator[F64]:
    """Yield (4, P) mass, tail, surprise and entropy of labels; NaN where nothing is known."""
    made = data.map_of(kind)
    order = Beginnings([written or b"" for written in data.teacher.token_bytes], data.teacher.size)
    for index in range(0, len(data), every):
        asked = data.asked(index)
        if asked is None:
            continue
        records = asked.records
        between = labels_between(asked.teacher, asked.student, records, made, order)
        record = between.pairs[:, 0]
        kept = possible(records, record, between.written, made, order).is_kept
        stop = np.cumsum(records.entry_count)[record]
        pair, place = runs(stop - records.entry_count[record], stop)
        pair, place = pair[kept], place[kept]
        with np.errstate(divide="ignore", invalid="ignore"):
            logprobs = records.entry_logprobs[place] - np.log(between.mass)[pair]
            own = records.token_logprob[record] - np.log(between.mass)
        entropy = np.bincount(pair, -np.exp(logprobs) * logprobs, len(record))
        is_known = between.mass > 0
        tail = np.exp(records.tail_logmass[record].astype(np.float64))
        said = (np.where(is_known, each, np.nan) for each in (-own, entropy))
        yield np.stack([between.mass, tail, *said])


def _rows(found: F64) -> list[list[str]]:
    mass, tail, surprise, entropy = found
    head = ["mass", "labels", "at least", "tail / mass", "surprise", "entropy", "too much"]
    rows = [["none", f"{np.mean(mass == 0):.1%}", "", "", "", "", ""]]
    for low, high in pairwise(EDGES):
        of = (mass > low) & (mass <= high)
        if not of.any():
            continue
        error = (surprise - entropy)[of]
        rows.append([
            f"{low:g} to {high:g}",
            f"{of.mean():.1%}",
            f"{np.mean(mass > low):.1%}",
            f"{tail[of].sum() / mass[of].sum():.3f}",
            f"{surprise[of].mean():.2f}",
            f"{entropy[of].mean():.2f}",
            f"{error.mean():+.2f} ± {2 * error.std() / np.sqrt(of.sum()):.2f}",
        ])  # fmt: skip
    return [head, *rows]


if __name__ == "__main__":
    main()
