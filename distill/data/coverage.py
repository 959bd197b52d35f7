"""The share of a store's teacher that a student can follow, and the loss recommended for it.

Shares of the student's labels, the supervised tokens that some position predicts:

    shared starts   labels at whose start a token of the teacher starts too: both predict what
                    follows the same bytes
    strict          shared starts whose two tokens also end together
    confirmed       shared starts where the token of the teacher's text is mapped to the student's
                    label; elsewhere the two tokenizers cut the same text in other places, and a
                    teacher that is right asks for a token that does not come

Shares of the mass of the teacher's entries at shared starts:

    shared vocabulary   the mass on tokens that the student has byte for byte
    mapped              the mass on tokens whose beginning is some student token

The tail has no tokens, so its sizes are listed separately.

Numerals and white space are also counted separately: tokenizers differ most there, and an average
over all text hides it.
"""

import json
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from distill.alignment.align import align
from distill.alignment.make_map import make_map
from distill.data.dataset import StoreDataset
from distill.data.targets import student_spans, teacher_spans
from distill.losses import all_losses, find, option_values
from distill.losses.loss import LOW_SHARE
from distill.losses.requirements import teacher_name
from logitstore import open_store
from logitstore.models.loading import load_tokenizer
from logitstore.records import SequenceText, TokenRecords
from logitstore.text.chat_template import ChatTemplate
from logitstore.text.tokenizer import ByteTokenizer

#: Number of sequences that are read before training, for the warning.
SAMPLE = 32
#: Upper edges of the bins of tail mass; the last is 1.
TAIL_EDGES = (0.001, 0.01, 0.05, 0.1, 0.2, 0.5, 1.0)
KINDS = ("all", "numerals", "white space")
#: Columns of the table: heading and width.
COLUMNS = {
    "shared_starts": ("shared starts", 15),
    "strict": ("strict", 9),
    "shared_mass": ("shared vocabulary", 19),
    "mapped_mass": ("mapped", 9),
    "borne_out": ("confirmed", 11),
}

Facts = dict[str, Any]


def coverage(data: StoreDataset, *, sequences: int = 1000) -> Facts:
    """Count what a student can follow of a store, in sequences spread evenly over it.

    Args:
        data: The store as the student reads it.
        sequences: The most sequences to read.

    Returns:
        JSON-ready: `kinds` by `KINDS`, `tails`, `recommended` and the `reason`.
    """
    store, student = data.store, data.reader.tokenizer
    has_ids = bool(store.spec.has_ids)
    mapping = _maps(data) if has_ids else None
    counts = {kind: np.zeros(7) for kind in KINDS}
    tails = np.zeros(len(TAIL_EDGES), np.int64)
    chosen = np.unique(np.linspace(0, len(data) - 1, min(sequences, len(data))).astype(int))
    skipped = 0
    for i in data.sequences[chosen]:
        records, line = store.read_many([int(i)])[0], store.text(int(i))
        tail = np.exp(records.tail_logmass.astype(np.float64))
        tails += np.bincount(np.searchsorted(TAIL_EDGES, tail.clip(max=1)), minlength=len(tails))
        seen = _sequence(data, records, line, mapping)
        if seen is None:
            skipped += 1
            continue
        for kind in KINDS:
            counts[kind] += seen[kind]
    facts: Facts = {
        "store": str(store.path),
        "teacher": teacher_name(store),
        "student": student.name,
        "same_tokenizer": store.spec.tokenizer_fingerprint == student.fingerprint,
        "has_ids": has_ids,
        "missing": list(store.spec.missing),
        "has_entries": bool(store.spec.top_k),
        "has_draws": bool(store.spec.draws),
        "byte_student": max(map(len, filter(None, student.token_bytes)), default=0) <= 1,
        "sequences": len(chosen),
        "sequences_skipped": skipped,
        "kinds": {kind: _shares(counts[kind], has_ids) for kind in KINDS},
        "tails": [
            {"tail_at_most": edge, "records": int(n), "share": n / max(1, int(tails.sum()))}
            for edge, n in zip(TAIL_EDGES, tails.tolist(), strict=True)
        ],
    }
    facts["recommended"], facts["reason"] = recommend(facts)
    return facts


