"""Say below each figure of a store's page what it means for a student and its losses.

Each function returns plain text, which names the losses by their names on the command line.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from logitstore.inspection.scalars import Survey

#: Above this share of the probability, what was not kept decides more than a student should lose.
LARGE_TAIL = 0.1
_NOT_KNOWN = "The data that this store was made of does not say it."


def surprise(found: Survey) -> str:
    """Say what the teacher's surprise promises for a student's cross-entropy."""
    histogram = found.histograms["surprise"]
    if histogram["mean"] is None:
        return _NOT_KNOWN
    mean, first = histogram["mean"], found.first_surprise
    said = (
        f"{mean:.2f} nats a token on average. A student that predicts as well as this teacher, in "
        f"the same tokens, would log that as its ce_loss; {_below(histogram, 1):.0%} of the tokens "
        "are below 1, which the teacher saw coming."
    )
    if first is not None and first > 2 * mean + 2:
        said += (
            f" The first token of a text has {first:.1f}: if these are answers of a chat, look "
            "whether they were written in the teacher's template."
        )
    return said


def entropy(found: Survey) -> str:
    """Say how much there is to learn beyond the text."""
    histogram = found.histograms["entropy"]
    if histogram["mean"] is None:
        return _NOT_KNOWN
    return (
        f"{histogram['mean']:.2f} nats on average. It is below 0.1 at {_below(histogram, 0.1):.0%} "
        "of the tokens: there the teacher says what the text says, and a loss of distillation adds "
        "little to cross-entropy. The rest is where it teaches more."
    )


def tail(found: Survey, about: Mapping[str, Any]) -> str:
    """Say what the losses make of the probability that was not kept."""
    if found.histograms["tail"]["mean"] is None:
        return _NOT_KNOWN
    mean = about["fidelity"]["tail_mean"]
    if not about["capture"]["top_k"]:
        return "All of it: the draws stand for the whole prediction (sampled_kl)."
    said = (
        f"{mean:.1%} on average. tail_kl and mapped_kl see it as one token, all others together; "
        "what they cannot see is how it is shared out among these."
    )
    if mean > LARGE_TAIL:
        said += " That is much: a larger --top-k would keep more."
    return said


def entries(found: Survey, about: Mapping[str, Any]) -> str:
    """Say what more kept tokens would cost."""
    mean, sizes = about["fidelity"]["entries_mean"], about["bytes_per_token_by_field"]
    held = sum(sizes.get(name, 0.0) for name in ("entry_ids", "entry_logprobs"))
    said = f"{mean:.1f} on average, of {held / max(mean, 1e-9):.2f} bytes each."
    if about["capture"]["max_tail"] is not None:
        said += (
            f" {about['fidelity']['at_cap_fraction']:.0%} of the tokens would have needed more "
            "than --top-k allows to keep as much as --max-tail asks for."
        )
    return said


def mass(found: Mapping[str, Any]) -> str:
    """Say which smaller top k would have done."""
    ks, held = found["k"], found["mass"]
    enough = next(k for k, m in zip(ks, held, strict=True) if m >= 0.99 * held[-1])
    said = f"All {ks[-1]} hold {held[-1]:.1%} of the probability"
    if enough == ks[-1]:
        return f"{said}, and each step up to there adds to it: more would add more."
    return (
        f"{said}; {enough} hold {held[ks.index(enough)]:.1%}. For losses that compare tokens by id "
        f"and see all others as one, --top-k {enough} would have done nearly as well; what "
        "logitstore estimate recommends is for uld, too, which sees less of the others."
    )


def bound(found: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """Say how far a ULD from the store can be trusted."""
    worst = (about["uld_within"] or {}).get("worst")
    return (
        f"A uld loss from this store is within {found['bound_mean'][-1]:.3f} of the exact one on "
        f"average, and within {found['bound_p99'][-1]:.3f} for 99 of 100 tokens"
        + ("" if worst is None else f" ({worst:.3f} at worst)")
        + "; 2 is the largest there is. A smaller difference in uld between students says nothing."
    )


def sizes(rows: Sequence[tuple[str, float, str]], about: Mapping[str, Any]) -> str:
    """Say what takes the room, and how to need less."""
    total = about["bytes_per_token"]
    if not rows:
        return f"{total:.1f} bytes a token in all."
    name, largest, _ = rows[0]
    said = f"{total:.1f} in all, directories of the files included; most of it is {name}"
    said += f" ({largest / total:.0%})."
    if "entry_ids" in about["bytes_per_token_by_field"]:
        said += " For uld alone, --no-ids leaves out which tokens were expected"
        if about["capture"]["max_tail"] is None:
            said += "; --max-tail keeps fewer of them where few suffice"
        said += "."
    return said


def _below(histogram: Mapping[str, Any], nats: float) -> float:
    """Compute the share of known values below an edge of the histogram."""
    counts, edges = histogram["counts"], histogram["edges"]
    return float(sum(counts[: edges.index(nats)]) / max(sum(counts), 1))
