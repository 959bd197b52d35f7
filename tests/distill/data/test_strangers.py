"""Two tokenizers that have nothing in common but an end have no map, and are told so."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from distill.alignment.make_map import KINDS, make_map, nothing_seen
from distill.data.maps import map_of
from logitstore.errors import MismatchError
from logitstore.text.tokenizer import ByteTokenizer

END = "<|endoftext|>"
#: Sends a token to the nearest one, however far that is: there always is one.
NEAREST = "mined"


def of(characters: str) -> ByteTokenizer:
    """A tokenizer that knows these characters, and an end."""
    vocabulary = {token: i for i, token in enumerate([END, *characters])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens([END])
    return ByteTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOGITSTORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "maps"


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {NEAREST}))
def test_tokenizers_without_a_common_event_are_refused_though_both_have_an_end(
    kind: str, cache: Path
) -> None:
    digits, letters = of("0123456789"), of("abcdefghij")
    for teacher, student in ((digits, letters), (letters, digits)):
        made = make_map(kind, teacher, student)
        assert (made.event >= 0).any()  # the end, which both have
        with pytest.raises(MismatchError, match=rf"--map {kind}: no token of the teacher"):
            map_of(kind, teacher, student, {}, nothing_seen)
        assert not list(cache.glob("*")), "a map that says nothing is not kept"


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_one_common_character_is_enough(kind: str) -> None:
    made = map_of(kind, of("0123456789"), of("abcdefg9"), {}, nothing_seen)
    assert (made.event >= 0).any()