def of_pair(
    store: str,
    student: str,
    *,
    sequences: int = 1000,
    max_length: int | None = None,
    chat_template_path: str | None = None,
    allow_partial: bool = False,
) -> Facts:
    """Count the :func:`coverage` of a store by a student, of which only the tokenizer is read."""
    opened = open_store(store, allow_partial=allow_partial)
    tokenizer = load_tokenizer(student)
    reader = ByteTokenizer(tokenizer)
    template = None
    if opened.spec.rendering["kind"] == "conversation":
        template = ChatTemplate.of(
            tokenizer, reader, path=chat_template_path, flag="--chat-template-path"
        )
    data = StoreDataset(opened, reader, max_length=max_length, template=template)
    return coverage(data, sequences=sequences)


def recommend(facts: Mapping[str, Any]) -> tuple[str, str]:
    """Choose the loss for a pair of store and student, and say why.

    Of the losses that the store can serve, it is the one that follows most of the text.
    """
    best, most = "ce", None
    lacks = _lacks(facts)
    for name, loss in all_losses().items():
        advice = None if lacks & loss.needs_of(option_values({})) else loss.advice(facts)
        if advice is not None and (most is None or advice.worth > most.worth):
            best, most = name, advice
    return best, _why_of_store(facts) or (most.why if most else "no other loss has what it needs")


def _lacks(facts: Mapping[str, Any]) -> set[str]:
    """List what a loss may need and the pair lacks, in the words of the losses' needs."""
    missing = facts.get("missing", ())
    has = {
        "same tokenizer": facts["same_tokenizer"],
        "entries": facts["has_entries"],
        "ids": facts["has_ids"],
        "tail": "tail_logmass" not in missing,
        "token logprob": "token_logprob" not in missing,
        "draws": facts.get("has_draws", False),
    }
    return {need for need, is_met in has.items() if not is_met}


def _why_of_store(facts: Mapping[str, Any]) -> str:
    """Return the reason if it is something that an import lacks, else an empty text."""
    missing = facts.get("missing", ())
    if "tail_logmass" in missing:
        return "the entries were renormalised before they were imported: no tail is known"
    if "token_logprob" in missing:
        return "the import lacks some tokens' log-probabilities, which other losses need"
    return ""


def warn_if_low(data: StoreDataset) -> None:
    """Warn once, before training, if a loss that maps tokens would see little of the text."""
    mapping = [name for name, pairing in data.pairings.items() if pairing.map is not None]
    mapping = [n for n in mapping if "same tokenizer" not in find(n).needs_of(data.options)]
    if not mapping:
        return
    facts = coverage(data, sequences=SAMPLE)
    better = facts["recommended"]
    low = [name for name in mapping if _follows_little(name, facts)]
    if low and better not in data.losses and facts["kinds"]["all"]["labels"]:
        warnings.warn(
            f"low coverage: {facts['student']} on {facts['store']}: {facts['reason']}. --loss "
            f"{better} would learn more than {low[0]} here, or beside it; `distill coverage` shows "
            'all figures. PYTHONWARNINGS="ignore:low coverage" silences this.',
            stacklevel=2,
        )


def _follows_little(name: str, facts: Facts) -> bool:
    advice = find(name).advice(facts)
    return advice is not None and advice.worth < LOW_SHARE


def table(facts: Facts) -> str:
    """Format the facts as a table for people."""
    lines = [
        f"teacher      {facts['teacher']}",
        f"student      {facts['student']}",
        f"sequences    {facts['sequences']:,} looked at, {facts['sequences_skipped']:,} unusable",
        "",
        f"{'labels':<14}{'count':>10}" + "".join(f"{name:>{w}}" for name, w in COLUMNS.values()),
    ]
    for kind, share in facts["kinds"].items():
        cells = [(share[name], width) for name, (_, width) in COLUMNS.items()]
        shown = (("-" if cell is None else f"{cell:.1%}").rjust(width) for cell, width in cells)
        lines.append(f"{kind:<14}{share['labels']:>10,}" + "".join(shown))
    lines += ["", "tail: teacher's mass beyond the entries of a record"]
    if "tail_logmass" in facts["missing"]:
        lines[-1] += ": not known, they were renormalised"
    lines += [
        f"  up to {tail['tail_at_most']:<7g}{tail['records']:>10,}{tail['share']:>9.1%}"
        for tail in facts["tails"]
    ]
    return "\n".join([*lines, "", f"use --loss {facts['recommended']}: {facts['reason']}."])


