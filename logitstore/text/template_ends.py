"""Find the tokens with which a chat template ends the assistant's turns."""

from logitstore.text.tokenizer import ByteTokenizer


def find_ends(behind: tuple[str, str] | None, reader: ByteTokenizer) -> tuple[tuple[int, ...], str]:
    """Find what a template writes right behind an answer, white space aside.

    BOS is no end: it begins what follows, where a template ends nothing.

    Args:
        behind: The text behind an answer in the middle of a conversation, and behind the last; None
            where it is not known.
        reader: The tokenizer, by bytes.

    Returns:
        The ids; and the spelling of the one in the middle, if nothing stands behind the last answer
        (the mark of the next role ends a turn, and there is no next one).
    """
    if behind is None:
        return (), ""
    marks = [reader.first_mark(text) for text in behind]
    is_bos = reader.bos_token_id not in (None, reader.eos_token_id)
    ids = [None if is_bos and i == reader.bos_token_id else i for i in marks]
    middle, is_open = ids[0], not behind[1].strip()
    closing = reader.spelt(middle) if middle is not None and is_open else None
    return tuple(dict.fromkeys(i for i in ids if i is not None)), closing or ""
