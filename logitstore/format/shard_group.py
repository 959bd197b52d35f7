"""Write and read the metadata of a shard's zarr group: which shard it is, and how much it holds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from logitstore.format.canonical_json import canonical_json, parse_json
from logitstore.format.encoded import NOTHING_MEASURED
from logitstore.format.spec import FORMAT_VERSION, Plan, StoreSpec, is_digest
from logitstore.format.zip_archive import Member

GROUP_MEMBER = "zarr.json"


@dataclass(frozen=True)
class ShardSize:
    """The numbers of sequences, records, entries and draws in a shard."""

    sequences: int
    records: int
    entries: int
    draws: int


def group_of(about: dict[str, Any]) -> dict[str, Any]:
    """Make the group's `zarr.json` of what a shard says of itself."""
    return {"zarr_format": 3, "node_type": "group", "attributes": {"logitstore": about}}


MAX_GROUP_BYTES = 64 * 1024
_MAX_SIZE = 2**32 - 1
_MAX_NUMBER = 2**53
_ABOUT = {
    "version",
    "content_sha256",
    "plan_sha256",
    "shard",
    "rows",
    "size",
    "fidelity",
    "statuses",
    "supervised_bytes",
}
#: Of a store with hidden states: which file has those of the shard.
HIDDEN = "hidden"


class Members(Protocol):
    """The members of a shard's archive: `zip_archive.Archive` or `zip_archive.ArchiveEnd`."""

    @property
    def members(self) -> Mapping[str, Member]: ...
    def check_member(self, name: str) -> memoryview: ...


def read_group(
    archive: Members, spec: StoreSpec, plan: Plan, index: int
) -> tuple[dict[str, Any], ShardSize]:
    """Read what a shard says of itself and how much it holds, checked against spec and plan.

    Raises:
        ValueError: It is another store's, another shard, or not what was written.
        CorruptStoreError: Its bytes are damaged.
    """
    if GROUP_MEMBER not in archive.members:
        raise ValueError(f"there is no {GROUP_MEMBER}")
    size = archive.members[GROUP_MEMBER].size
    if size > MAX_GROUP_BYTES:
        raise ValueError(f"{GROUP_MEMBER} has {size} bytes, more than it can need")
    raw = archive.check_member(GROUP_MEMBER)
    try:
        group = parse_json(bytes(raw))
        about = dict(group["attributes"]["logitstore"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{GROUP_MEMBER} is not that of a shard") from None
    rows = list(plan.shard_rows(index))
    mine = {"version": FORMAT_VERSION, "shard": index, "rows": rows}
    mine |= {"content_sha256": spec.digest, "plan_sha256": plan.digest}
    if any(about[name] != value for name, value in mine.items()):
        raise ValueError(
            f"it says it is shard {about['shard']} with rows {about['rows']} of content "
            f"{str(about['content_sha256'])[:12]}…, expected shard {index} with rows {rows} of "
            f"{spec.digest[:12]}…"
        )
    # With `mine`, because 1 equals 1.0 and true.
    expected = _ABOUT if spec.hidden is None else _ABOUT | {HIDDEN}
    if set(about) != expected or raw != canonical_json(group_of(about | mine)):
        raise ValueError(f"{GROUP_MEMBER} is not the canonical JSON that was written")
    if spec.hidden is not None and not is_pinned(about[HIDDEN]):
        raise ValueError("it does not say which hidden states are its own")
    return about, _size(about, spec, plan, index)


def is_pinned(value: Any) -> bool:
    """Tell whether this says which file has a shard's hidden states: its digest and its bytes."""
    if not isinstance(value, dict) or set(value) != {"sha256", "bytes"}:
        return False
    return is_digest(value["sha256"]) and _is_whole(value["bytes"]) and value["bytes"] < _MAX_NUMBER


def _size(about: dict[str, Any], spec: StoreSpec, plan: Plan, index: int) -> ShardSize:
    """Read how much a shard says it holds; raise ValueError for numbers that cannot be."""
    size, first, stop = ShardSize(**about["size"]), *plan.shard_rows(index)
    records = size.records if type(size.records) is int else 0
    most = (_MAX_SIZE, _MAX_SIZE, records * spec.top_k, records * spec.draws)
    for name, limit in zip(vars(size), most, strict=True):
        count = vars(size)[name]
        if not _is_whole(count) or count > min(limit, _MAX_SIZE):
            raise ValueError(f"it cannot hold {count} {name}")
    if size.sequences < stop - first:
        raise ValueError(f"{size.sequences} lines cannot be {stop - first} rows")
    statuses, fidelity = about["statuses"], about["fidelity"]
    counted = isinstance(statuses, dict) and all(map(_is_whole, statuses.values()))
    if not counted or sum(statuses.values()) != size.sequences:
        raise ValueError("its statuses do not add up to its lines")
    if not isinstance(fidelity, dict) or set(fidelity) != set(NOTHING_MEASURED):
        raise ValueError("its fidelity has other fields than the format's")
    wholes = [about["supervised_bytes"], fidelity["dropped_entries"]]
    if not all(_is_whole(n) and n < _MAX_NUMBER for n in wholes):
        raise ValueError("it counts bytes or entries that cannot be")
    if not all(type(n) in (int, float) and -1 < n < _MAX_NUMBER for n in fidelity.values()):
        raise ValueError("its fidelity holds a value that cannot be")
    return size


def _is_whole(value: Any) -> bool:
    return type(value) is int and value >= 0
