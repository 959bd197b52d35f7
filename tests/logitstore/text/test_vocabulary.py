"""Two tokenizers are one if equal tokens have equal ids, whatever roles these tokens have."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from logitstore.records import Segment
from logitstore.testing import tiny
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit.one_family import BASE_END, base, instruct


def changed(**parts: Any) -> PreTrainedTokenizerFast:
    """The base model's tokenizer, with parts of its backend replaced."""
    made = base()
    for name, part in parts.items():
        setattr(made.backend_tokenizer, name, part)
    return made


def rewritten(change: Any) -> PreTrainedTokenizerFast:
    """The base model's tokenizer, its `tokenizer.json` changed by hand."""
    content = json.loads(base().backend_tokenizer.to_str())
    change(content)
    backend = Tokenizer.from_str(json.dumps(content))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=BASE_END)


def without_a_merge(content: Any) -> None:
    content["model"]["merges"].pop()


def with_two_ids_swapped(content: Any) -> None:
    vocabulary = content["model"]["vocab"]
    one, other = list(vocabulary)[-2:]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]


def with_a_stripping_mark(content: Any) -> None:
    next(t for t in content["added_tokens"] if t["content"] == "<|im_end|>")["lstrip"] = True


def splitting_special() -> PreTrainedTokenizerFast:
    made = base()
    made.backend_tokenizer.encode_special_tokens = True
    return made


def with_bos() -> PreTrainedTokenizerFast:
    """As Llama 3: BOS is put in front of each text."""
    begin = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 1)])
    made = changed(post_processor=begin)
    made.bos_token = "<|begin|>"
    return made


ONE = {
    "another EOS": instruct,
    "BOS in front": with_bos,
    "added tokens": lambda: base("<think>", "</think>"),
    "other EOS, fewer added": lambda: instruct("<think>"),
    "truncation and padding": lambda: _with_settings_of_the_moment(),
}
TWO = {
    "one merge": lambda: rewritten(without_a_merge),
    "two ids": lambda: rewritten(with_two_ids_swapped),
    "one normaliser": lambda: changed(normalizer=normalizers.NFC()),
    "the pre-tokenizer": lambda: changed(
        pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)
    ),
    "where a mark is found": lambda: rewritten(with_a_stripping_mark),
    "special tokens split": splitting_special,
    "another vocabulary": tiny.unigram,
}


def _with_settings_of_the_moment() -> PreTrainedTokenizerFast:
    made = base()
    made.backend_tokenizer.enable_truncation(4)
    made.backend_tokenizer.enable_padding()
    return made


@pytest.mark.parametrize("which", ONE)
def test_roles_and_added_tokens_make_no_other_tokenizer(which: str) -> None:
    one, other = ByteTokenizer(base()), ByteTokenizer(ONE[which]())
    assert one.is_one_with(other)
    assert other.is_one_with(one)
    row = [Segment(tiny.corpus()[40], supervised=True)]
    ids = [each.encode(row, add_eos=False, add_prefix=False).token_ids for each in (one, other)]
    assert ids[0].tolist() == ids[1].tolist()


@pytest.mark.parametrize("which", TWO)
def test_whatever_changes_ids_makes_another_tokenizer(which: str) -> None:
    one, other = ByteTokenizer(base()), ByteTokenizer(TWO[which]())
    assert not one.is_one_with(other)
    assert not other.is_one_with(one)


def test_an_id_with_two_meanings_and_a_token_with_two_ids_make_another_tokenizer() -> None:
    think = ByteTokenizer(base("<think>", "</think>"))
    for also in (("<tool>",), ("</think>", "<think>"), ("<tool>", "<think>")):
        other = ByteTokenizer(base(*also))
        assert not think.is_one_with(other)
        assert not other.is_one_with(think)


def test_what_only_one_has_is_listed() -> None:
    few, many = ByteTokenizer(instruct()), ByteTokenizer(base("<think>", "</think>"))
    assert many.vocabulary.beyond(few.vocabulary) == [few.size, few.size + 1]
    assert few.vocabulary.beyond(many.vocabulary) == []


def test_a_role_makes_a_token_special_and_yet_no_other_one() -> None:
    """`<think>` is found in the same places, as EOS too."""
    one, other = ByteTokenizer(base("<think>")), base("<think>")
    other.eos_token = "<think>"
    other.backend_tokenizer.add_special_tokens([AddedToken("<think>", normalized=False)])
    assert one.is_one_with(ByteTokenizer(other))


def test_a_copy_and_what_was_saved_are_the_same_vocabulary(tmp_path: Path) -> None:
    first = ByteTokenizer(instruct("<think>"))
    instruct("<think>").save_pretrained(tmp_path)
    loaded = ByteTokenizer(AutoTokenizer.from_pretrained(tmp_path))
    for copy in (loaded, pickle.loads(pickle.dumps(first))):
        assert copy.vocabulary == first.vocabulary
