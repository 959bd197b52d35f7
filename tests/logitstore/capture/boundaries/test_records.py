"""`capture --boundaries-of`: the teacher's distribution at every boundary of a student's tokens."""

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from logitstore.checking.verify import verify_store
from logitstore.store import LogitStore
from logitstore.testing import tiny
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit.boundaries import CODE, inside, plain, run


def context(tokenizer: PreTrainedTokenizerFast, text: bytes, place: int) -> list[int] | None:
    """The teacher's tokens before a byte; None where the byte is inside a character."""
    ids = tokenizer(text.decode())["input_ids"]
    before, used = [], 0
    for i in ids:
        spelt = tokenizer.convert_ids_to_tokens(i)
        size = 0 if spelt.startswith("<|") else len(spelt)  # byte-level: a character a byte
        if used + size > place:
            break
        before.append(i)
        used += size
    try:
        rest = text[used:place].decode()
    except UnicodeDecodeError:
        return None
    return before + tokenizer(rest, add_special_tokens=False)["input_ids"]


def test_every_record_is_what_a_plain_forward_pass_says_behind_just_these_bytes(
    teacher: Path, place: Path, tmp_path: Path
) -> None:
    store = run(teacher, place, tmp_path / "s", boundaries_of=str(place / "bpe"))
    model = AutoModelForCausalLM.from_pretrained(teacher)
    tokenizer = tiny.byte_bpe(400, bos=True)
    compared = inside_tokens = 0
    for i in range(0, len(store), 3):
        text, records = store.text(i).supervised_bytes, inside(store)[i]
        own = {int(start) for start in store[i].byte_starts}
        entries = records.padded()
        for t in range(len(records)):
            start = int(records.byte_starts[t])
            ids = context(tokenizer, text, start)
            if ids is None:
                continue
            said = plain(model, ids)
            top = said.topk(8).values.numpy()
            likely = top > -12
            np.testing.assert_allclose(entries.logprobs[t][likely], top[likely], atol=CODE)
            np.testing.assert_allclose(
                records.token_logprob[t], said[int(records.token_ids[t])], atol=CODE
            )
            compared += 1
            inside_tokens += start not in own
    assert compared > 200
    assert inside_tokens > 50


def test_where_both_sides_have_a_boundary_the_record_is_the_ordinary_one(
    store: LogitStore,
) -> None:
    shared = 0
    for i in range(len(store)):
        own, other = store[i], inside(store)[i]
        at = {int(start): t for t, start in enumerate(own.byte_starts)}
        theirs, ours = own.padded(8), other.padded(8)
        for t, start in enumerate(other.byte_starts):
            k = at.get(int(start))
            if k is None:
                continue
            assert own.token_ids[k] == other.token_ids[t]
            assert own.token_logprob[k] == other.token_logprob[t]
            assert (theirs.ids[k] == ours.ids[t]).all()  # type: ignore[index]
            assert (theirs.logprobs[k] == ours.logprobs[t]).all()
            shared += 1
    assert shared > 500


@pytest.mark.parametrize("student", ["unigram", "bpe", "sp", "wordpiece"])
def test_records_begin_and_end_where_the_students_tokens_do(
    teacher: Path, place: Path, student: str, tmp_path: Path
) -> None:
    store = run(teacher, place, tmp_path / "s", boundaries_of=str(place / student))
    tokenizer = ByteTokenizer.from_folder(place / student)
    assert verify_store(store.path, deep=True).damaged == []
    for i in range(len(store)):
        records, line = inside(store)[i], store.text(i)
        tokens = tokenizer.encode(line.segments)
        kept = tokens.has_record & ((tokens.byte_lengths > 0) | tokens.is_eos)
        assert records.byte_starts.tolist() == tokens.byte_starts[kept].tolist()
        assert records.byte_lengths.tolist() == tokens.byte_lengths[kept].tolist()
        assert inside(store).text(i) == line


def test_the_token_of_a_record_begins_the_text_there(teacher: Path, store: LogitStore) -> None:
    tokenizer = ByteTokenizer.from_folder(teacher)
    for i in range(len(store)):
        text, records = store.text(i).supervised_bytes, inside(store)[i]
        for t in range(len(records)):
            written = tokenizer.token_bytes[int(records.token_ids[t])]
            if written is not None:
                assert text[int(records.byte_starts[t]) :].startswith(written)


def test_without_bos_the_first_boundary_has_no_record_and_those_inside_its_token_have(
    place: Path, tmp_path: Path
) -> None:
    tiny.save(tmp_path / "t", tiny.llama(400), tiny.byte_bpe(400))
    store = run(tmp_path / "t", place, tmp_path / "s", boundaries_of=str(place / "bpe"))
    read = [i for i in range(len(store)) if len(store[i])]
    assert all(inside(store)[i].byte_starts[0] > 0 for i in read)
    assert any(inside(store)[i].byte_starts[0] < store[i].byte_starts[0] for i in read)
