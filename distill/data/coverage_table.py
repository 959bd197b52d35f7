"""The figures of :mod:`distill.data.coverage` for people: a command to copy, then a table."""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from distill.alignment.make_map import KINDS
from distill.data.left_out import Usable, left_out_lines
from distill.losses import advice

Facts = Mapping[str, Any]

#: The widest line, but for names that are longer.
WIDTH = 80
#: Columns of the table, and what each is a share of.
COLUMNS = {
    "shared_starts": ("shared", "a token of the teacher starts where the label does"),
    "covered": ("covered", "compared with a record of the teacher, by {loss}"),
    "right": ("right", "of these: what the map makes most of the teacher's token"),
    "wrong": ("wrong", "of these: what the map makes nothing of that token"),
}
#: Edges of the bins of tail mass that are shown.
SHOWN_TAILS = (0.01, 0.1, 0.5)


def table(facts: Facts) -> str:
    """Format the facts as a table for people."""
    lines = [_command(facts["command"])] if "command" in facts else []
    lines += [_wrapped(f"{_student(facts)}: {facts['reason']}.", "# "), ""]
    lines += [
        f"teacher     {facts['teacher']}",
        f"student     {facts['student']}",
        f"sequences   {_sequences(facts)}",
        f"loss        {_judged(facts)}",
        "",
        *_shares(facts),
        "",
        *_notes(facts),
        *_left_out(facts),
    ]
    return "\n".join(lines)


def _sequences(facts: Facts) -> str:
    used = facts["sequences"] - facts["sequences_skipped"]
    all_of_it = facts["usable"]["with_records"]
    seen = "" if facts["sequences"] == all_of_it else f" that were looked at (of {all_of_it:,})"
    return f"{used:,} of {facts['sequences']:,} with records{seen} can be used; below, their labels"


def _left_out(facts: Facts) -> Iterator[str]:
    """Say what is not used, and why, with an example."""
    lines = left_out_lines(Usable.from_facts(facts["usable"]))
    yield from ["", *lines] if lines else []


def _command(command: str) -> str:
    """Break a command into lines at its flags."""
    lines = [""]
    for part in command.replace(" --", "\n--").split("\n"):
        if lines[-1] and len(lines[-1]) + len(part) + 3 > WIDTH:
            lines.append(f"    {part}")
        else:
            lines[-1] += f" {part}" if lines[-1] else part
    return " \\\n".join(lines)


def _student(facts: Facts) -> str:
    told_by = facts.get("weights_told_by")
    known = {"trained": "a trained student", "new": "a new student"}
    named = known.get(facts["weights"], "a student of which it is unknown whether it is trained")
    return f"{named} ({told_by})" if told_by else named


def _measured(facts: Facts) -> str:
    """Cite what was measured of the way that is advised."""
    if not facts["measured"]:
        return f"nothing yet of {facts['flags']} for such a student"
    return (
        f"of {facts['flags']}, against cross-entropy alone, in held-out bits per byte (less is "
        f"better): {facts['measured']}. docs/which-loss.md has how, and more."
    )


def _judged(facts: Facts) -> str:
    if facts["loss"] is None:
        return "nothing: no loss can use what the store has"
    if facts["map"] is None:
        return f"{facts['loss']}, which has no map of the vocabularies"
    if facts["same_tokenizer"]:
        return f"{facts['loss']}, each token as itself: both sides have one tokenizer"
    if facts["map"] not in KINDS:
        return f"{facts['loss']} (by a map of its own)"
    between = " --between on" if facts["between"] == "on" else ""
    return f"{facts['loss']} --map {facts['map']}{between}"


