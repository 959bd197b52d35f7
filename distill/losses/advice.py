"""Which loss to train a student with: the default, and the advice of `distill coverage`.

The advice is a table, of which the first row that fits counts: its condition holds, and the store
has what its loss needs. No other file knows which loss is better where.
"""

import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from distill.losses import find, option_values
from distill.losses.evidence import harm
from logitstore.console.left_out import is_surely_more

#: Figures of a pair of store and student, as :mod:`distill.data.coverage` counts them.
Facts = Mapping[str, Any]

#: The value of `--loss` that leaves the choice to the pair, and what it then is.
AUTO = "auto"
ONE_TOKENIZER, TWO_TOKENIZERS = "tail_kl", "mapped_kl"

#: Where fewer labels than this have a pair, whole groups of tokens say more.
LOW_SHARE = 0.4
#: Where a larger share of the pairs asks for a wrong label, it is said, and not advised.
MOST_WRONG = 0.05
#: What is known of `--boundaries`, in one clause.
BOUNDARIES = (
    "--boundaries asks exactly what follows each label, but it was measured in short runs of one "
    "student alone, where the default without it was as good"
)

#: Learning rates below this are gentle: between 2e-4, where a map was measured to give a trained
#: student next to nothing, and 1e-3, where it helped. At 1e-4 it helped one that learnt from its
#: teacher's own answers (docs/which-loss.md).
GENTLE = 5e-4
#: What these runs say of the map, at gentle rates.
UNPROVEN = (
    f"at a gentle learning rate (below {GENTLE:g}; without --learning_rate it is 2e-5) a trained "
    "student gained surely from its teacher's own answers, and hardly from other text; train "
    "--loss ce beside it"
)


class Way(NamedTuple):
    """A way to train: what speaks for it, the loss, its options, and why, in one clause."""

    where: str
    loss: str
    options: Mapping[str, str]
    why: str


#: The advice. A student whose weights are not known counts as trained.
ADVICE = (
    Way(
        "one tokenizer",
        "tail_kl",
        {},
        "teacher and student have one tokenizer: every entry is compared exactly",
    ),
    Way(
        "one tokenizer",
        "sampled_kl",
        {},
        "teacher and student have one tokenizer, and the store holds draws alone (--top-k 0)",
    ),
    Way(
        "no entries",
        "alm",
        {},
        "the store was captured with --top-k 0: it has no entries to compare",
    ),
    Way(
        "a student of bytes",
        "alm",
        {},
        "the student reads bytes: it shares positions with its teacher, hardly tokens",
    ),
    Way(
        "few pairs",
        "alm",
        {},
        "few labels can be compared token by token, less than 40%: whole groups of tokens can",
    ),
    Way(
        "no ids",
        "uld",
        {},
        "the store was captured with --no-ids: only sorted values can be compared",
    ),
    Way(
        "a wrong map",
        "alm",
        {},
        "a map would ask for more than 5% wrong labels: groups of tokens need no map",
    ),
    Way(
        "a wrong map",
        "ce",
        {},
        "a map would ask for more than 5% wrong labels, and no other loss has what it needs",
    ),
    Way(
        "a new student",
        "mapped_kl",
        {"map": "events"},
        "the tokenizers differ, and both are compared in groups of tokens that either can express",
    ),
    Way(
        "a trained student",
        "mapped_kl",
        {"map": "events"},
        "the tokenizers differ, and both are compared in groups of tokens that either can express",
    ),
    Way("", "alm", {}, "the store has what it needs, and not what losses of tokens need"),
    Way("", "ce", {}, "no other loss has what it needs"),
)


def _has_few_pairs(facts: Facts) -> bool:
    everything = facts["kinds"]["all"]
    share = (facts.get("by_map") or everything)["covered"]
    if not facts["has_ids"]:
        share = everything["shared_starts"]
    return bool(everything["labels"]) and (share or 0.0) < LOW_SHARE


def asks_wrong_labels(figures: Facts) -> bool:
    """Tell whether more labels are wrong than is fine, by more than chance makes of so few.

    Args:
        figures: Of `distill coverage`: the share that is `wrong`, of how many that were `judged`.
    """
    wrong, judged = figures.get("wrong"), figures.get("judged")
    if wrong is None or not judged:
        return False
    return is_surely_more(round(wrong * judged), judged, judged + 1, MOST_WRONG)


def wrong_kinds(kinds: Mapping[str, Facts]) -> dict[str, float]:
    """Find the kinds of labels of which a map asks for more wrong ones than is fine.

    Args:
        kinds: Of `distill coverage`, by name: `all`, and what the labels are.

    Returns:
        Of each such kind but `all` the share that is wrong, the largest first.
    """
    found = {name: each["wrong"] for name, each in kinds.items() if asks_wrong_labels(each)}
    found.pop("all", None)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def without_map(facts: Facts) -> str:
    """Write the flag of the loss that asks for no map and has what it needs of the store."""
    lacks = _lacks(facts)
    ways = (way for way in ADVICE if way.where == "a wrong map")
    fit = (
        w for w in ways if w.loss == "ce" or not lacks & find(w.loss).needs_of(option_values({}))
    )
    return flags(next(fit))