def as_json(facts: Facts) -> str:
    """Format the facts as JSON, for programs."""
    return json.dumps(facts, indent=1)


class _Maps(NamedTuple):
    """The student's id of each of the teacher's; -1 for none."""

    prefix: npt.NDArray[np.int32]
    exact: npt.NDArray[np.int32]


def _maps(data: StoreDataset) -> _Maps:
    """Map teacher ids to student ids, for every id that the teacher's head has."""
    store, student = data.store, data.reader.tokenizer
    if store.spec.tokenizer_fingerprint == student.fingerprint:
        same = np.arange(student.size, dtype=np.int32)
        made = _Maps(same, same)
    else:
        kinds = (make_map(kind, data.teacher, student) for kind in ("prefix", "strict"))
        made = _Maps(*(each.event[: data.teacher.size] for each in kinds))
    missing = max(0, int(store.spec.vocab_size) - len(made.prefix))
    return _Maps(*(np.pad(known, (0, missing), constant_values=-1) for known in made))


def _sequence(
    data: StoreDataset, records: TokenRecords, line: SequenceText, mapping: _Maps | None
) -> dict[str, npt.NDArray[np.float64]] | None:
    """Count, by kind of text, what a sequence's labels share with the teacher.

    Returns:
        For each of `KINDS` (7,): labels, shared starts, strict pairs; at shared starts the mass of
        all entries, of shared and of mapped ones; confirmed shared starts. None if the student
        cannot use the sequence.
    """
    teacher = teacher_spans(records, line, data.store.spec.eos_ids, data.teacher)
    tokens, _ = data.reader.read(line, teacher)
    if tokens is None:
        return None
    label_ids, student = tokens.token_ids[tokens.has_record], student_spans(tokens)
    alignment = align(teacher, student)
    at, on = alignment.shared_starts.T
    values = np.zeros((len(label_ids), 7))
    values[:, 0] = 1
    values[on, 1] = 1
    values[alignment.strict[:, 1], 2] = 1
    if mapping is not None:
        mapping = _with_ends(mapping, data, label_ids[student.is_eos])
        every = np.zeros_like(mapping.exact)
        for column, known in enumerate((every, mapping.exact, mapping.prefix), start=3):
            values[on, column] = _mass(records, known)[at]
        values[on, 6] = mapping.prefix[records.token_ids[at]] == label_ids[on]
    written = data.reader.tokenizer.written(label_ids)
    is_kind = {
        "all": np.ones(len(written), bool),
        "numerals": np.array([any(48 <= b <= 57 for b in w) for w in written], bool),
        "white space": np.array([bool(w) and w.isspace() for w in written], bool),
    }
    return {kind: values[mask].sum(0) for kind, mask in is_kind.items()}


def _with_ends(mapping: _Maps, data: StoreDataset, ends: npt.NDArray[np.int64]) -> _Maps:
    """Send the teacher's ends to the token that ends this sequence's turns, as training does."""
    spec = data.store.spec
    if spec.tokenizer_fingerprint == data.reader.tokenizer.fingerprint or not len(ends):
        return mapping
    prefix, exact = mapping.prefix.copy(), mapping.exact.copy()
    prefix[list(spec.eos_ids)] = exact[list(spec.eos_ids)] = ends[-1]
    return _Maps(prefix, exact)


def _mass(records: TokenRecords, known: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """Sum up (n,) the probability of each record's entries that the map knows."""
    assert records.entry_ids is not None
    owner = np.repeat(np.arange(len(records)), records.entry_count)
    mass = np.exp(records.entry_logprobs.astype(np.float64)) * (known[records.entry_ids] >= 0)
    return np.bincount(owner, mass, len(records)).astype(np.float64)


def _shares(counts: npt.NDArray[np.float64], has_ids: bool) -> Facts:
    labels, shared, strict, stored, exact, mapped, borne_out = counts.tolist()
    return {
        "labels": int(labels),
        "shared_starts": _share(shared, labels),
        "strict": _share(strict, labels),
        "shared_mass": _share(exact, stored) if has_ids else None,
        "mapped_mass": _share(mapped, stored) if has_ids else None,
        "borne_out": _share(borne_out, shared) if has_ids else None,
    }


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
