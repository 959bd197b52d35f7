"""Report a damaged shard in the same words wherever it is noticed."""

from logitstore.errors import CorruptStoreError
from logitstore.storage.paths import StorePath


def damaged(
    path: StorePath, rows: tuple[int, int], why: str, kind: str | None = None
) -> CorruptStoreError:
    """Make the error for a shard that is not what was committed.

    Args:
        path: The shard's file or object.
        rows: First and last dataset row of what cannot be read.
        why: What is wrong with it.
        kind: The error's kind; None for its usual one.
    """
    store = path.parent.parent
    where = f"row {rows[0]:,}" if rows[0] == rows[1] else f"rows {rows[0]:,} to {rows[1]:,}"
    return CorruptStoreError(
        f"{path}: {where}: {why.rstrip('.')}. Nothing was returned in its place. See "
        f"`logitstore verify {store}`; then restore the file from a copy, or run `logitstore "
        f"repair {store}` to redo just this shard.",
        path=path,
        rows=rows,
        kind=kind,
    )
