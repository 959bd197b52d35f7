"""Make the records of a row of the arrays that a caller gave for it."""

import numpy as np

from logitstore.console.counts import counted
from logitstore.errors import InputError
from logitstore.format.encoded import EncodedRecords
from logitstore.format.numpy_types import I64
from logitstore.format.spec import StoreSpec
from logitstore.moving.created.entries import of_entries
from logitstore.moving.created.fits import Fits
from logitstore.moving.created.full_rows import of_full_rows
from logitstore.moving.created.given import Given
from logitstore.moving.created.logits import Kept
from logitstore.moving.created.texts import Tokens
from logitstore.writing.encode import encode_records


def encoded(
    given: Given, tokens: Tokens, spec: StoreSpec, kept: Kept, fits: Fits, where: str
) -> EncodedRecords | None:
    """Make the records of a row of what was given for it; None if nothing in it is trained on.

    Args:
        given: The arrays.
        tokens: The tokens of the row.
        spec: Of the store.
        kept: What to keep of a distribution.
        fits: Counts what only many rows can tell.
        where: Names the row in messages.

    Raises:
        InputError: Something is wrong with an array; names the token.
    """
    if not len(tokens.places):
        return None
    at = _rows_of(given, tokens, where)
    if given.is_full:
        raw = of_full_rows(given, at, tokens, kept, where)
        fits.count(raw.entry_ids, raw.entry_count, tokens)
        return encode_records(raw, spec)
    return of_entries(given, at, tokens, spec, kept.top_k, fits, where)


def _rows_of(given: Given, tokens: Tokens, where: str) -> I64:
    """Find the row of the arrays that is of each record: (n,)."""
    count = given.rows(where)
    if count == len(tokens.ids):
        return tokens.places - 1 if tokens.moves_on else tokens.places
    if not tokens.moves_on and count == len(tokens.places):
        return np.arange(count)
    supervised = "" if tokens.moves_on else f", {len(tokens.places):,} of them supervised"
    raise InputError(
        f"{where}: {counted(count, 'row')} of {given.names[0]} for "
        f"{counted(len(tokens.ids), 'token')}{supervised}. "
        f"The tokenizer begins with {tokens.shown}. Give one row a token, of the same text and "
        "tokenizer (add_eos=True if the text ends with EOS), or the tokens as input_ids=…."
    )
