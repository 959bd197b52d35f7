"""A piece from the middle of a text is tokens of just its bytes."""

import pytest
from transformers import PreTrainedTokenizerFast

from logitstore.testing import tiny
from logitstore.text.middle import MiddleTokenizer
from logitstore.text.tokenizer import ByteTokenizer


@pytest.mark.parametrize("made", [tiny.unigram(), tiny.sp_bpe(), tiny.byte_bpe(400)])
def test_a_piece_from_the_middle_is_written_without_a_space_in_front(
    made: PreTrainedTokenizerFast,
) -> None:
    reader = ByteTokenizer(made)
    middle = MiddleTokenizer(made, reader)
    for piece in (b"eacher", b" the", b"e", "ß".encode(), "ß".encode()[:1], b"\x9f und", b"\n\t "):
        ids = middle.ids(piece)
        assert ids is not None
        assert b"".join(reader.token_bytes[i] or b"" for i in ids) == piece
    if reader.adds_space:
        begun = middle.ids(b"Th", True)
        assert b"".join(reader.token_bytes[i] or b"" for i in begun or ()) == b" Th"
