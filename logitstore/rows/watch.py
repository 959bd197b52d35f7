"""Watch the rows of a dataset: one that is mapped into memory changes when its file does."""

from functools import cached_property

from logitstore.errors import MismatchError
from logitstore.rows.dataset import Rows
from logitstore.rows.source_files import signs_of
from logitstore.rows.survey import survey


class Watch:
    """Tells whether the rows of a dataset still have the digest that was taken of them.

    Args:
        rows: The rows. Their files are looked at here.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows, self._signs = rows, signs_of(rows.files)

    @cached_property
    def digest(self) -> str:
        """The digest of the rows, taken when it is first asked for."""
        return self._rows.digest()

    def check(self) -> None:
        """Check that the rows read until now are those of the digest.

        Files that nothing was written to are taken as they were; otherwise every row is read again.

        Raises:
            MismatchError: The rows have another digest now.
        """
        now = signs_of(self._rows.files)
        if now == self._signs:
            return
        found = survey(self._rows).digest  # read anew: what the rows know of themselves is old
        if found != self.digest:
            raise MismatchError(
                f"{self._rows.name}: has changed while it was read (its digest was "
                f"{self.digest[:12]}…, and is {found[:12]}… now). What was written before is of "
                "the old rows. Put those back and run the same command again to resume it, or read "
                "the new ones with another --out.",
                kind="dataset-changed",
            )
        self._signs = now
