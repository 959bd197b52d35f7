"""How often the label is right that a teacher of another tokenizer asks for, on real vocabularies.

    python -m tools.bench_labels [--json] [--quick] [--maps events,p_kl]

For every ordered pair of eight real tokenizers and four kinds of text (`tools.label_texts`): a
teacher that knows the text is sent through each kind of map, and what it asks the student for is
compared with what the student's tokenizer writes there (`tools.label_counts`), less what training
leaves out of such a map's target: tokens that the student would have cut elsewhere. Maps that learn
have read the other half of the texts, of all kinds, as a store's own text would let them.

Goals, for each pair and kind of text: events right for at least 0.985 of the labels, numerals and
white space for 0.95 each, first tokens of a turn for 0.99; and total variation of at most 0.03, of
`events` and of `counted`. The page has the worst pair of each kind.

Tokenizers and texts come from package indexes (`tools.real_parts`); none of them is in this
repository.
"""

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np

from distill.alignment.cuts import Cuts
from distill.alignment.make_map import LEARNED, Seen, make_map
from distill.losses.maps import OURS
from logitstore.models.loading import load_tokenizer
from logitstore.text.tokenizer import ByteTokenizer
from tools.benchmark import goal, is_goal, surroundings, table
from tools.label_counts import FIRST, MARKUP, Counted, Side, counted, judge, rows, side
from tools.label_texts import KINDS, texts
from tools.plain_tokens import PlainTokenizer
from tools.real_parts import TOKENIZERS, tokenizer

MAPS = ("prefix", "counted", "events")
QUICK_PAIR, QUICK_BYTES = ("gpt2", "llama2"), 20_000
#: Goals of a map: the figure, whether it is to be at least or at most, and its size.
GOALS = {
    "events": (
        ("right", "at_least", 0.985),
        ("total variation", "at_most", 0.03),
        ("numerals", "at_least", 0.95),
        ("white space", "at_least", 0.95),
        (FIRST, "at_least", 0.99),
    ),
    "counted": (("total variation", "at_most", 0.03),),
}
#: Figures of a map that are shown of every pair, for each kind of text.
SHOWN = ("right", "total variation", "bits of events")
_FEWEST = 50  # labels of a sort, below which its share says nothing

Figures = dict[str, Any]


class Reader(NamedTuple):
    """A tokenizer, and how it reads the texts: those to learn from, and by kind those to judge."""

    tokenizer: ByteTokenizer
    learnt: Side
    judged: dict[str, Side]


def readers(names: Sequence[str], *, quick: bool) -> dict[str, Reader]:
    """Load tokenizers, and read all texts with each."""
    sizes = {"learnt": QUICK_BYTES, "judged": QUICK_BYTES} if quick else {}
    halves = {kind: texts(kind, **sizes) for kind in KINDS}
    judged = {kind: rows(half.judged, seed=1) for kind, half in halves.items()}
    learnt = [row for half in halves.values() for row in rows(half.learnt, seed=2)]
    found = {}
    for name in names:
        loaded = load_tokenizer(tokenizer(name))
        plain = PlainTokenizer(loaded, _ends(name, loaded))
        by_kind = {kind: side(name, plain, chosen) for kind, chosen in judged.items()}
        found[name] = Reader(ByteTokenizer(loaded), side(name, plain, learnt), by_kind)
        _say(f"{name}: {sum(map(len, found[name].learnt.labels)):,} labels to learn from")
    return found


def _ends(name: str, loaded: Any) -> list[int]:
    marks = [MARKUP[name][2].strip()] if name in MARKUP else []
    return [loaded.eos_token_id, *(loaded.convert_tokens_to_ids(mark) for mark in marks)]


def seen(pairs: Counted) -> Seen:
    """Count the pairs at shared starts, as a store's own text gives them."""
    at = pairs.written == 0
    keys = np.stack([pairs.space[at], pairs.teacher[at], pairs.student[at]])
    unique, count = np.unique(keys, axis=1, return_counts=True)
    return Seen(unique[0], unique[1], unique[2], count)


def measure(teacher: Reader, student: Reader, maps: Sequence[str]) -> dict[str, dict[str, Figures]]:
    """Judge every map of a pair on every kind of text: {map: {kind: figures}}."""
    learnt = seen(counted(teacher.learnt, student.learnt))
    pairs = {kind: counted(teacher.judged[kind], student.judged[kind]) for kind in KINDS}
    found = {}
    end = student.tokenizer.eos_token_id
    assert end is not None, "each of these has an end"
    written = [each or b"" for each in teacher.tokenizer.token_bytes]
    cuts = Cuts(student.tokenizer, written)
    for name in maps:
        read = learnt if name in LEARNED else None
        made = make_map(name, teacher.tokenizer, student.tokenizer, read)
        made = made.with_ends(list(teacher.tokenizer.eos_ids), end)
        fits = cuts.fits if name in OURS else None
        found[name] = {kind: judge(made, each, fits) for kind, each in pairs.items()}
    return found


