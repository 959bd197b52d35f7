"""The warning before training: a loss asks for wrong labels, or is silent about most of them."""

import warnings
from collections.abc import Sequence

from distill.data.coverage import Facts, coverage
from distill.data.coverage_table import wrong_in_words
from distill.data.dataset import StoreDataset
from distill.losses import advice

#: Number of sequences that are read for it.
SAMPLE = 32


def warn_if_wrong(data: StoreDataset) -> None:
    """Warn once, before training, if a loss asks for wrong labels or is silent about most."""
    for name, pairing in data.pairings.items():
        if not pairing.compares_tokens or data.is_one_tokenizer:
            continue
        facts = coverage(data, loss=name, sequences=SAMPLE)
        everything = facts["kinds"]["all"]
        if not everything["labels"]:
            continue
        trouble = _trouble(name, facts, data.losses)
        if trouble:
            warnings.warn(
                f"{trouble} `distill coverage` shows all figures. PYTHONWARNINGS="
                f'"ignore:{trouble.split(":")[0]}" silences this.',
                stacklevel=2,
            )
            return


def _trouble(name: str, facts: Facts, losses: Sequence[str]) -> str:
    """Say what is wrong with a loss here, and which flags are better; empty if nothing is."""
    everything = facts["kinds"]["all"]
    where = f"{facts['student']} on {facts['store']}"
    if advice.asks_wrong_labels(everything):
        return (
            f"wrong labels: {where}: {everything['wrong']:.0%} of the labels that {name} --map "
            f"{facts['map']} compares are not what it asks for. Use {facts['flags']}."
        )
    if wrong := advice.wrong_kinds(facts["kinds"]):
        return (
            f"wrong labels: {where}: {name} --map {facts['map']}: {wrong_in_words(wrong, facts)}."
        )
    if everything["covered"] < advice.LOW_SHARE and facts["recommended"] not in (name, *losses):
        return (
            f"low coverage: {where}: {name} compares {everything['covered']:.0%} of the labels, "
            f"and for the others it says what --uncovered does. {facts['flags']} would learn more "
            "here, or beside it."
        )
    return ""
