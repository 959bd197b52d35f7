"""Compare what is to be written with the store that is there already."""

import json

from logitstore.console.counts import counted
from logitstore.errors import MismatchError
from logitstore.format.spec import Plan, StoreHeader, StoreSpec
from logitstore.storage.paths import StorePath

_SHOWN = 40


def check_same(path: StorePath, wanted: StoreHeader, found: StoreHeader) -> None:
    """Check that a store was begun with the settings and rows that it is to be resumed with.

    Raises:
        MismatchError: It was not; names every difference.
    """
    different = [
        f"{name} is {_short(there)} in the store, {_short(here)} now"
        for name, here, there in wanted.spec.differences(found.spec)
    ]
    here, there = wanted.plan, found.plan
    is_other_data = here.dataset_sha256 != there.dataset_sha256
    if is_other_data:
        different.append(
            f"the dataset is another, or has changed (plan.dataset_sha256 is "
            f"{there.dataset_sha256[:12]}… in the store, {here.dataset_sha256[:12]}… now; "
            f"{counted(there.rows, 'row')} in the store, {here.rows:,} now)"
        )
    elif here != there:
        different.append(
            f"plan.boundaries is {_short(_first(there))} in the store, "
            f"{_short(_first(here))} now (--shard-text-bytes)"
        )
    if different:
        how = "Run with the store's settings to resume it"
        if _is_older(wanted.spec, found.spec):  # no setting of this version renders as it did
            begun = found.provenance.get("versions", {}).get("logitstore", "before")
            how = f"Finish it with the version of logitstore that began it ({begun})"
        raise MismatchError(
            f"{path}: the store was begun with other settings: {'; '.join(different)}. "
            f"{how}, or choose another --out.",
            kind="dataset-changed" if is_other_data else None,
        )


def _is_older(here: StoreSpec, there: StoreSpec) -> bool:
    """Tell whether a store is of a version that found the text of conversations in another way."""
    name = "supervised_text"
    return (
        name in here.rendering
        and name not in there.rendering
        and here.rendering["kind"] == (there.rendering.get("kind"))
    )


def _first(plan: Plan) -> list[int]:
    """List as many boundaries as a message shows."""
    return [int(cut) for cut in plan.boundaries[:_SHOWN]]


def _short(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 48 else f"{text[:45]}…"
