"""Loading a tokenizer, and the one error where there is none."""

import json
import os
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from logitstore.errors import InputError
from logitstore.models.loading import check_vocabulary, load_tokenizer
from logitstore.testing import tiny
from logitstore.text.stored import files_to_store, stored_tokenizer
from logitstore.text.tokenizer import ByteTokenizer


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    saved = tiny.byte_bpe()
    saved.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).get_vocab() == saved.get_vocab()


def test_an_error_names_the_flag_the_reason_and_the_next_step(tmp_path: Path) -> None:
    expected = (
        "--tokenizer ./nowhere: AutoTokenizer cannot load it (there is no such folder). Give the "
        "folder of a language model with its tokenizer, or a hub id that this machine can reach or "
        "has cached."
    )
    with pytest.raises(InputError, match=f"^{re.escape(expected)}$"):
        load_tokenizer("./nowhere", named_by="--tokenizer")
    tiny.byte_bpe().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer\.json is damaged.*\)\. Save it again\.$"):
        load_tokenizer(tmp_path, advice="Save it again.")


def test_no_code_of_a_folder_is_run(tmp_path: Path) -> None:
    """A tokenizer class of its own, which would have to be imported from the folder."""
    tiny.byte_bpe().save_pretrained(tmp_path)
    config = '{"auto_map": {"AutoTokenizer": ["own.Own", null]}, "tokenizer_class": "Own"}'
    (tmp_path / "tokenizer_config.json").write_text(config)
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'was-run')!r}, 'w').close()")
    with pytest.raises(InputError, match="custom code"):
        load_tokenizer(tmp_path)
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", {"model": {"vocab": {"a": 0, "zzz": 20_000_000}}}),
        ("tokenizer.json", {"model": {"vocab": [["a", 0.0]]}, "added_tokens": [{"id": 2**31}]}),
        ("vocab.json", {"a": 0, "b": 5_000_000}),
        ("added_tokens.json", {"<x>": 2**32 - 1}),
    ],
)
def test_an_id_that_asks_for_gigabytes_is_refused_before_anything_is_loaded(
    tmp_path: Path, name: str, content: dict[str, object]
) -> None:
    """However the JSON is spaced."""
    for spacing in ({}, {"separators": (",", ":")}, {"indent": 1, "separators": (" ,", " :\n\t ")}):
        (tmp_path / name).write_text(json.dumps(content, **spacing))  # type: ignore[arg-type]
        with pytest.raises(InputError, match=r"has a token with the id [\d,]+, but \d tokens?"):
            load_tokenizer(tmp_path)


def test_the_smallest_id_that_is_too_large_is_found(tmp_path: Path) -> None:
    for above, is_refused in ((4, False), (5, True)):
        content = {"model": {"vocab": {"a": 1_000_000 + above}}}
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match="1,000,005") if is_refused else nullcontext():
            check_vocabulary(tmp_path)


def test_what_is_no_ordinary_file_is_not_waited_for(tmp_path: Path) -> None:
    """A pipe without a writer; and 20 GiB that take no room on the disk."""
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(InputError, match="not an ordinary file"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.json").touch()
    os.truncate(tmp_path / "tokenizer.json", 20 * 2**30)
    with pytest.raises(InputError, match=r"more than 268,435,456 bytes"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_with_a_large_hole_is_read_and_stored(tmp_path: Path) -> None:
    """The number of tokens decides and not the size that a store says, which may be any lie."""
    words = Tokenizer(WordLevel({"[UNK]": 0, "a": 1, "b": 900_000}, unk_token="[UNK]"))
    words.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    tokenizer = ByteTokenizer(loaded)
    assert (loaded("b a").input_ids, tokenizer.size) == ([900_000, 1], 900_001)
    for name, data in files_to_store(loaded).items():
        (tmp_path / name).write_bytes(data)
    again = stored_tokenizer(tmp_path, tokenizer.fingerprint, "s")
    assert again.by_bytes.size == tokenizer.size


def test_ids_may_leave_gaps(tmp_path: Path) -> None:
    content = {"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 900_000}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    check_vocabulary(tmp_path)
