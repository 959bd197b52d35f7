"""Choose the five numbers that decide whether a store is trusted, and the checks behind the last.

A check is made of what the page reads anyway: the settings, the index, the end of every shard, and
the numbers of every token, each of which passed its checksum. `logitstore verify --deep` reads all
the rest, too.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from logitstore.console.counts import counted
from logitstore.inspection.meaning import LARGE_TAIL
from logitstore.inspection.scalars import Survey


class Number(NamedTuple):
    """A large number, what it counts, and what to know of it."""

    value: str
    name: str
    more: str


class Check(NamedTuple):
    """Something that must hold of a store: whether it does (None: not known), and the facts."""

    name: str
    passed: bool | None
    said: str


def checks(about: Mapping[str, Any], found: Survey) -> list[Check]:
    """Make the checks.

    Args:
        about: What `info.facts` says of the store.
        found: What its tokens say.
    """
    rows, planned = about["rows"], about["dataset"]["rows"]
    dropped = about["fidelity"]["dropped_entries"]
    return [
        Check(
            "The capture has finished",
            bool(about["complete"]),
            f"{rows:,} of {counted(planned, 'row')} there",
        ),
        Check(
            "Every file is the one that was committed",
            True,
            f"the end of {_shards(about)}, and the numbers of all tokens, passed their checksums",
        ),
        Check(
            "No token was impossible for the teacher",
            None if found.histograms["surprise"]["mean"] is None else found.impossible == 0,
            f"{found.impossible:,} of {counted(about['records'], 'token')} had no probability at "
            "all",
        ),
        Check(
            "No prediction fell out of the range of its code",
            dropped == 0,
            f"{dropped:,} of {about['entries']:,} were too improbable, and are not kept",
        ),
        _self_test(about["self_test"]),
        *_ends(about["turns"]),
    ]


def numbers(about: Mapping[str, Any], found: Survey) -> list[Number]:
    """Choose the five numbers; arguments as of :func:`checks`."""
    made = checks(about, found)
    passed, judged = (sum(c.passed is True for c in made), sum(c.passed is not None for c in made))
    left_out = sum(each["count"] for each in about["left_out"])
    rows, planned = about["rows"], about["dataset"]["rows"]
    return [
        Number(
            f"{about['records']:,}",
            "tokens",
            "each with what the teacher expected in its place",
        ),
        Number(
            f"{rows:,}",
            "rows" if rows == planned else f"of {counted(planned, 'row')}",
            f"{left_out:,} of them or their parts not used" if left_out else "all of them used",
        ),
        Number(
            f"{about['bytes_per_token']:.1f}",
            "bytes a token",
            f"{_size(about['file_bytes'])} in {_shards(about)}",
        ),
        _exactness(about),
        Number(
            f"{passed} of {judged}",
            "checks passed",
            "see below what did not" if passed < judged else "what they are is below, in Details",
        ),
    ]


def _exactness(about: Mapping[str, Any]) -> Number:
    fidelity, capture = about["fidelity"], about["capture"]
    if "tail_logmass" in capture.get("missing", ()):
        more = "the data that was imported does not say how much was left out"
        return Number("not known", "of the probability", more)
    if not capture["top_k"]:
        more = "stand for the whole prediction, right on average"
        return Number(f"{capture['draws']}", "draws a token", more)
    return Number(
        f"{1 - fidelity['tail_mean']:.1%}",
        "of the probability kept",
        f"{1 - fidelity['tail_p99']:.0%} or more at 99 of 100 tokens; rounding moved "
        f"{fidelity['l1_mean'] / 2:.2%} of it"
        + ("; a larger --top-k keeps more" if fidelity["tail_mean"] > LARGE_TAIL else ""),
    )


def _self_test(found: object) -> Check:
    name = "The teacher says the same alone and in a batch"
    if not isinstance(found, dict) or not all(
        isinstance(found.get(each), int | float) for each in ("tokens", "largest", "tolerance")
    ):
        return Check(name, None, "was not tested")
    return Check(
        name,
        found["largest"] <= found["tolerance"],
        f"log p of {counted(found['tokens'], 'token')} differs by {found['largest']:g} at most; up "
        f"to {found['tolerance']:g} is rounding",
    )


def _ends(found: object) -> list[Check]:
    if not isinstance(found, dict) or not isinstance(found.get("without_end"), int):
        return []
    said = f"{counted(found['without_end'], 'turn')} without one, which teach nobody when to stop"
    return [Check("Every answer ends with a token for its end", found["without_end"] == 0, said)]


def _shards(about: Mapping[str, Any]) -> str:
    return counted(about["shards"], "file")


def _size(count: int) -> str:
    for unit, of in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= of:
            return f"{count / of:,.1f} {unit}"
    return f"{count:,} bytes"