def goals(found: Mapping[str, Mapping[str, Mapping[str, Figures]]]) -> dict[str, Any]:
    """Compare the worst pair of each map and kind of text with the goal; say how many miss it."""
    made = {}
    for name, wanted in GOALS.items():
        for figure, sense, size in wanted:
            for kind in KINDS:
                each = {
                    pair: maps[name][kind]
                    for pair, maps in found.items()
                    if name in maps and _is_known(maps[name][kind], figure)
                }
                if not each:
                    continue
                ordered = sorted(each, key=lambda pair: each[pair][figure])
                worst = ordered[0] if sense == "at_least" else ordered[-1]
                met = [goal(each[pair][figure], **{sense: size})["met"] for pair in each]
                about = f"{name}: {figure}, {kind}, worst of {len(each)} pairs ({worst}"
                about += ")" if all(met) else f"; {met.count(False)} miss it)"
                made[about] = goal(each[worst][figure], **{sense: size})
    return made


def _is_known(figures: Figures, figure: str) -> bool:
    labels = figures["labels"].get(figure)
    return figures[figure] is not None and (labels is None or labels >= _FEWEST)


def report_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page shows: goals, and for each pair a line a map."""
    pairs: dict[str, dict[str, str]] = {}
    for pair, maps in found.items():
        some = next(iter(maps.values()))
        pairs[pair] = {"paired; between": _lines(some, ("paired", "between"))}
        for name, by_kind in maps.items():
            pairs[pair][f"{name}: {'; '.join(SHOWN)}"] = _lines(by_kind, SHOWN)
    return {"goals": goals(found), "kinds": ", ".join(KINDS), "pairs": pairs}


def _lines(by_kind: Mapping[str, Figures], figures: Sequence[str]) -> str:
    return "; ".join(_line(by_kind, figure) for figure in figures)


def _line(by_kind: Mapping[str, Figures], figure: str) -> str:
    return " ".join(_shown(by_kind[kind][figure]) for kind in KINDS)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def matrix(found: Mapping[str, Any], name: str, figure: str, kind: str) -> str:
    """Lay out one figure of one map, teachers down and students across."""
    names = list(dict.fromkeys(each for pair in found for each in pair.split(" -> ")))
    lines = [[f"{name}: {figure}, {kind}", *names]]
    for teacher in names:
        cells = [found.get(f"{teacher} -> {student}") for student in names]
        shown = ["-" if cell is None else _shown(cell[name][kind][figure]) for cell in cells]
        lines.append([teacher, *shown])
    return table(lines)


def shown(found: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """Format all figures for people: a matrix each, then the goals."""
    maps = next(iter(found.values()))
    parts = [matrix(found, next(iter(maps)), "paired", kind) for kind in KINDS]
    for figure in SHOWN:
        parts += [matrix(found, name, figure, kind) for name in maps for kind in KINDS]
    lines = [["goal", "worst", "target", ""]]
    for about, each in report["goals"].items():
        assert is_goal(each)
        mark = "" if each["met"] else "MISSED"
        lines.append([about, f"{each['value']:.3f}", f"{each['target']:g}", mark])
    return "\n\n".join([*parts, table(lines)])


#: What was read, for the processes that are forked from this one.
_known: dict[str, Reader] = {}


def _measured(names: tuple[str, str, Sequence[str]]) -> tuple[str, dict[str, dict[str, Figures]]]:
    teacher, student, maps = names
    return f"{teacher} -> {student}", measure(_known[teacher], _known[student], maps)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument("--quick", action="store_true", help="one pair: does it run at all?")
    parser.add_argument("--maps", default=",".join(MAPS), help="kinds of maps to judge")
    parser.add_argument("--all", action="store_true", help="with --json: every figure there is")
    parser.add_argument("--tokenizers", default=",".join(TOKENIZERS), help="names, with commas")
    args = parser.parse_args()
    names = QUICK_PAIR if args.quick else args.tokenizers.split(",")
    _known.update(readers(names, quick=args.quick))
    pairs = [(*pair, tuple(args.maps.split(","))) for pair in permutations(names, 2)]
    found = {}
    # Forked, so that all of them see what was read; a process a core.
    with multiprocessing.get_context("fork").Pool(len(os.sched_getaffinity(0))) as pool:
        for pair, measured in pool.imap(_measured, pairs):
            found[pair] = measured
            _say(pair)
    report = report_of(found) | ({"found": found} if args.all else {})
    report = surroundings(["numpy", "tokenizers", "transformers"]) | report
    print(json.dumps(report, indent=1) if args.json else shown(found, report))


if __name__ == "__main__":
    main()