def _shares(facts: Facts) -> Iterator[str]:
    heads = "".join(f"{name:>10}" for name, _ in COLUMNS.values())
    yield f"{'labels':<20}{'count':>12}{heads}"
    for kind, share in facts["kinds"].items():
        cells = [share[name] for name in COLUMNS]
        shown = "".join(("-" if cell is None else f"{cell:.1%}").rjust(10) for cell in cells)
        name = kind if kind == "all" else f"  {kind}"
        yield f"{name:<20}{share['labels']:>12,}{shown}"
    yield ""
    for name, about in COLUMNS.values():
        yield f"{name:<10}{about.format(loss=facts['loss'] or 'no loss')}"
    if facts["kinds"]["all"]["cut"]:
        cut = facts["kinds"]["all"]["cut"]
        yield f"          {cut:.1%} of the covered are not judged: they are behind a token that the"
        yield "          student would not have ended there, and in no target"
    if facts["by_students_choice"]:
        yield f"          judged by the fixed tokens of {facts['loss']} alone: what else it takes"
        yield "          for each other depends on the student's own choice in training"
    if facts["map"] in ("strict", "exact"):
        yield "          for strict and exact, of the shared: their labels are chosen by what came"


def _notes(facts: Facts) -> Iterator[str]:
    everything, bits = facts["kinds"]["all"], facts["bits"]
    if advice.asks_wrong_labels(everything):
        said = f"{everything['wrong']:.0%} of the labels are not what {_judged(facts)} asks for"
        yield _wrapped(f"{said}: train with {facts['flags']}.", "careful     ")
    if wrong := advice.wrong_kinds(facts["kinds"]):
        yield _wrapped(f"{wrong_in_words(wrong, facts)}.", "careful     ")
    if facts["recommended"] != "ce":
        yield _wrapped(_measured(facts), "measured    ")
    if facts["caution"]:
        yield _wrapped(f"{facts['caution']}.", "not sure    ")
    if bits is not None:
        said = (
            "tokens are compared in groups that either tokenizer can express; to know the group of "
            f"a label is {bits['events']:.2f} of the {bits['tokens']:.2f} bits of knowing the label"
        )
        yield _wrapped(f"{said}.", "groups      ")
    yield from _counting(facts["folds"])
    each = facts["vocabulary"]
    if each["shared"]:
        said = (
            f"{each['shared']:,} tokens are on both sides: {each['of_teacher']:.0%} of the "
            f"teacher's, {each['of_student']:.0%} of the student's"
        )
        yield _wrapped(said, "vocabulary  ")
    yield _tail(facts)
    if facts["has_boundaries"]:
        yield _wrapped(f"{advice.BOUNDARIES}.", "boundaries  ")


def wrong_in_words(wrong: Mapping[str, float], facts: Facts) -> str:
    """Say of which labels a map asks for wrong ones, and what to train with, or to compare with.

    Args:
        wrong: Of :func:`distill.losses.advice.wrong_kinds`.
        facts: Of the coverage.
    """
    shares = ", ".join(f"{name} {share:.0%}" for name, share in wrong.items())
    said = f"wrong by kind of label: {shares}"
    if facts["flags"] != f"--loss {facts['loss']} --map {facts['map']}":
        return f"{said}. Train with {facts['flags']}"
    return f"{said}. If these matter to you, compare with {advice.without_map(facts)}"


def _counting(folds: Mapping[str, Mapping[str, float]] | None) -> Iterator[str]:
    """Say what a map that counts is worth on text that it has not counted."""
    if not folds:
        return
    is_worse = advice.is_counting_worse(folds)
    figures = (
        f"--map {name} puts {each['mass']:.1%} of a token's probability on the label that came and "
        f"misplaces {each['total_variation']:.1%}"
        for name, each in folds.items()
    )
    said = f"where half of the text is judged by the other half, {'; '.join(figures)}."
    said += " Counting is worse: the store has too little text." if is_worse else ""
    yield _wrapped(said, "other maps  ")


def _tail(facts: Facts) -> str:
    if "tail_logmass" in facts["missing"]:
        return "tail        not known: the entries were renormalised before they were imported"
    parts, so_far = [], 0.0
    for tail in facts["tails"]:
        so_far += tail["share"]
        if tail["tail_at_most"] in SHOWN_TAILS:
            parts.append(f"{tail['tail_at_most']:g} at {so_far:.0%}")
    said = (
        "probability of what a record has no entry for: at most "
        f"{', '.join(parts)} of the teacher's tokens"
    )
    return _wrapped(said, "tail        ")


def _wrapped(text: str, first: str) -> str:
    behind = first if first.startswith("#") else " " * len(first)
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=behind,
        break_long_words=False,
        break_on_hyphens=False,
    )