def _is_map_wrong(facts: Facts) -> bool:
    return asks_wrong_labels(facts.get("by_map") or {})


_HOLDS: Mapping[str, Callable[[Facts], bool]] = {
    "": lambda _: True,
    "one tokenizer": lambda facts: bool(facts["same_tokenizer"]),
    "no entries": lambda facts: not facts["has_entries"],
    "a student of bytes": lambda facts: bool(facts["byte_student"]),
    "few pairs": _has_few_pairs,
    "no ids": lambda facts: not facts["has_ids"],
    "a wrong map": _is_map_wrong,
    "a new student": lambda facts: facts["weights"] == "new",
    "a trained student": lambda facts: facts["weights"] != "new",
}


def recommend(facts: Facts) -> Way:
    """Choose a way to train for a pair of store and student, and say why.

    It does not depend on which loss was looked at: `by_map` has the figures of the map that would
    be advised.
    """
    lacks = _lacks(facts)
    way = next(
        way
        for way in ADVICE
        if _HOLDS[way.where](facts)
        and (way.loss == "ce" or not lacks & find(way.loss).needs_of(option_values({})))
    )
    why = _why_of_store(facts)
    return way._replace(why=why) if why else way


def map_for(weights: str) -> str:
    """Return the map that is recommended for a student of another tokenizer."""
    where = "a new student" if weights == "new" else "a trained student"
    return next(way.options.get("map", "events") for way in ADVICE if way.where == where)


def caution(
    losses: Iterable[str], weights: str, *, one_tokenizer: bool, learning_rate: float | None = None
) -> str:
    """Say in a line what is not known of a way to train; empty if nothing is to be said.

    Args:
        losses: Names of the losses.
        weights: `new`, `trained` or `unknown`; one that is not known counts as trained.
        one_tokenizer: Whether teacher and student have one tokenizer.
        learning_rate: The highest of the run; None: not known yet.
    """
    if one_tokenizer:
        return ""
    others = [loss for loss in losses if loss != "ce"]
    harms = {loss: harm(loss, weights) for loss in others}
    found = [
        f"in our runs {loss} was worse than cross-entropy alone, in held-out bits per byte: {said}"
        for loss, said in harms.items()
        if said
    ]
    is_gentle = learning_rate is None or learning_rate < GENTLE
    if weights != "new" and is_gentle and any(map(_has_map, others)):
        found.append(UNPROVEN)
    return ". ".join(found)


def _has_map(loss: str) -> bool:
    return find(loss).pairing_of(option_values({})).compares_tokens


def is_counting_worse(folds: Mapping[str, Mapping[str, float]]) -> bool:
    """Tell whether a counted map is further from text that it has not counted than without."""
    if not folds:
        return False
    return folds["counted"]["total_variation"] > folds["canonical"]["total_variation"]


def flags(way: Way) -> str:
    """Write the flags of a way to train."""
    return " ".join([f"--loss {way.loss}", *(f"--{k} {v}" for k, v in way.options.items())])


def command(way: Way, student: str, store: str, weights: str, more: Mapping[str, Any]) -> str:
    """Write the command that trains so.

    Args:
        way: How to train.
        student: Folder or hub id.
        store: The store.
        weights: What `weights_of` says of the student.
        more: Other flags that were given, by name; those that are None or False are left out.
    """
    given = {name: value for name, value in more.items() if value not in (None, False)}
    parts = [
        f"distill train --{'student_config' if weights == 'new' else 'model_name_or_path'}",
        shlex.quote(student),
        f"--store {shlex.quote(store)}",
        *(f"--{k}" if v is True else f"--{k} {shlex.quote(str(v))}" for k, v in given.items()),
        flags(way),
        "--output_dir trained",
    ]
    return " ".join(parts)


def weights_of(student: str) -> tuple[str, str]:
    """Tell from its folder whether a student is `trained`, `new` or `unknown`, and how."""
    folder = Path(student)
    if not folder.exists():
        return "trained", "a hub id"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if any(name.endswith((".safetensors", ".bin", ".pt", ".h5", ".gguf")) for name in names):
        return "trained", "its folder has weights"
    if "config.json" in names:
        return "new", "its folder has a config and no weights"
    return "unknown", "its folder has a tokenizer alone"


def _lacks(facts: Facts) -> set[str]:
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


def _why_of_store(facts: Facts) -> str:
    """Return the reason if it is something that an import lacks, else an empty text."""
    missing = facts.get("missing", ())
    if "tail_logmass" in missing:
        return "the entries were renormalised before they were imported: no tail is known"
    if "token_logprob" in missing:
        return "the import lacks some tokens' log-probabilities, which other losses need"
    return ""
