"""Compare what is to be written with the store that is there already."""

import json

from logitstore.errors import MismatchError
from logitstore.format.spec import StoreHeader
from logitstore.storage.paths import StorePath


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
            f"{there.rows:,} rows in the store, {here.rows:,} now)"
        )
    elif here.boundaries != there.boundaries:
        different.append(
            f"plan.boundaries is {_short(list(there.boundaries))} in the store, "
            f"{_short(list(here.boundaries))} now (--shard-text-bytes)"
        )
    if different:
        raise MismatchError(
            f"{path}: the store was begun with other settings: {'; '.join(different)}. "
            "Run with the store's settings to resume it, or choose another --out.",
            kind="dataset-changed" if is_other_data else None,
        )


def _short(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 48 else f"{text[:45]}…"
