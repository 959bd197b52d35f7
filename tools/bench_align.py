"""What alignment and the vocabulary map cost, compared with tokenising and loading tokenizers.

    python -m tools.bench_align [--json] [--quick]

* two tokenisations of one text, against the plain loop with two pointers that the tests hold it to,
  and against tokenising that text: by length, in batches of sixteen, as training aligns them; and
  one alone, which pays for numpy's calls by itself.
* maps from 150,000 tokens to 128,000: `prefix`, against loading the two tokenizers; and those that
  ask the student's tokenizer to write millions of strings, on the clock, with all cores.

The tokenizers are byte-level BPE with random merges: the sizes of real ones, without a download.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from distill.alignment.align import Spans, align, align_many
from distill.alignment.make_map import make_map
from logitstore.records import Segment
from logitstore.text.tokenizer import ByteTokenizer
from tools.benchmark import goal, said, surroundings, table
from tools.plain_alignment import plain_align

LENGTHS = (512, 4_096, 32_768)
SIZES = (150_000, 128_000)
BATCH = 16
#: Kinds of maps that are made of what the student writes, and the seconds that one may take.
OF_WRITING, MAP_S = ("canonical", "counted", "events"), 10


def plain_loop(teacher: Spans, student: Spans) -> tuple[list[list[int]], ...]:
    """Run the loop that the tests hold `align` to, from the same arrays."""
    columns = ("starts", "lengths", "is_eos", "heads", "tails")
    t, s = (
        list(zip(*(getattr(side, name).tolist() for name in columns), strict=True))
        for side in (teacher, student)
    )
    return plain_align(t, s)


def merged_at_random(size: int, seed: int) -> Any:
    """Make a byte-level BPE tokenizer with random merges, no token longer than 12 bytes."""
    rng = np.random.default_rng(seed)
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    known, merges = set(tokens), []
    while len(tokens) < size:
        lefts, rights = rng.integers(len(tokens), size=(2, 4096))
        for a, b in zip(lefts.tolist(), rights.tolist(), strict=True):
            merged = tokens[a] + tokens[b]
            if len(merged) <= 12 and merged not in known and len(tokens) < size:
                known.add(merged)
                tokens.append(merged)
                merges.append((tokens[a], tokens[b]))
    model = models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made_fast: Any = PreTrainedTokenizerFast
    return made_fast(tokenizer_object=made, eos_token=tokens[0])


def median_s(run: Callable[[], Any], repeats: int) -> float:
    """Return the median of the process's CPU time, after one run to warm up."""
    run()
    spent = []
    for _ in range(repeats):
        began = time.process_time()
        run()
        spent.append(time.process_time() - began)
    return statistics.median(spent)


def text_of(tokens: int) -> str:
    """Make a text of random words that is long enough for either tokenizer's tokens."""
    rng = np.random.default_rng(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ("".join(rng.choice(list(letters), rng.integers(1, 10))) for _ in range(tokens))
    return " ".join(words)


def spans_of(tokenizer: ByteTokenizer, text: str) -> Spans:
    found = tokenizer.encode([Segment(text, supervised=True)])
    return Spans(found.byte_starts, found.byte_lengths, found.is_eos)


def measure_align(
    teacher: ByteTokenizer, student: ByteTokenizer, length: int, repeats: int
) -> dict[str, Any]:
    text = text_of(length)
    whole = [spans_of(each, text) for each in (teacher, student)]
    t, s = (Spans(x.starts[:length], x.lengths[:length], x.is_eos[:length]) for x in whole)
    found, plain = align(t, s), plain_loop(t, s)
    for ours, theirs in zip(found, plain, strict=True):
        assert ours.tolist() == theirs, "the loop finds the same"
    sides = [(t, s)] * BATCH
    ours_s = median_s(lambda: align_many(sides), repeats) / BATCH
    alone_s = median_s(lambda: align(t, s), repeats * 5)
    loop_s = median_s(lambda: plain_loop(t, s), repeats)
    tokens = len(whole[1].starts)
    tokenising_s = median_s(lambda: student.encode([Segment(text, supervised=True)]), repeats)
    return {
        "tokens": length,
        "align_s": ours_s,
        "alone_s": alone_s,
        "loop_s": loop_s,
        "times faster than the loop": goal(loop_s / ours_s, at_least=20),
        "of tokenising, per token": goal(ours_s / length / (tokenising_s / tokens), at_most=1),
    }


def measure_map(folders: list[Path], repeats: int) -> dict[str, Any]:
    def load() -> None:
        for folder in folders:
            AutoTokenizer.from_pretrained(folder)

    teacher, student = (ByteTokenizer(AutoTokenizer.from_pretrained(f)) for f in folders)
    _ = teacher.token_bytes, student.token_bytes
    map_s, load_s = (
        median_s(lambda: make_map("prefix", teacher, student), repeats),
        median_s(load, repeats),
    )
    spent_s = {}
    for kind in OF_WRITING:
        began = time.perf_counter()
        sources = make_map(kind, teacher, student).sources
        spent_s[kind] = goal(time.perf_counter() - began, at_most=MAP_S)
    return {
        "sizes": [teacher.size, student.size],
        "sources": sources,
        "seconds": spent_s,
        "map_s": map_s,
        "load_s": load_s,
        "of loading the tokenizers": goal(map_s / load_s, at_most=1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all?")
    args = parser.parse_args()
    sizes, lengths, repeats = ((600, 500), (64,), 1) if args.quick else (SIZES, LENGTHS, 5)
    report: dict[str, Any] = surroundings(["numpy", "tokenizers", "transformers"])
    with tempfile.TemporaryDirectory() as folder:
        folders = [Path(folder, str(size)) for size in sizes]
        for seed, (size, place) in enumerate(zip(sizes, folders, strict=True)):
            merged_at_random(size, seed).save_pretrained(place)
        teacher, student = (ByteTokenizer(AutoTokenizer.from_pretrained(f)) for f in folders)
        report["align"] = [measure_align(teacher, student, n, repeats) for n in lengths]
        report["map"] = measure_map(folders, 1 if args.quick else 3)
    print(json.dumps(report, indent=1) if args.json else shown(report))


def shown(report: dict[str, Any]) -> str:
    rows = [["tokens a side", "align ms", "one alone", "loop ms", "faster", "of tokenising"]]
    rows += [
        [
            f"{each['tokens']:,}",
            f"{each['align_s'] * 1e3:.2f}",
            f"{each['alone_s'] * 1e3:.2f}",
            f"{each['loop_s'] * 1e3:.2f}",
            said(each["times faster than the loop"], "at least"),
            said(each["of tokenising, per token"], "at most"),
        ]
        for each in report["align"]
    ]
    made = report["map"]
    others = "\n".join(
        f"  {kind}: {said(each, 'at most')} s" for kind, each in made["seconds"].items()
    )
    return (
        f"{table(rows)}\n\nmap of {made['sizes'][0]:,} to {made['sizes'][1]:,} tokens: "
        f"{made['map_s']:.2f} s; of loading both tokenizers, {made['load_s']:.2f} s: "
        f"{said(made['of loading the tokenizers'], 'at most')}\n"
        f"maps of {made['sources']:,} sources to what the student writes:\n{others}"
    )


if __name__ == "__main__":
    main()
